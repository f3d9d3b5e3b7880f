"""What all verbs share: `--data`, `--verbose`, and the settings that these make."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from covey.cli.values import FILE_PATH
from covey.folders import default_data_folder
from covey.nearest import suggestion

DATA_VARIABLE = "COVEY_DATA"


@dataclass(slots=True)
class Settings:
    """What was said before or after the verb; every command gets it with `@click.pass_obj`."""

    data: Path | None = None
    verbose: bool = False

    @property
    def folder(self) -> Path:
        """The data folder: `--data`, else `COVEY_DATA`, else the user's own."""
        if self.data is not None:
            return self.data
        named = os.environ.get(DATA_VARIABLE, "")
        return Path(named) if named else default_data_folder()


def _store_data(context: click.Context, parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.find_root().obj.data = value


def _store_verbose(context: click.Context, parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's
    if value:
        context.find_root().obj.verbose = True


def _common() -> list[click.Parameter]:
    # Accepted before and after the verb; neither place undoes what the other said.
    return [
        click.Option(
            ["--data"],
            type=FILE_PATH,
            metavar="DIR",
            expose_value=False,
            callback=_store_data,
            help=f"The node's data folder. [default: ${DATA_VARIABLE}, else the user's own]",
        ),
        click.Option(
            ["--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_store_verbose,
            help="Show tracebacks and debugging logs.",
        ),
    ]


class Verb(click.Command):
    """A command with the options that all have."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.extend(_common())


class Verbs(click.Group):
    """A group of commands that names the nearest one when it does not know what was typed."""

    command_class = Verb

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params.extend(_common())

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click's, with a suggestion."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            ctx.fail(f"There is no command {name!r}{suggestion(name, self.list_commands(ctx))}.")
        return super().resolve_command(ctx, args)


class LazyVerbs(Verbs):
    """The root: a verb's module is imported when the verb is used, or help is asked for.

    Args:
        homes: a verb's name to `module:attribute`, in the order in which help lists them.
        arguments: as `click.Group`.
        options: as `click.Group`.
    """

    def __init__(self, *arguments: Any, homes: Mapping[str, str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._homes = dict(homes)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs' names."""
        return list(self._homes)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb; `None` for an unknown one."""
        home = self._homes.get(cmd_name)
        if home is None:
            return None
        module, _, attribute = home.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


def verb(name: str) -> Callable[[Callable[..., Any]], Verb]:
    """`@verb("status")`: a command of the root."""
    return click.command(name, cls=Verb)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
"""Every listing takes it."""
