"""Entries that count here although their clock is far ahead of this node's. Pure.

Others let all but the denials of such entries wait until the time has come. Where they count already, this node's own
clock was ahead when it wrote them, or took them from somebody whose clock was ahead as well. Once it is right again,
they have to wait here, too: `covey.store.feeds.Author.set_clock_right`.
"""

from collections.abc import Iterator, Sequence
from itertools import islice, takewhile

import msgspec

from covey.contracts.feeds import Op
from covey.store.entries import FeedId, Sealed
from covey.store.feed_log import GENESIS_KEY, counting, is_future, read_entries, read_heads, read_verdict
from covey.store.genesis import read_genesis
from covey.store.hybrid_clock import AHEAD_SECONDS_MAX, is_ahead
from covey.store.kv import Reader
from covey.store.merge import is_denial

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def counting_ahead(reader: Reader, now: float, *, most: int) -> list[Sealed]:
    """Those of whatever author and incarnation, by clock: so that the last writer stays the last.

    What a verdict voids is not among them: it waits for nothing.

    Args:
        reader: what is stored.
        now: Unix seconds.
        most: how many of one feed are looked at, from its end: whoever finds them all ahead has seen enough.
    """
    found: list[Sealed] = []
    verdict = read_verdict(reader)
    for feed, head in read_heads(reader).items():
        if is_ahead(head.clock, now):
            limit = verdict.limit(FeedId.parse(feed))
            newest = islice(read_entries(reader, feed, reverse=True), most)
            ahead = takewhile(lambda one: is_ahead(one.entry.clock, now), newest)
            found += (one for one in ahead if one.entry.seq <= limit and not is_future(reader, one))
    return sorted(found, key=clock_order)


def clock_order(sealed: Sealed) -> tuple[int, str]:
    """By what entries of several feeds are sorted."""
    return sealed.entry.clock, sealed.entry.feed


def is_before_founding(reader: Reader, now: float) -> bool:
    """Whether this clock says that the network is not founded yet: it is rather behind than others are ahead then."""
    return now + AHEAD_SECONDS_MAX < read_genesis(reader.get(GENESIS_KEY) or b"").created_at


def to_say(reader: Reader, entries: Sequence[Sealed], me: str, now: float) -> list[Sequence[Op]]:
    """What somebody has to say again of each of these, once they wait: of `me` all, of others in their stead.

    Their denials never wait. And what such an author has said again since, with a right clock, is not said after it
    once more: it may have said something else by now.
    """
    said: dict[str, set[bytes]] = {}
    for prefix in {_feeds_of(sealed.feed) for sealed in entries if sealed.feed.author != me}:
        said[prefix] = set(_said_since(reader, prefix, now))
    return [
        sealed.entry.ops
        if sealed.feed.author == me
        else [op for op in sealed.entry.ops if not is_denial(op) and _encode(op) not in said[_feeds_of(sealed.feed)]]
        for sealed in entries
    ]


def _feeds_of(feed: FeedId) -> str:
    return f"{feed.kind}/{feed.author}/"


def _said_since(reader: Reader, prefix: str, now: float) -> Iterator[bytes]:
    verdict = read_verdict(reader)
    for feed in read_heads(reader, prefix):
        for sealed in counting(reader, feed, verdict):
            if not is_ahead(sealed.entry.clock, now):
                yield from map(_encode, sealed.entry.ops)
