"""`covey nodes`: the machines of the network."""

from typing import TYPE_CHECKING, Any

import click

from covey.cli.asking import ask_node, on_behalf
from covey.cli.changing import change
from covey.cli.output import print_json, print_table, size, span
from covey.cli.verbs import Settings, Verbs, json_option

if TYPE_CHECKING:
    from covey.client import Client
    from covey.contracts.cluster import LinkList, LinkStatus, NodeStatus


@click.group("nodes", cls=Verbs)
def nodes() -> None:
    """List, rename, drain and remove the machines of the network."""


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
        ["node", "roles", "state", "link", "round trip", "came up again", "in", "out", "version", "peer id"],
        [_own_line(own, links), *(_line(link, live.get(link.peer)) for link in links.links)],
        empty="",
    )
    if links.removed:
        click.echo(links.removed, err=True)


@nodes.command("remove")
@click.argument("name")
@json_option
@click.pass_obj
def remove(settings: Settings, name: str, *, as_json: bool) -> None:
    """Remove a machine from the network, for ever.

    Its links are cut at once. It can come back only as a new machine, with a new invite.
    """
    from covey.contracts.membership import REMOVE_NODE, RemoveNode

    changed = change(settings, REMOVE_NODE, RemoveNode(on_behalf(), name))
    if as_json:
        print_json(changed.answer)
        return
    click.echo(f"{changed.answer.name} is removed from the network.")
    changed.say_who_has_it()


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

    first = {"name": own.name, "peer": own.peer_id, "roles": own.roles, "state": _state(own), "version": own.version}
    rows: list[dict[str, Any]] = [first]
    for link in links.links:
        status = live.get(link.peer)
        described: dict[str, Any] = {"name": link.name, "peer": link.peer, "roles": link.roles}
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
    return (own.name, ", ".join(own.roles or links.roles), state, "this node", "", "", "", "", own.version, own.peer_id)


def _line(link: "LinkStatus", status: "NodeStatus | None") -> tuple[object, ...]:
    state = _state(status, link)
    if status is not None:
        state += f" for {span(status.uptime_seconds)}"
    elif link.failure:
        state += f": {link.failure}"
    return (
        link.name,
        ", ".join(status.roles if status else link.roles),
        state,
        link.path,
        "" if link.rtt_seconds is None else f"{link.rtt_seconds * 1000:.1f} ms",
        link.reconnects,
        size(link.received_bytes),
        size(link.sent_bytes),
        status.version if status else "",
        link.peer,
    )
