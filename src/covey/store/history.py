"""Everything that was ever said, newest first and from any place on: what the audit reads."""

import heapq
from collections.abc import Iterator
from operator import attrgetter

from covey.store.entries import Sealed
from covey.store.feed_log import read_entries, read_head, read_heads
from covey.store.kv import Reader


def newest_first(reader: Reader, upto: tuple[int, str] | None = None) -> Iterator[Sealed]:
    """Every entry of every kind, the latest first, by (clock, feed). Lazy: take as many as you need.

    Args:
        reader: what is stored; a snapshot, where the reading takes turns with others.
        upto: the clock and feed of the entry to begin at, itself included; `None`: the latest.
    """
    feeds: list[Iterator[Sealed]] = []
    for feed, head in read_heads(reader).items():
        last = head.seq
        if upto is not None:
            last = last_said_by(reader, feed, upto[0] if feed <= upto[1] else upto[0] - 1)
        feeds.append(read_entries(reader, feed, upto=last, reverse=True))
    return heapq.merge(*feeds, key=attrgetter("entry.clock", "entry.feed"), reverse=True)


def last_said_by(reader: Reader, feed: str, clock: int) -> int:
    """The sequence number of the last entry of a feed whose clock is no higher; 0 for none.

    Reads a few of them: within a feed clocks rise.
    """
    low, high = 0, read_head(reader, feed).seq
    while low < high:
        middle = (low + high + 1) // 2
        sealed = next(read_entries(reader, feed, after=middle - 1), None)
        if sealed is not None and sealed.entry.clock <= clock:
            low = middle
        else:
            high = middle - 1
    return low
