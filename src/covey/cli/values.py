"""What is typed on a command line: durations, and secrets that are not typed there."""

import re
import sys
from pathlib import Path
from typing import Any

import click

from covey.errors import CallError

SECRET_FILE_BYTES_MAX = 4_096
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class FilePath(click.Path):
    """A type for options: a path. An empty one is refused: `--data "$UNSET"` would mean the folder one is in."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click's."""
        if value == "":
            self.fail("it is empty: name a path.", param, ctx)
        return super().convert(value, param, ctx)


FILE_PATH = FilePath()


def duration(text: str) -> int:
    """A type for options: `30d`, `12h`, `45m` or `90s`, to whole seconds."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if match is None or int(match[1]) == 0:
        raise click.BadParameter(f"{text!r} is not a duration: write 30d, 12h, 45m or 90s.")
    return int(match[1]) * _UNIT_SECONDS[match[2]]


def read_secret(what: str, source: str | None, option: str, *, confirm: bool) -> str:
    """A secret from a file, from standard input, or from a hidden prompt: never from the command line itself.

    Args:
        what: its name in the prompt and in messages.
        source: the file, `-` for standard input, `None` to ask on the terminal.
        option: the option that gives the file, for the message.
        confirm: ask twice.

    Raises:
        CallError: `invalid`: the file cannot be read, holds more than one line, or nothing.
        click.UsageError: no file, and no terminal to ask on.
    """
    if source is None:
        if not sys.stdin.isatty():
            raise click.UsageError(f"Give the {what} with {option} FILE, or {option} - to read standard input.")
        typed: str = click.prompt(what.capitalize(), hide_input=True, confirmation_prompt=confirm, err=True)
        return typed
    try:
        if source == "-":
            content = sys.stdin.buffer.read(SECRET_FILE_BYTES_MAX + 1)
        else:
            with Path(source).open("rb") as file:
                content = file.read(SECRET_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise CallError("invalid", f"The {what} cannot be read from {source}: {error.strerror}.") from error
    if len(content) > SECRET_FILE_BYTES_MAX:
        raise CallError("invalid", f"{source} is too long for a {what}.")
    try:
        # One line; the newline that every editor puts at its end is not part of it.
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise CallError("invalid", f"{source} is not UTF-8 text.") from error
    if not text or "\n" in text:
        raise CallError("invalid", f"{source} must hold the {what} in its only line.")
    return text
