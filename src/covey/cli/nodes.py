"""`covey nodes`: the machines of the network."""

import sys
from typing import TYPE_CHECKING, Any

import click

from covey.cli.asking import ask_node, on_behalf
from covey.cli.changing import Change, change
from covey.cli.output import plain, print_json, print_table, size, span
from covey.cli.values import read_secret
from covey.cli.verbs import Settings, Verbs, json_option

if TYPE_CHECKING:
    from covey.client import Client
    from covey.contracts.cluster import LinkList, LinkStatus, NodeStatus
    from covey.contracts.membership import Member, Minted


@click.group("nodes", cls=Verbs)
def nodes() -> None:
    """List, rename, label, promote, drain and remove the machines of the network."""


@nodes.command("list")
@json_option
@click.pass_obj
def list_(settings: Settings, *, as_json: bool) -> None:
    """List every machine of the network, and this node's links to them."""
    own, links, live = ask_node(settings, look)
    if as_json:
        print_json(as_rows(own, links, live))
        return
    print_table(
        ["node", "roles", "labels", "state", "link", "round trip", "came up again", "in", "out", "version", "peer id"],
        [_own_line(own, links), *(_line(link, live.get(link.peer)) for link in links.links)],
        empty="",
    )
    if links.removed:
        click.echo(links.removed, err=True)


recovery_option = click.option(
    "--recovery-key-file",
    metavar="FILE",
    help="Speak with the network's recovery key, in FILE's only line; - is standard input. For the last resort.",
)


@nodes.command("promote")
@click.argument("name")
@click.option("--role", "roles", multiple=True, required=True, metavar="R", help="What it may run, too; once for each.")
@recovery_option
@json_option
@click.pass_obj
def promote(
    settings: Settings, name: str, *, roles: tuple[str, ...], recovery_key_file: str | None, as_json: bool
) -> None:
    """Give a machine further roles.

    It takes them up by itself, unless its own configuration says which roles it runs. With the recovery key, a machine
    without the role auth can make itself an auth node: for the day on which none is left.
    """
    from covey.contracts.membership import PROMOTE_NODE, PromoteNode
    from covey.contracts.recovery import RECOVER_PROMOTE, RecoverPromote

    changed: Change[Member]
    if recovery_key_file is None:
        changed = change(settings, PROMOTE_NODE, PromoteNode(on_behalf(), name, roles))
    else:
        key = read_secret("recovery key", recovery_key_file, "--recovery-key-file", confirm=False)
        changed = change(settings, RECOVER_PROMOTE, RecoverPromote(key, name, roles))
    if as_json:
        print_json(changed.answer)
        return
    click.echo(f"{changed.answer.name} may run {', '.join(changed.answer.roles)}.")
    if recovery_key_file is None:
        changed.say_who_has_it()


@nodes.command("remove")
@click.argument("name")
@click.option("--revoke-keys", is_flag=True, help="The API keys that it made, too.")
@recovery_option
@json_option
@click.pass_obj
def remove(settings: Settings, name: str, *, revoke_keys: bool, recovery_key_file: str | None, as_json: bool) -> None:
    """Remove a machine from the network, for ever.

    Its links are cut at once. It can come back only as a new machine, with a new invite. Of an auth node this tells
    what it made, and on a terminal asks whether to revoke the API keys among it.
    """
    from covey.contracts.membership import REMOVE_NODE, RemoveNode

    if recovery_key_file is not None:
        if revoke_keys:
            raise click.UsageError("Revoke the keys in a second step, without --recovery-key-file.")
        _remove_with_recovery_key(settings, name, recovery_key_file, as_json=as_json)
        return
    left = 0
    if not revoke_keys and not as_json:
        revoke_keys, left = _ask_about_keys(settings, name)
    changed = change(settings, REMOVE_NODE, RemoveNode(on_behalf(), name, revoke_keys))
    if as_json:
        print_json(changed.answer)
        return
    click.echo(f"{changed.answer.name} is removed from the network.{' Its keys are revoked.' if revoke_keys else ''}")
    changed.say_who_has_it()
    if left:
        click.echo(f"The keys go on working. To revoke them: covey nodes remove {changed.answer.peer} --revoke-keys")


def _ask_about_keys(settings: Settings, name: str) -> tuple[bool, int]:
    """Tell what a node made; returns whether to revoke its keys, and how many are left if not."""
    from covey.contracts.membership import LIST_MINTED, ListMinted

    minted = ask_node(settings, lambda client: client.bus.call(LIST_MINTED, ListMinted(on_behalf(), name)))
    for line in minted_lines(minted):
        click.echo(line)
    if not minted.keys.count:
        return False, 0
    if sys.stdin.isatty() and click.confirm(f"Revoke the keys that {plain(minted.name)} made?", err=True):
        return True, 0
    return False, minted.keys.count


def minted_lines(minted: "Minted") -> list[str]:
    """What an auth node made, a line for each kind of which there is any."""
    kinds = (
        ("API key", minted.keys),
        ("account", minted.accounts),
        ("open invitation", minted.invitations),
        ("admission", minted.machines),
    )
    found: list[str] = []
    for what, made in kinds:
        if made.count:
            plural = "" if made.count == 1 else "s"
            more = ", ..." if made.count > len(made.names) else ""
            found.append(plain(f"{minted.name} made {made.count} {what}{plural}: {', '.join(made.names)}{more}"))
    return found


