"""Entries that count here although their clock is far ahead of this node's. Pure.

Others let all but the denials of such entries wait until the time has come. Where they count already, this node's own
clock was ahead when it wrote them, or took them from somebody whose clock was ahead as well. Once it is right again,
they have to wait here, too: `covey.store.feeds.Author.set_clock_right`.
"""

from itertools import takewhile

import msgspec

from covey.contracts.feeds import Op
from covey.store.entries import FeedId, Sealed
from covey.store.feed_log import GENESIS_KEY, counting, is_future, read_entries, read_heads, read_verdict
from covey.store.genesis import read_genesis
from covey.store.hybrid_clock import AHEAD_SECONDS_MAX, is_ahead
from covey.store.kv import Reader
from covey.store.merge import is_denial

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def counting_ahead(reader: Reader, now: float) -> list[Sealed]:
    """All of them, of whatever author and incarnation, by clock: so that the last writer stays the last.

    What a verdict voids is not among them: it waits for nothing.
    """
    found: list[Sealed] = []
    verdict = read_verdict(reader)
    for feed, head in read_heads(reader).items():
        if is_ahead(head.clock, now):
            limit = verdict.limit(FeedId.parse(feed))
            newest_first = takewhile(
                lambda one: is_ahead(one.entry.clock, now), read_entries(reader, feed, reverse=True)
            )
            found += (one for one in newest_first if one.entry.seq <= limit and not is_future(reader, one))
    return sorted(found, key=lambda one: (one.entry.clock, one.entry.feed))


def is_before_founding(reader: Reader, now: float) -> bool:
    """Whether this clock says that the network is not founded yet: it is rather behind than others are ahead then."""
    return now + AHEAD_SECONDS_MAX < read_genesis(reader.get(GENESIS_KEY) or b"").created_at


def left_to_say(reader: Reader, sealed: Sealed, now: float) -> list[Op]:
    """What of another author's entry, once it waits, somebody has to say in that author's stead.

    Denials never wait. What the author has said again since, with a right clock, is not said after it once more: it
    may have said something else by now.
    """
    gifts = [op for op in sealed.entry.ops if not is_denial(op)]
    if not gifts:
        return []
    verdict, said = read_verdict(reader), set[bytes]()
    for feed in read_heads(reader, f"{sealed.feed.kind}/{sealed.feed.author}/"):
        for other in counting(reader, feed, verdict):
            if not is_ahead(other.entry.clock, now):
                said.update(_encode(op) for op in other.entry.ops)
    return [op for op in gifts if _encode(op) not in said]
