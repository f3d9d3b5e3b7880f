"""Granting leases: what an auth node does to know what a majority holds, and whom it lets vouch for keys meanwhile."""

import trio

from covey.bus.bus import BusHandle
from covey.bus.caller import Caller
from covey.cluster.asking import ask_each, sleep_until
from covey.cluster.boot_clock import BootClock
from covey.cluster.lease import Deadlines, Freshness, LeasePolicy, no_lease, quorum
from covey.cluster.membership import Membership
from covey.contracts.feeds import Kind
from covey.contracts.leases import GRANT_LEASE, LEASES, HeldLeases, LeaseGrant
from covey.contracts.method import Nothing
from covey.contracts.replication import HEADS
from covey.store.pulse import Pulse
from covey.store.sync import Sync
from covey.transport.base import PeerId

ASKS_PER_LEASE = 8
"""How often each other auth node is asked for its heads within `lease_seconds`."""
GATEWAY_KINDS: tuple[Kind, ...] = ("members", "keys")
"""What a gateway reads, and so what its grant may speak of."""


class Granting:
    """An auth node's own freshness, and the leases that it grants.

    Args:
        bus: stamped `auth`.
        membership: who the auth nodes are.
        sync: what has been applied here.
        now: a clock that runs through a suspend.
        lease_seconds: the bound.
        policy: how many auth nodes make a majority.
    """

    def __init__(
        self,
        bus: BusHandle,
        membership: Membership,
        sync: Sync,
        now: BootClock,
        *,
        lease_seconds: float,
        policy: LeasePolicy,
    ) -> None:
        self._bus = bus
        self._membership = membership
        self._sync = sync
        self._now = now
        self._half = lease_seconds / 2
        self._policy: LeasePolicy = policy
        self._freshness = Freshness[PeerId]()
        self._granted = Deadlines[PeerId]()

    def serve(self) -> None:
        """From now on."""
        self._bus.serve(GRANT_LEASE, self._grant)
        self._bus.serve(LEASES, self._leases)

    def seconds_left(self) -> float:
        """How long this node may still vouch for keys, or grant leases; infinity where it needs nobody for it."""
        if self._sync.blocking():
            return 0.0
        return max(self._freshness.since(self._others(), self._policy) + self._half - self._now(), 0.0)

    def check(self) -> None:
        """Raise `no_lease` unless this node may vouch for keys now."""
        if self.seconds_left() <= 0:
            raise no_lease(self._why())

    def _why(self) -> str:
        if self._sync.blocking():
            return (
                "Keys cannot be checked: this auth node was sent what its version does not know. Upgrade Covey on it."
            )
        others = self._others()
        heard = self._freshness.heard(others, self._now() - self._half) + 1
        needed = quorum(len(others) + 1, self._policy)
        return (
            f"Keys cannot be checked now: this auth node is in touch with {heard} of {len(others) + 1} auth nodes,"
            f" itself included, and needs {needed}: it cannot know what was revoked. Bring the others back; `covey"
            " status` names them."
        )

    def _others(self) -> frozenset[PeerId]:
        return self._membership.authors - {self._bus.me}

    async def run(self, links: Pulse) -> None:
        """Ask the other auth nodes; until cancelled."""
        await ask_each(self._bus, HEADS, links, self._keep_asking, wanted=lambda: True)

    async def _keep_asking(self, peer: PeerId) -> None:
        every_seconds = 2 * self._half / ASKS_PER_LEASE
        while True:
            asked_at = self._now()
            answer = await self._bus.call(HEADS, Nothing(), to=peer)
            with trio.move_on_after(every_seconds):
                await self._sync.applied(answer.heads)
                self._freshness.applied(peer, asked_at)
            await sleep_until(self._now, asked_at + every_seconds)

    async def _grant(self, caller: Caller, request: Nothing) -> LeaseGrant:
        """Serve GRANT_LEASE."""
        self.check()
        self._granted.extend(caller.peer, self._now() + self._half)
        prefixes = tuple(f"{kind}/" for kind in GATEWAY_KINDS)
        heads = {feed: seq for feed, seq in self._sync.heads().items() if feed.startswith(prefixes)}
        return LeaseGrant(self._half, heads)

    async def _leases(self, caller: Caller, request: Nothing) -> HeldLeases:
        """Serve LEASES. A gateway of this very node holds what the node does."""
        held = self._granted.seconds_left(self._now())
        held = {gateway: left for gateway, left in held.items() if self._membership.is_member(gateway)}
        if (own := self.seconds_left()) > 0:
            held[self._bus.me] = min(own, self._half)
        return HeldLeases({str(gateway): left for gateway, left in held.items()})
