"""`covey doctor`: looks at everything a node needs, and says what to do about what is missing."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from covey.cli.output import open_console, plain, print_json
from covey.cli.values import FILE_PATH
from covey.cli.verbs import Settings, json_option, verb
from covey.errors import CallError

if TYPE_CHECKING:
    from covey.cli.examination import Finding

STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@verb("doctor")
@click.option("--config", "config_path", type=FILE_PATH, metavar="FILE", help="roles.toml, or JSON.")
@json_option
@click.pass_obj
def doctor(settings: Settings, *, config_path: Path | None, as_json: bool) -> None:
    """Check the machine, the configuration and the node.

    Each line says what to do where there is something to do. Exit code 1 where something fails.
    """
    from covey.cli.examination import examine

    findings = examine(settings, config_path)
    if as_json:
        print_json(findings)
    else:
        _print(findings)
    failed = [one.name for one in findings if one.level == "fail"]
    if failed:
        raise CallError("conflict", f"Not everything is well: {', '.join(failed)}.")


def _print(findings: "list[Finding]") -> None:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for one in findings:
        text = f"{one.message}\n-> {one.advice}" if one.advice else one.message
        grid.add_row(Text(one.level, style=STYLES[one.level]), Text(one.name), Text(plain(text)))
    open_console().print(grid)
