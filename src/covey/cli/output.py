"""What the verbs print: plain tables, JSON, and times and sizes as people read them."""

import io
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

if TYPE_CHECKING:
    from rich.console import Console

PIPE_COLUMNS = 400
"""A table that goes into a file or another program is never cut to some terminal's width."""


def print_json(value: object) -> None:
    """Any message, as indented JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_json_line(value: object) -> None:
    """Any message, as one line: for progress, an object a line."""
    click.echo(msgspec.json.encode(value).decode())


def open_console(*, stderr: bool = False) -> "Console":
    """A console that respects NO_COLOR, and a width that does not cut what is piped on."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_COLUMNS
    return Console(stderr=stderr, width=width, highlight=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
    """A table that reads well without colour; `empty` is said, on standard error, where there are no rows."""
    if not rows:
        click.echo(empty, err=True)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(plain(str(cell))) for cell in row))
    open_console().print(made)


def print_pairs(pairs: Sequence[tuple[str, object]]) -> None:
    """Names and values in two columns."""
    from rich.table import Table
    from rich.text import Text

    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(Text(name), Text(plain(str(value))))
    open_console().print(made)


def plain(text: str) -> str:
    """A text without control characters: what a model or another person wrote must not drive the terminal."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def moment(seconds: int | None, *, never: str = "never") -> str:
    """Unix seconds as local time to the minute."""
    return never if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def span(seconds: float) -> str:
    """`3 d 4 h`, `12 min`, `8 s`: the two largest units."""
    rest = int(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def size(count: float) -> str:
    """`98.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


class CurrentStandardError(io.TextIOBase):
    """Standard error as it is now: while a progress bar runs, rich puts its own in place, which moves the bar aside."""

    def write(self, text: str) -> int:
        """Pass it on."""
        return sys.stderr.write(text)

    def flush(self) -> None:
        """Pass it on."""
        sys.stderr.flush()
