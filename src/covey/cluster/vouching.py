"""Which gateways hold a lease, as an inference node knows from the auth nodes: it works for no other."""

import logging
import math

import trio

from covey.bus.bus import BusHandle
from covey.cluster.asking import sleep_until
from covey.cluster.boot_clock import BootClock
from covey.cluster.lease import Deadlines, no_lease
from covey.contracts.leases import LEASES
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

ASK_SECONDS_MIN = 0.25
"""Between two rounds of questions, however many strange gateways there are."""
ASK_SECONDS_MAX = 1.0
"""For an auth node to answer."""
REFRESHES_PER_LEASE = 3
REFRESH_SECONDS_MIN = 1.0


class Vouching:
    """What auth nodes said, for as long as they said it for.

    Args:
        bus: stamped `inference`.
        now: a clock that runs through a suspend.
    """

    def __init__(self, bus: BusHandle, now: BootClock) -> None:
        self._bus = bus
        self._now = now
        self._held = Deadlines[PeerId]()
        self._asking = trio.Lock()
        self._rounds = 0
        self._next_round_at = -math.inf

    async def check(self, gateway: PeerId) -> None:
        """Raise `no_lease` unless a gateway holds a lease. Asks the auth nodes about one that is not known to."""
        if self._held.holds(gateway, self._now()):
            return
        seen = self._rounds
        async with self._asking:
            if self._rounds == seen:  # or else a round has begun, and ended, since
                await self._ask(gateway)
        if not self._held.holds(gateway, self._now()):
            raise no_lease(
                "This gateway holds no lease, as far as the auth nodes say that the inference node can reach."
                " `covey status` on both says more."
            )

    async def run(self) -> None:
        """Ask again in good time about those that hold one; until cancelled."""
        while True:
            left = self._held.seconds_left(self._now()).values()
            wait_seconds = max(min(left, default=0.0) / REFRESHES_PER_LEASE, REFRESH_SECONDS_MIN)
            await sleep_until(self._now, self._now() + wait_seconds)
            if self._held.seconds_left(self._now()):
                async with self._asking:
                    await self._ask(None)

    async def _ask(self, wanted: PeerId | None) -> None:
        """One round: every live auth node, or until it is known that `wanted` holds a lease."""
        await trio.sleep_until(self._next_round_at)
        self._rounds += 1
        self._next_round_at = trio.current_time() + ASK_SECONDS_MIN
        async with trio.open_nursery() as nursery:

            async def ask(auth: PeerId) -> None:
                asked_at = self._now()
                try:
                    answer = await self._bus.call(LEASES, Nothing(), to=auth, timeout_seconds=ASK_SECONDS_MAX)
                except CallError as error:
                    log.debug("%s did not say who holds a lease: %s", auth, error)
                    return
                for gateway, left in answer.seconds_left.items():
                    self._held.extend(PeerId(gateway), asked_at + left)
                if wanted is not None and self._held.holds(wanted, self._now()):
                    nursery.cancel_scope.cancel()

            for auth in self._bus.serving(LEASES):
                nursery.start_soon(ask, auth)
