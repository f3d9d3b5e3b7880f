"""`covey join`: become a machine of a network, and go on as `covey up` does."""

import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from covey.cli.up import Signals, load_config, run_node, up_options
from covey.cli.values import read_secret
from covey.cli.verbs import Settings, verb

if TYPE_CHECKING:
    from covey.config import Config
    from covey.contracts.joining import Welcome


@verb("join")
@click.argument("token", required=False)
@click.option("--file", "token_file", metavar="FILE", help="Holds the invite in its only line; - is standard input.")
@click.option("--replace", is_flag=True, help="Set aside what the data folder holds, and join as a new machine.")
@up_options
@click.pass_obj
def join(
    settings: Settings,
    /,
    *,
    token: str | None,
    token_file: str | None,
    replace: bool,
    config_path: Path | None,
    ready_file: Path | None,
    **given: Any,
) -> None:
    """Join the network that a TOKEN of `covey invite` is for, then run a node as `covey up` does.

    TOKEN may be -, for standard input. Later starts are plain `covey up`. A token that was used by this very machine
    does no harm.
    """
    if (token is None) == (token_file is None):
        raise click.UsageError("Give the invite as TOKEN, or in a file with --file FILE, or on standard input with -.")
    source = "-" if token == "-" else token_file  # noqa: S105 - standard input, no secret
    line = token if source is None and token is not None else read_secret("invite", source, "--file", confirm=False)
    config = load_config(settings, config_path, given)
    click.echo(_join(settings, config, line, replace=replace))
    run_node(settings, config, ready_file, Signals())


def _join(settings: Settings, config: "Config", line: str, *, replace: bool) -> str:
    """Use the invite; returns what to tell the person. Ctrl-C leaves the machine as it was, or as a member."""
    import trio

    from covey.cluster.invites import parse_invite
    from covey.join import join_network
    from covey.node import unwrapped

    invite = parse_invite(line)
    name = config.node.name or socket.gethostname()

    async def work() -> "Welcome | None":
        return await join_network(settings.folder, invite, name=name, network=config.network, replace=replace)

    with unwrapped():
        welcome = trio.run(work)
    if welcome is None:
        return "This machine is a member of that network already."
    return f"Welcome: this machine is {welcome.name} now, and may run {', '.join(welcome.roles)}."
