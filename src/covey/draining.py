"""`covey nodes drain`: a node that takes no new work, as while it stops, but goes on until it is told otherwise."""

import logging

from msgspec.structs import replace

from covey.bus.bus import Bus
from covey.bus.caller import Caller
from covey.cluster.membership import Membership
from covey.contracts.auth import AUTHORIZE, Actor, AuthorizeActor
from covey.contracts.cluster import DRAIN, Drain, Drained
from covey.errors import CallError
from covey.roles.base import Lifecycle
from covey.transport.base import PeerId

log = logging.getLogger(__name__)


class Draining:
    """Serves DRAIN.

    Args:
        bus: the whole node's.
        lifecycle: where draining shows.
        membership: who has which name.
        has_auth: whether this node runs the auth role: its word is an administrator's.
    """

    def __init__(self, bus: Bus, lifecycle: Lifecycle, membership: Membership, *, has_auth: bool) -> None:
        self._bus = bus
        self._lifecycle = lifecycle
        self._membership = membership
        self._has_auth = has_auth
        bus.serve(DRAIN, self.drain)

    async def drain(self, caller: Caller, request: Drain) -> Drained:
        """Serve DRAIN."""
        target = self._find(request.node)
        if target == self._bus.me:
            await self._check(caller, request.actor)
            return self._obey(undo=request.undo)
        if caller.peer != self._bus.me:
            raise CallError("not_found", f"This node is not the node {request.node[:64]!r}.", param="node")
        if self._has_auth:
            await self._check(caller, request.actor)
            return await self._bus.stamped("auth").call(DRAIN, Drain(Actor(), target, request.undo), to=target)
        if request.actor == Actor():
            raise CallError(
                "unauthenticated",
                "Only an administrator may drain another node: set COVEY_ADMIN_KEY, or do it there or on an auth node.",
            )
        return await self._bus.stamped("member").call(DRAIN, replace(request, node=target), to=target)

    async def _check(self, caller: Caller, actor: Actor) -> None:
        """Raise unless the caller may: this node's operator, an auth node, or somebody who is an administrator."""
        if caller.stamp == "auth" or (caller.stamp == "operator" and caller.peer == self._bus.me):
            return
        identity = await self._bus.stamped("member").call(AUTHORIZE, AuthorizeActor(actor))
        if identity.role != "admin":
            raise CallError("forbidden", "Only an administrator may drain a node.")

    def _find(self, node: str) -> PeerId:
        if not node or node == self._bus.me:
            return self._bus.me
        for peer, row in self._membership.rows().items():
            if not row.removed and (node == peer or node.casefold() == row.name.casefold()):
                return peer
        if node.casefold() == self._bus.name_of(self._bus.me).casefold():
            return self._bus.me
        message = f"There is no node {node[:64]!r}; `covey nodes list` shows which there are."
        raise CallError("not_found", message, param="node")

    def _obey(self, *, undo: bool) -> Drained:
        if not self._lifecycle.stop.is_set() and self._lifecycle.draining == undo:
            self._lifecycle.draining = not undo
            if undo:
                self._bus.resume()
                log.info("This node takes work again.")
            else:
                self._bus.drain()
                log.info("This node takes no new work; what runs may finish. To undo it: covey nodes drain NAME --undo")
        return Drained(self._bus.name_of(self._bus.me), self._bus.me, self._lifecycle.draining)
