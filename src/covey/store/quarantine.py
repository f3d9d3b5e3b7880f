"""Entries that came too early: without the one before them, what they build on, or their author's admission. Pure.

They wait in memory, for whoever sent them sends them again after a restart. Bounded: where there is no room, what came
last is forgotten, and asked for again when its tail is opened anew.
"""

from collections.abc import Iterable

from covey.contracts.feeds import Kind
from covey.store.entries import KINDS, Sealed

ENTRIES_MAX = 10_000
BYTES_MAX = 16 * 1024 * 1024


class Quarantine:
    """By kind of feed, each entry once."""

    def __init__(self) -> None:
        self._waiting: dict[Kind, dict[tuple[str, int], Sealed]] = {kind: {} for kind in KINDS}
        self._bytes = 0
        self.forgotten = 0
        """How many found no room."""

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def take(self, kind: Kind) -> list[Sealed]:
        """All of a kind, in their feeds' order, for another try; they wait here no more."""
        taken = sorted(self._waiting[kind].values(), key=lambda sealed: (sealed.entry.feed, sealed.entry.seq))
        self._bytes -= sum(len(sealed.stored) for sealed in taken)
        self._waiting[kind].clear()
        return taken

    def put(self, kind: Kind, early: Iterable[Sealed]) -> None:
        """Have them wait."""
        waiting = self._waiting[kind]
        for sealed in early:
            place = (sealed.entry.feed, sealed.entry.seq)
            if place in waiting:
                continue
            if len(self) >= ENTRIES_MAX or self._bytes + len(sealed.stored) > BYTES_MAX:
                self.forgotten += 1
                continue
            waiting[place] = sealed
            self._bytes += len(sealed.stored)
