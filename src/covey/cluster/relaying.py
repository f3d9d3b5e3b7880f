"""When a member cannot be reached: take a place at a relay, so that it can reach us instead.

A node behind NAT does not know that it is. It sees that some member stays away although it dials others well: those
others can be reached, so they can pass bytes on. The relayed address spreads like any other, by peer exchange.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import trio

from covey.errors import CallError
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

AWAY_SECONDS = 3.0
"""How long a member may be away before a relay is asked for: a restart takes less."""
RELAYS_MAX = 2
LOOK_SECONDS = 0.5
RETRY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A member as seen from here. `away_seconds` 0 while linked; `reachable`: this node dialled it, directly."""

    peer: PeerId
    away_seconds: float
    reachable: bool


class Relayer(Protocol):
    """What takes places at relays: the host."""

    def reserve(self, relay: PeerId, addresses: tuple[str, ...]) -> AbstractAsyncContextManager[trio.Event]:
        """Be reachable through a relay as long as the block runs; the event is set when the relay is gone.

        Raises:
            CallError: `unreachable`, `no_capacity`, `forbidden`, `unsupported`.
        """
        ...


def relays_wanted(neighbours: Iterable[Neighbour], held: frozenset[PeerId]) -> tuple[PeerId, ...]:
    """At which members to have a place: those held that still serve, then others; none where nobody is away. Pure."""
    seen = list(neighbours)
    if not any(one.away_seconds >= AWAY_SECONDS for one in seen):
        return tuple(one.peer for one in seen if one.peer in held and one.reachable)
    able = sorted((one.peer not in held, one.peer) for one in seen if one.reachable and not one.away_seconds)
    return tuple(peer for _, peer in able[:RELAYS_MAX])


class Relaying:
    """Keeps the places.

    Args:
        host: takes them.
        neighbours: the members, as of now.
        addresses: where a member can be dialled.
    """

    def __init__(
        self,
        host: Relayer,
        neighbours: Callable[[], Iterable[Neighbour]],
        addresses: Callable[[PeerId], tuple[str, ...]],
    ) -> None:
        self._host = host
        self._neighbours = neighbours
        self._addresses = addresses
        self._held: dict[PeerId, trio.CancelScope] = {}

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                wanted = relays_wanted(self._neighbours(), frozenset(self._held))
                for peer in wanted:
                    if peer not in self._held:
                        self._held[peer] = trio.CancelScope()
                        nursery.start_soon(self._hold, peer, self._held[peer])
                for peer, scope in self._held.items():
                    if peer not in wanted:
                        scope.cancel()
                await trio.sleep(LOOK_SECONDS)

    async def _hold(self, relay: PeerId, scope: trio.CancelScope) -> None:
        try:
            with scope:
                try:
                    async with self._host.reserve(relay, self._addresses(relay)) as lost:
                        log.info("A member cannot be reached directly; it may reach this node through %s.", relay)
                        await lost.wait()
                except CallError as error:
                    log.info("No place at the relay %s: %s", relay, error.message)
                    await trio.sleep(RETRY_SECONDS)
        finally:
            del self._held[relay]