def _remove_with_recovery_key(settings: Settings, name: str, source: str, *, as_json: bool) -> None:
    from covey.contracts.recovery import RECOVER_REMOVE, RecoverRemove

    key = read_secret("recovery key", source, "--recovery-key-file", confirm=False)
    gone = ask_node(settings, lambda client: client.bus.call(RECOVER_REMOVE, RecoverRemove(key, name)))
    if as_json:
        print_json(gone)
        return
    click.echo(f"{gone.name} is removed from the network, by its recovery key.")


@nodes.command("rename")
@click.argument("name")
@click.argument("new")
@json_option
@click.pass_obj
def rename(settings: Settings, name: str, new: str, *, as_json: bool) -> None:
    """Call the machine NAME, or the one with this peer id, NEW."""
    from covey.contracts.membership import RENAME_NODE, RenameNode

    changed = change(settings, RENAME_NODE, RenameNode(on_behalf(), name, new))
    if as_json:
        print_json(changed.answer)
        return
    click.echo(f"{name} is called {changed.answer.name} now.")
    changed.say_who_has_it()


@nodes.command("label")
@click.argument("name")
@click.argument("labels", nargs=-1, metavar="[LABEL]...")
@click.option("--remove", "gone", multiple=True, metavar="LABEL", help="Take it away; give it once for each.")
@json_option
@click.pass_obj
def label(settings: Settings, name: str, *, labels: tuple[str, ...], gone: tuple[str, ...], as_json: bool) -> None:
    """Give a machine labels, or take some away.

    A key made with --nodes LABEL is answered by machines with that label alone. No machine claims one by itself.
    """
    from covey.contracts.membership import LABEL_NODE, LabelNode

    if not labels and not gone:
        raise click.UsageError("Say which labels: covey nodes label NAME gpu, or --remove gpu")
    changed = change(settings, LABEL_NODE, LabelNode(on_behalf(), name, labels, gone))
    if as_json:
        print_json(changed.answer)
        return
    now = ", ".join(changed.answer.labels)
    click.echo(f"{changed.answer.name} is labelled {now}." if now else f"{changed.answer.name} has no labels now.")
    changed.say_who_has_it()


@nodes.command("drain")
@click.argument("name")
@click.option("--undo", is_flag=True, help="Take work again.")
@json_option
@click.pass_obj
def drain(settings: Settings, name: str, *, undo: bool, as_json: bool) -> None:
    """Let a machine finish what it does, and take no new work.

    It goes on running: until --undo, or until it starts anew.
    """
    from covey.contracts.cluster import DRAIN, Drain

    drained = ask_node(settings, lambda client: client.bus.call(DRAIN, Drain(on_behalf(), name, undo)))
    if as_json:
        print_json(drained)
        return
    click.echo(f"{drained.name} {'takes no new work' if drained.draining else 'takes work'}.")


async def look(client: "Client") -> "tuple[NodeStatus, LinkList, dict[str, NodeStatus]]":
    """This node, its links, and what the live nodes say of themselves, by peer id."""
    from covey.contracts.cluster import LINKS, NODE_STATUS
    from covey.contracts.method import Nothing

    own = await client.bus.call(NODE_STATUS, Nothing())
    links = await client.bus.call(LINKS, Nothing())
    return own, links, {status.peer_id: status for status in await client.nodes()}


def as_rows(own: "NodeStatus", links: "LinkList", live: "dict[str, NodeStatus]") -> list[dict[str, Any]]:
    """One object for each machine, this one first."""
    import msgspec

    first: dict[str, Any] = {"name": own.name, "peer": own.peer_id, "roles": own.roles, "labels": links.labels}
    rows = [first | {"state": _state(own), "version": own.version}]
    for link in links.links:
        status = live.get(link.peer)
        described: dict[str, Any] = {"name": link.name, "peer": link.peer, "roles": link.roles, "labels": link.labels}
        described["state"] = _state(status, link)
        if status is not None:
            described |= {"roles": status.roles, "version": status.version}
        figures = {key: getattr(link, key) for key in link.__struct_fields__ if key not in described}
        rows.append({**described, "link": msgspec.to_builtins(figures)})
    return rows


def _state(status: "NodeStatus | None", link: "LinkStatus | None" = None) -> str:
    """`up`, `draining`, `down`; `silent`: there is a link, but it does not say how it is."""
    if status is not None:
        return "draining" if status.draining else "up"
    return "down" if link is None or link.path == "down" else "silent"


def _own_line(own: "NodeStatus", links: "LinkList") -> tuple[object, ...]:
    state = f"{_state(own)} for {span(own.uptime_seconds)}"
    roles, labels = ", ".join(own.roles or links.roles), ", ".join(links.labels)
    return (own.name, roles, labels, state, "this node", "", "", "", "", own.version, own.peer_id)


def _line(link: "LinkStatus", status: "NodeStatus | None") -> tuple[object, ...]:
    state = _state(status, link)
    if status is not None:
        state += f" for {span(status.uptime_seconds)}"
    elif link.failure:
        state += f": {link.failure}"
    return (
        link.name,
        ", ".join(status.roles if status else link.roles),
        ", ".join(link.labels),
        state,
        link.path,
        "" if link.rtt_seconds is None else f"{link.rtt_seconds * 1000:.1f} ms",
        link.reconnects,
        size(link.received_bytes),
        size(link.sent_bytes),
        status.version if status else "",
        link.peer,
    )
