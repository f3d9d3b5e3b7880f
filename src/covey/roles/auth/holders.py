"""Which other nodes have a change by now, by their names: what whoever made the change is told."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from covey.bus.bus import BusHandle
from covey.contracts.cluster import NOTICE
from covey.store.acks import Acks
from covey.store.feeds import Feeds, Receipt
from covey.store.membership import AUTHOR_ROLE, is_member
from covey.store.rows import MemberRow
from covey.transport.base import PeerId

EVERYWHERE_SECONDS_MAX = 1.0
"""How long a revocation waits for every live node that checks keys, beyond what each write waits."""
CHECK_KEYS = frozenset({AUTHOR_ROLE, "gateway"})
"""The roles that let keys in."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Names, sorted. `not_held_by`: of nodes that check keys and have not said that they have it."""

    held_by: tuple[str, ...]
    not_held_by: tuple[str, ...]


class Holders:
    """Puts names to who has what.

    Args:
        feeds: this node's.
        acks: what others acknowledge.
        bus: knows who is live.
    """

    def __init__(self, feeds: Feeds, acks: Acks, bus: BusHandle) -> None:
        self._feeds = feeds
        self._acks = acks
        self._bus = bus

    def names(self, receipt: Receipt[Any]) -> tuple[str, ...]:
        """Of the members that have what was just written, beside this node."""
        return self._names_of(receipt.held_by)

    async def everywhere(self, heads: Mapping[str, int]) -> Spread:
        """Wait for every live node that checks keys to have a denial, for `EVERYWHERE_SECONDS_MAX` at most.

        Args:
            heads: where it was written; empty: before, somewhere, so that whoever has all that is here has it.
        """
        said = {feed: seq for feed, seq in heads.items() if feed.startswith("keys/")}
        if not said:
            said = {feed: seq for feed, seq in self._feeds.heads().items() if feed.startswith("keys/")}
        with trio.move_on_after(EVERYWHERE_SECONDS_MAX):
            await self._acks.held_by_all(said, lambda: self._checkers() & {*self._bus.serving(NOTICE)})
        holding = {*self._acks.holding(said)}
        return Spread(self._names_of(holding), self._names_of(self._checkers() - holding))

    def _checkers(self) -> set[PeerId]:
        """The other members that check keys, live or not."""
        rows = self._feeds.view.all(MemberRow)
        checking = (PeerId(row.peer) for row in rows if is_member(row) and CHECK_KEYS & {*row.roles})
        return {*checking} - {self._bus.me}

    def _names_of(self, peers: Iterable[PeerId]) -> tuple[str, ...]:
        view = self._feeds.view
        rows = (view.get(MemberRow, peer) for peer in peers if peer != self._bus.me)
        return tuple(sorted(row.name for row in rows if row is not None and is_member(row)))
