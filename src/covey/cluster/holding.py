"""Holding a lease: how a gateway that is no auth node gets and renews it."""

import math
from collections.abc import Callable

import trio

from covey.bus.bus import BusHandle
from covey.cluster.asking import ask_each, sleep_until
from covey.cluster.boot_clock import BootClock
from covey.cluster.lease import NO_LEASE, no_lease
from covey.contracts.leases import GRANT_LEASE
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.store.pulse import Pulse
from covey.store.sync import Sync
from covey.transport.base import PeerId

RENEWALS_PER_LEASE = 3
"""How often every live auth node is asked within a lease. Each knows of its own grants alone, and any may be the one
that an inference node can ask: so all of them are asked, not one."""


class Holding:
    """A gateway's lease.

    Args:
        bus: stamped `gateway`.
        sync: what has been applied here.
        now: a clock that runs through a suspend.
        needed: whether this node vouches for keys under a lease of others at all.
    """

    def __init__(self, bus: BusHandle, sync: Sync, now: BootClock, needed: Callable[[], bool]) -> None:
        self._bus = bus
        self._sync = sync
        self._now = now
        self._needed = needed
        self._until = -math.inf
        self._refusal = ""
        """Why the auth node that was asked last granted none; "" where it did, or did not answer."""

    def seconds_left(self) -> float:
        """Of the lease that ends last; 0.0: none."""
        return max(self._until - self._now(), 0.0)

    def check(self) -> None:
        """Raise `no_lease` unless this node may vouch for keys now."""
        if self._now() >= self._until:
            raise no_lease(self._why())

    def _why(self) -> str:
        if self._sync.blocking():
            return "Keys cannot be checked: this gateway was sent what its version does not know. Upgrade Covey on it."
        if self._refusal:
            return self._refusal
        if not self._bus.serving(GRANT_LEASE):
            return (
                "Keys cannot be checked now: this gateway cannot reach an auth node, so it cannot know what was"
                " revoked. Bring one back; `covey status` names them."
            )
        return "Keys cannot be checked yet: this gateway is fetching what an auth node knows. Try again in a moment."

    async def run(self, links: Pulse) -> None:
        """Get it, and renew it in good time; until cancelled."""
        await ask_each(self._bus, GRANT_LEASE, links, self._keep_asking, wanted=self._needed)

    async def _keep_asking(self, peer: PeerId) -> None:
        while self._needed():
            asked_at = self._now()
            try:
                grant = await self._bus.call(GRANT_LEASE, Nothing(), to=peer)
            except CallError as error:
                self._refusal = error.message if error.reason == NO_LEASE else ""
                raise
            self._refusal = ""
            with trio.move_on_after(grant.seconds / RENEWALS_PER_LEASE):
                await self._sync.applied(grant.heads)
                self._until = max(asked_at + grant.seconds, self._until)
            await sleep_until(self._now, asked_at + grant.seconds / RENEWALS_PER_LEASE)
