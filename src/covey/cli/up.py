"""`covey up`: run a node until it is told to stop."""

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

import click

from covey.cli.values import FILE_PATH
from covey.cli.verbs import Settings, verb
from covey.errors import CallError

if TYPE_CHECKING:
    from covey.config import Config

STOPPING = (signal.SIGINT, signal.SIGTERM)
FORCED = 1
"""The exit code after a second Ctrl-C."""
Command = TypeVar("Command", bound=Callable[..., Any])


class Signals:
    """Takes the signals from the first moment on: loading the libraries takes a while, and must stop cleanly too."""

    def __init__(self) -> None:
        self.asked = False
        for number in STOPPING:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            os._exit(FORCED)
        self.asked = True


_OPTIONS = (
    click.option("--role", "--wtype", "roles", multiple=True, metavar="R", help="Run this role; once for each."),
    click.option("--config", "config_path", type=FILE_PATH, metavar="FILE", help="roles.toml, or JSON."),
    click.option(
        "--listen", metavar="HOST:PORT", help="Where the API and the dashboard listen; port 0 takes a free one."
    ),
    click.option("--name", metavar="N", help="This node's name.  [default: the machine's]"),
    click.option("--ready-file", type=FILE_PATH, metavar="PATH", help="Written once the node is ready."),
    click.option("--allow-plain-http", is_flag=True, help="Listen on a public address without TLS."),
    click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"])),
    click.option("--log-style", type=click.Choice(["text", "json"])),
)


def up_options(command: Command) -> Command:
    """The options of whatever runs a node."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@verb("up")
@up_options
@click.pass_obj
def up(settings: Settings, /, *, config_path: Path | None, ready_file: Path | None, **given: Any) -> None:
    """Run a node until Ctrl-C or SIGTERM.

    It has every role, or those given, or on a machine that joined a network those it was invited for. A second Ctrl-C
    does not wait for what still runs.
    """
    signals = Signals()
    run_node(settings, load_config(settings, config_path, given), ready_file, signals)


def load_config(settings: Settings, config_path: Path | None, given: Mapping[str, Any]) -> "Config":
    """The configuration, with what was given on the command line laid over it. The log goes by it from now on."""
    from covey import config as configuration

    overrides = _overrides(
        node={"roles": list(given["roles"]) or None, "name": given["name"]},
        http={"listen": given["listen"], "allow_plain_http": given["allow_plain_http"] or None},
        telemetry={
            "log_level": "debug" if settings.verbose else given["log_level"],
            "log_style": given["log_style"],
        },
    )
    config = configuration.load(config_path, overrides)
    _configure_logs(config, tracebacks=settings.verbose)
    return config


def run_node(settings: Settings, config: "Config", ready_file: Path | None, signals: Signals) -> None:
    """Until a signal has stopped it."""
    import trio

    from covey.cli.running import Running
    from covey.node import RoleCrashed

    try:
        trio.run(Running(config, settings.folder, ready_file, signals).run)
    except RoleCrashed as crash:
        raise CallError("internal", str(crash)) from crash


def _overrides(**tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What was given on the command line, and nothing else: it is laid over the file."""
    given = {name: {key: value for key, value in table.items() if value is not None} for name, table in tables.items()}
    return {name: table for name, table in given.items() if table}


def _configure_logs(config: "Config", *, tracebacks: bool) -> None:
    from covey.cli.output import CurrentStandardError
    from covey.telemetry import logs

    logs.configure(
        level=config.telemetry.log_level,
        style=config.telemetry.log_style,
        tracebacks=tracebacks,
        stream=cast("IO[str]", CurrentStandardError()),
    )
