"""Telling others what the feeds say, as they grow: the serving end of the tail contracts."""

import trio

from covey.bus.background import open_background
from covey.bus.bus import BusHandle
from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.contracts.feeds import Kind
from covey.contracts.method import Nothing
from covey.contracts.replication import HASH_BYTES, HEADS, TAILS, FeedEntries, Heads, Tail
from covey.errors import CallError
from covey.store.feed_log import read_entries, read_heads, read_proofs, read_verdict
from covey.store.ingest import next_batch
from covey.store.kv import Reader
from covey.store.membership import removed
from covey.store.rows import MemberRow
from covey.store.view import View
from covey.store.writer import Store

HEARTBEAT_SECONDS = 10.0
LOOK_SECONDS_MIN = 0.05
"""How long after one look at the store the next one is: a busy writer of other things costs its readers nothing."""


def position(reader: Reader, kind: Kind) -> Tail:
    """Where a store stands, for whoever is asked to go on from there. A frozen feed ends before its two entries."""
    heads, frozen = read_heads(reader, f"{kind}/"), read_verdict(reader).frozen
    vector: dict[str, int] = {}
    hashes: dict[str, bytes] = {}
    for feed, head in heads.items():
        seq = vector[feed] = min(head.seq, frozen.get(feed, head.seq))
        if seq == head.seq:
            hashes[feed] = head.hash[:HASH_BYTES]
        elif last := next(read_entries(reader, feed, after=seq - 1), None) if seq else None:
            hashes[feed] = last.hash[:HASH_BYTES]
    return Tail(vector, hashes)


class FeedTails:
    """Serves TAIL_MEMBERS, TAIL_KEYS, TAIL_SECRET and HEADS.

    Args:
        store: holds the feeds.
        stop: set when the node stops: its readers then turn to another auth node, and do not hold it up.
    """

    def __init__(self, store: Store, stop: trio.Event) -> None:
        self._store = store
        self._stop = stop

    def serve(self, bus: BusHandle) -> None:
        """Of every kind."""
        for kind, method in TAILS.items():
            bus.serve_stream(method, self.of(kind))
        bus.serve(HEADS, self._heads)

    async def _heads(self, caller: Caller, request: Nothing) -> Heads:
        """Serve HEADS."""
        return Heads({feed: head.seq for feed, head in read_heads(self._store.reader).items()})

    def of(self, kind: Kind) -> "FeedTail":
        """Of one kind."""
        return FeedTail(self._store, self._stop, kind)


class FeedTail:
    """The handler of one kind's tail. Arguments as `FeedTails`."""

    def __init__(self, store: Store, stop: trio.Event, kind: Kind) -> None:
        self._store = store
        self._stop = stop
        self._kind: Kind = kind

    async def __call__(self, caller: Caller, request: Tail, emit: Emit[FeedEntries]) -> None:
        """Serve it."""
        with trio.CancelScope() as scope:

            async def end() -> None:
                await self._stop.wait()
                scope.cancel()

            async with open_background() as nursery:
                nursery.start_soon(end)
                await self._tail(caller, request, emit)
        raise CallError("draining", "This node is stopping.")

    async def _tail(self, caller: Caller, request: Tail, emit: Emit[FeedEntries]) -> None:
        """What the reader lacks, a heartbeat once it has all, then live. Runs until cancelled.

        A reader that is ahead of this node is sent what others write next; one whose feed is another than ours gets
        all of ours, and so the proof of it; one that was removed gets to know that, and no more.
        """
        reader, commits = self._store.reader, self._store.commits
        have, heartbeat_at = self._begin(request), trio.current_time()
        proven: dict[str, int] = {}
        while True:
            seen, looked_at = commits.count, trio.current_time()
            proofs = read_proofs(reader, f"{self._kind}/")
            if news := {feed: proof for feed, proof in proofs.items() if proven.get(feed) != proof.seq}:
                proven |= {feed: proof.seq for feed, proof in news.items()}
                await emit(self._beat((), tuple((proof.first, proof.second) for proof in news.values())))
            while batch := next_batch(reader, self._kind, have):
                await emit(self._beat(batch.entries))
                have, heartbeat_at = batch.vector, trio.current_time() + HEARTBEAT_SECONDS
            row = View(reader).get(MemberRow, caller.peer)
            if row is not None and row.removed:
                raise removed(row)
            if trio.current_time() >= heartbeat_at:
                await emit(self._beat(()))
                heartbeat_at = trio.current_time() + HEARTBEAT_SECONDS
            with trio.move_on_at(heartbeat_at):
                await commits.after(seen)
                await trio.sleep_until(looked_at + LOOK_SECONDS_MIN)

    def _begin(self, request: Tail) -> dict[str, int]:
        """Where to go on: after what the reader has, or from the first entry of a feed that it has otherwise."""
        reader = self._store.reader
        have = dict(request.vector)
        for feed, theirs in request.hashes.items():
            seq = have.get(feed, 0)
            ours = next(read_entries(reader, feed, after=seq - 1), None) if seq > 0 else None
            if ours is not None and ours.entry.seq == seq and ours.hash[:HASH_BYTES] != theirs:
                have[feed] = 0
        return have

    def _beat(self, entries: tuple[bytes, ...], proofs: tuple[tuple[bytes, bytes], ...] = ()) -> FeedEntries:
        here = position(self._store.reader, self._kind)
        return FeedEntries(entries, here.vector, here.hashes, proofs)
