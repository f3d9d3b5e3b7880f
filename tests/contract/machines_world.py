"""The network's machines, in memory, as the dashboard meets them: what `cluster.*` and auth say of them.

Honest as `web_world` is: it keeps the contracts' promises (who may, which error) and nothing else.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from covey.bus.bus import Bus
from covey.bus.caller import Caller
from covey.contracts import auth, cluster, membership
from covey.contracts.method import Nothing
from covey.errors import CallError


def link(name: str, **more: Any) -> cluster.LinkStatus:
    """The link to a machine; `peer` as `web_world.node` makes it."""
    fields: dict[str, Any] = {
        "peer": f"12D3KooW{name}", "name": name, "roles": ("inference",), "path": "direct", "rtt_seconds": 0.0042
    }  # fmt: skip
    return cluster.LinkStatus(**(fields | more))


@dataclass
class FakeMachines:
    """Machines, links and invites. `who(session, admin=True)` refuses whoever is no administrator; `now` is the time.

    `failures`: what the method of that name answers instead.
    """

    who: Callable[..., auth.Account]
    now: Callable[[], float]
    nodes: list[cluster.NodeStatus]
    links: list[cluster.LinkStatus] = field(default_factory=list)
    removed: str = ""
    invites: list[membership.InviteInfo] = field(default_factory=list)
    failures: dict[str, CallError] = field(default_factory=dict)
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)
    """What administrators asked for, in order."""

    def join(self, name: str, **more: Any) -> None:
        """A further machine, live and linked."""
        like = replace(self.nodes[0], name=name, peer_id=f"12D3KooW{name}", roles=("inference",))
        self.nodes.append(replace(like, **more))
        self.links.append(link(name))

    def _admit(self, method: str, wish: Any) -> None:
        if failure := self.failures.get(method):
            raise failure
        self.who(wish.actor.session, admin=True)
        self.asked.append(wish)

    def _find(self, node: str) -> str:
        """A peer id."""
        for peer, name in [(one.peer_id, one.name) for one in self.nodes] + [
            (one.peer, one.name) for one in self.links
        ]:
            if node in (peer, name):
                return peer
        raise CallError("not_found", f"There is no node {node!r}.", param="node")

    async def list_nodes(self, _: Caller, __: Nothing) -> cluster.NodeList:
        if failure := self.failures.get(cluster.NODES.name):
            raise failure
        return cluster.NodeList(tuple(self.nodes))

    async def list_links(self, _: Caller, __: Nothing) -> cluster.LinkList:
        if failure := self.failures.get(cluster.LINKS.name):
            raise failure
        links = tuple(replace(one, labels=self.labels.get(one.peer, ())) for one in self.links)
        return cluster.LinkList(links, removed=self.removed, labels=self.labels.get(self.nodes[0].peer_id, ()))

    async def drain(self, _: Caller, wish: cluster.Drain) -> cluster.Drained:
        self._admit(cluster.DRAIN.name, wish)
        peer = self._find(wish.node)
        self.nodes[:] = [replace(one, draining=not wish.undo) if one.peer_id == peer else one for one in self.nodes]
        return cluster.Drained(wish.node, peer, not wish.undo)

    async def invite(self, _: Caller, wish: membership.InviteNode) -> membership.NodeInvite:
        self._admit(membership.INVITE_NODE.name, wish)
        number, expires_at = f"i{len(self.invites) + 1}", int(self.now()) + wish.expires_seconds
        self.invites.insert(
            0, membership.InviteInfo(number, self.nodes[0].peer_id, wish.roles, wish.uses, (), expires_at, False)
        )
        return membership.NodeInvite(number, f"covey1secretof{number}", expires_at)

    async def list_invites(self, _: Caller, wish: membership.ListInvites) -> membership.Invites:
        if failure := self.failures.get(membership.LIST_INVITES.name):
            raise failure
        self.who(wish.actor.session, admin=True)
        return membership.Invites(tuple(self.invites))

    async def revoke(self, _: Caller, wish: membership.RevokeInvite) -> Nothing:
        self._admit(membership.REVOKE_INVITE.name, wish)
        if wish.id not in [one.id for one in self.invites]:
            raise CallError("not_found", "This node made no such invite.", param="id")
        self.invites[:] = [replace(one, revoked=one.revoked or one.id == wish.id) for one in self.invites]
        return Nothing()

    async def rename(self, _: Caller, wish: membership.RenameNode) -> membership.Member:
        self._admit(membership.RENAME_NODE.name, wish)
        peer = self._find(wish.node)
        if not re.fullmatch(membership.NODE_NAME_PATTERN, wish.name):
            raise CallError("invalid", "A node's name is 1 to 63 letters and digits.", param="name")
        if any(one.name == wish.name and one.peer_id != peer for one in self.nodes):
            raise CallError("conflict", f"Another node is called {wish.name}.", param="name")
        self.nodes[:] = [replace(one, name=wish.name) if one.peer_id == peer else one for one in self.nodes]
        self.links[:] = [replace(one, name=wish.name) if one.peer == peer else one for one in self.links]
        return membership.Member(peer, wish.name, ())

    async def label(self, _: Caller, wish: membership.LabelNode) -> membership.Member:
        self._admit(membership.LABEL_NODE.name, wish)
        peer = self._find(wish.node)
        for one in (*wish.add, *wish.remove):
            if not re.fullmatch(membership.NODE_LABEL_PATTERN, one):
                raise CallError("invalid", f"{one!r} is no label.", param="add")
        self.labels[peer] = tuple(sorted({*self.labels.get(peer, ()), *wish.add} - set(wish.remove)))
        return membership.Member(peer, wish.node, (), labels=self.labels[peer])

    async def remove(self, _: Caller, wish: membership.RemoveNode) -> membership.Member:
        self._admit(membership.REMOVE_NODE.name, wish)
        peer = self._find(wish.node)
        if peer == self.nodes[0].peer_id:
            raise CallError("conflict", f"{wish.node} is the last auth node.", param="node")
        self.nodes[:] = [one for one in self.nodes if one.peer_id != peer]
        self.links[:] = [one for one in self.links if one.peer != peer]
        return membership.Member(peer, wish.node, (), True)

    def serve_cluster(self, bus: Bus) -> None:
        """What every node answers."""
        bus.serve(cluster.NODES, self.list_nodes)
        bus.serve(cluster.LINKS, self.list_links)
        bus.serve(cluster.DRAIN, self.drain)

    def serve_auth(self, bus: Bus) -> None:
        """What an auth node answers."""
        bus.serve(membership.INVITE_NODE, self.invite)
        bus.serve(membership.LIST_INVITES, self.list_invites)
        bus.serve(membership.REVOKE_INVITE, self.revoke)
        bus.serve(membership.RENAME_NODE, self.rename)
        bus.serve(membership.LABEL_NODE, self.label)
        bus.serve(membership.REMOVE_NODE, self.remove)
