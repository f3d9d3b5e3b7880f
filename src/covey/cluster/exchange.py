"""Peer exchange: members tell each other where members are. Hints, which prove nothing."""

import logging
from collections.abc import Callable

import trio

from covey.bus.bus import Bus
from covey.bus.caller import Caller
from covey.cluster.address_book import AddressBook
from covey.cluster.membership import Membership
from covey.contracts.cluster import EXCHANGE_ADDRESSES, KnownAddresses
from covey.errors import CallError
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

EXCHANGE_SECONDS = 30.0
LOOK_SECONDS = 0.5
NEWS_SECONDS = 1.0
"""How long after one exchange with a peer the next one may be, where there are news."""


class Exchange:
    """Serves EXCHANGE_ADDRESSES, and calls it on every live peer: when its link comes up, when there are news, and now
    and then.

    Args:
        own: where this node can be reached, as of now.
    """

    def __init__(self, bus: Bus, membership: Membership, book: AddressBook, own: Callable[[], tuple[str, ...]]) -> None:
        self._bus = bus
        self._membership = membership
        self._book = book
        self._own = own
        self._told: dict[PeerId, tuple[float, object]] = {}
        self._telling: set[PeerId] = set()
        bus.serve(EXCHANGE_ADDRESSES, self._answer)

    def known(self) -> dict[str, tuple[str, ...]]:
        """Every member's addresses, this node's included."""
        known = self._book.all()
        if own := self._own():
            known[str(self._bus.me)] = own
        return known

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                live = self._bus.directory.serving(EXCHANGE_ADDRESSES.name)
                self._told = {peer: told for peer, told in self._told.items() if peer in live}
                now, version = trio.current_time(), (self._book.hints.count, self._own())
                for peer in live:
                    at, last = self._told.get(peer, (float("-inf"), None))
                    due = at + (EXCHANGE_SECONDS if last == version else NEWS_SECONDS)
                    if now >= due and peer not in self._telling:
                        self._told[peer] = now, version
                        self._telling.add(peer)
                        nursery.start_soon(self._tell, peer)
                await trio.sleep(LOOK_SECONDS)

    async def _tell(self, peer: PeerId) -> None:
        try:
            known = KnownAddresses(self.known())
            await self._learn(peer, await self._bus.stamped("member").call(EXCHANGE_ADDRESSES, known, to=peer))
        except CallError as error:
            log.debug("No addresses from %s: %s", peer, error)
        finally:
            self._telling.discard(peer)

    async def _answer(self, caller: Caller, request: KnownAddresses) -> KnownAddresses:
        """Serve EXCHANGE_ADDRESSES."""
        await self._learn(caller.peer, request)
        return KnownAddresses(self.known())

    async def _learn(self, teller: PeerId, known: KnownAddresses) -> None:
        found = {PeerId(peer): one for peer, one in known.addresses.items() if self._membership.is_member(PeerId(peer))}
        found.pop(self._bus.me, None)
        if teller in found:  # who knows better where a node is than itself
            await self._book.learn({teller: found.pop(teller)}, first=True)
        await self._book.learn(found)
