"""The node's lease, whichever way it has one: `covey.roles.base.LeaseDoor`, so that no role asks where anything is."""

from dataclasses import dataclass

import trio

from covey.bus.bus import Bus
from covey.cluster.boot_clock import BootClock
from covey.cluster.granting import Granting
from covey.cluster.holding import Holding
from covey.cluster.lease import LeasePolicy
from covey.cluster.membership import Membership
from covey.cluster.vouching import Vouching
from covey.errors import CallError
from covey.store.pulse import Pulse
from covey.store.sync import Sync
from covey.transport.base import PeerId


@dataclass(frozen=True, slots=True)
class LeaseState:
    """`seconds_left`: infinity where it needs nobody. `why`: there is none, and what to do; "" where there is one."""

    needed: bool
    seconds_left: float
    why: str


class Leasing:
    """An auth node's own word, or a gateway's lease; and an inference node's knowledge of those of others."""

    def __init__(self, bus: Bus, membership: Membership, sync: Sync, now: BootClock) -> None:
        self._bus = bus
        self._membership = membership
        self._sync = sync
        self._now = now
        self._granting: Granting | None = None
        self._grants = trio.Event()
        self._holding = Holding(bus.stamped("gateway"), sync, now, self._is_held)
        self._vouching = Vouching(bus.stamped("inference"), now)

    def grant(self, *, lease_seconds: float, policy: LeasePolicy) -> None:
        """See `LeaseDoor.grant`."""
        bus = self._bus.stamped("auth")
        self._granting = Granting(
            bus, self._membership, self._sync, self._now, lease_seconds=lease_seconds, policy=policy
        )
        self._granting.serve()
        self._grants.set()

    def check(self) -> None:
        """See `LeaseDoor.check`."""
        (self._granting or self._holding).check()

    async def check_gateway(self, peer: PeerId) -> None:
        """See `LeaseDoor.check_gateway`."""
        if peer != self._bus.me:
            await self._vouching.check(peer)

    @property
    def state(self) -> LeaseState:
        """For people."""
        if self._granting is None and not self._is_held():
            return LeaseState(needed=False, seconds_left=0.0, why="")
        try:
            self.check()
            why = ""
        except CallError as error:
            why = error.message
        return LeaseState(needed=True, seconds_left=(self._granting or self._holding).seconds_left(), why=why)

    def _is_held(self) -> bool:
        """Whether this node needs a lease of others."""
        return self._granting is None and "gateway" in self._membership.granted(self._bus.me)

    async def run(self, links: Pulse) -> None:
        """Ask whom there is to ask; until cancelled. `links` beats when a link has come up or gone down."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_granting, links)
            nursery.start_soon(self._holding.run, links)
            nursery.start_soon(self._vouching.run)

    async def _run_granting(self, links: Pulse) -> None:
        await self._grants.wait()
        if self._granting is not None:
            await self._granting.run(links)
