"""Who has what was written here: members acknowledge what is durable with them, and a write waits for the first."""

from collections.abc import Callable, Collection, Mapping

import trio

from covey.bus.bus import BusHandle
from covey.bus.caller import Caller
from covey.contracts.method import Nothing
from covey.contracts.replication import ACKNOWLEDGE, TAIL_SECRET, Heads
from covey.errors import CallError
from covey.store.pulse import Pulse
from covey.transport.base import PeerId

WAIT_SECONDS_MAX = 2.0
"""How long a write waits for another auth node to have it, where one is linked."""
FEEDS_MAX = 10_000
"""Of which one member acknowledges entries at once."""


class Acks:
    """Serves ACKNOWLEDGE. `bus`: the auth role's, which knows who is live."""

    def __init__(self, bus: BusHandle) -> None:
        self._bus = bus
        self._held: dict[PeerId, dict[str, int]] = {}
        self._news = Pulse()

    def serve(self) -> None:
        """From now on."""
        self._bus.serve(ACKNOWLEDGE, self._acknowledge)

    async def _acknowledge(self, caller: Caller, request: Heads) -> Nothing:
        """Serve ACKNOWLEDGE. What a member says counts for itself alone."""
        if len(request.heads) > FEEDS_MAX:
            raise CallError("too_large", f"Acknowledge at most {FEEDS_MAX} feeds at once.")
        self._held[caller.peer] = request.heads
        self._news.beat()
        return Nothing()

    def heads_of(self, peer: PeerId) -> Mapping[str, int]:
        """What a member said last that it holds."""
        return self._held.get(peer, {})

    def holding(self, heads: Mapping[str, int]) -> tuple[PeerId, ...]:
        """The members that have said that they hold all of this, by peer id."""
        return tuple(sorted(peer for peer, held in self._held.items() if _covers(held, heads)))

    async def settled(self, heads: Mapping[str, int]) -> tuple[PeerId, ...]:
        """Wait for one other live auth node to hold this, for `WAIT_SECONDS_MAX` at most; returns all that do.

        The entries are durable here, and go to the others in any case: being cancelled here takes nothing back.
        """
        if not heads:
            return ()
        with trio.move_on_after(WAIT_SECONDS_MAX):
            while True:
                seen, live = self._news.count, self._others()
                if not live or any(_covers(self._held.get(peer, {}), heads) for peer in live):
                    break
                await self._news.after(seen)
        return self.holding(heads)

    async def held_by_all(self, heads: Mapping[str, int], peers: Callable[[], Collection[PeerId]]) -> None:
        """Wait for all of these members to hold this. `peers` is asked again whenever somebody acknowledges."""
        while True:
            seen = self._news.count
            if all(_covers(self._held.get(peer, {}), heads) for peer in peers()):
                return
            await self._news.after(seen)

    def _others(self) -> list[PeerId]:
        return [peer for peer in self._bus.serving(TAIL_SECRET) if peer != self._bus.me]


def _covers(held: Mapping[str, int], heads: Mapping[str, int]) -> bool:
    return all(held.get(feed, 0) >= seq for feed, seq in heads.items())
