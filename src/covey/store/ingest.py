"""Other authors' entries: verified, then laid into the store as if they had been written here.

An entry is kept where its author was ever admitted as an auth node, after the entry before it in its feed and after
those that it names as its dependencies; whether it counts is the verdict's to say. Entries that come too early are
given back, to be tried again; those that are wrong are refused, and with them whatever their feed brings after them.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import trio

from covey.contracts.feeds import Kind, Op
from covey.store.entries import EntryError, Flaw, Head, Sealed, check_place, check_signature, unseal
from covey.store.feed_log import (
    GENESIS_KEY,
    encode_head,
    head_key,
    is_author,
    keep_proof,
    read_entries,
    read_head,
    read_heads,
    read_verdict,
    record_entry,
    settle_anew,
    speaks_of_authors,
)
from covey.store.genesis import network_hash, read_genesis
from covey.store.hybrid_clock import is_ahead
from covey.store.kv import Batch, Reader, StoreError
from covey.store.verdict import NO_LIMIT
from covey.store.view import VIEW_KEY, VIEW_VERSION
from covey.store.writer import Overlay, Store

BATCH_ENTRIES_MAX = 256
BATCH_BYTES_MAX = 512 * 1024
INLINE_ENTRIES_MAX = 16
"""More are decoded and verified in threads: 60 µs each."""
THREADS_MAX = 4
VOID_ENTRIES_MAX = 4096
"""Beyond what counts of a feed: kept, because others may build on them, but not without end."""

EARLY: frozenset[Flaw] = frozenset({"gap", "missing_dependency", "not_an_author"})
"""What other entries can put right: those before it, those it builds on, its author's admission."""


@dataclass(frozen=True, slots=True)
class EntryBatch:
    """Entries, exact bytes, and the vector of whoever has taken them in."""

    entries: tuple[bytes, ...]
    vector: dict[str, int]


@dataclass(slots=True)
class Ingested:
    """What became of a batch.

    `applied`: how many entries were new; those that the store had already are no error. `early`: came before what they
    need. `refused`: the first of each feed, with why. `voided`: denials that count no more. `frozen`: feeds that were
    found to have two entries for one place. `ahead`: authors whose clock is too far ahead.
    """

    applied: int = 0
    early: list[Sealed] = field(default_factory=list[Sealed])
    refused: list[EntryError] = field(default_factory=list[EntryError])
    voided: list[Op] = field(default_factory=list[Op])
    frozen: list[str] = field(default_factory=list[str])
    ahead: set[str] = field(default_factory=set[str])


Aftermath = Callable[[Overlay, Ingested], None]
"""Done in the same batch, over the store as it is then: an auth node says again which denials came undone."""


def network_of(reader: Reader) -> str:
    """The id of the network that a store belongs to, in hexadecimal; "" for none yet."""
    genesis = reader.get(GENESIS_KEY)
    return "" if genesis is None else network_hash(genesis).hex()


def vector(reader: Reader, kind: Kind) -> dict[str, int]:
    """The last sequence number of each feed of a kind."""
    return {feed: head.seq for feed, head in read_heads(reader, f"{kind}/").items()}


def batches_after(reader: Reader, kind: Kind, have: Mapping[str, int]) -> Iterator[tuple[bytes, ...]]:
    """The stored entries of a kind beyond a vector, each after its feed's last, in bounded batches."""
    while batch := next_batch(reader, kind, have):
        yield batch.entries
        have = batch.vector


def next_batch(reader: Reader, kind: Kind, have: Mapping[str, int]) -> EntryBatch | None:
    """The first entries of a kind beyond a vector, `None` where there are none. Holds nothing open.

    In an order in which each comes after its dependencies, so that a reader is never left with one that must wait.
    """
    reached = dict(have)
    entries: list[bytes] = []
    size = 0
    for sealed in _in_order(reader, kind, reached):
        if entries and size + len(sealed.stored) > BATCH_BYTES_MAX:
            break
        entries.append(sealed.stored)
        size += len(sealed.stored)
        reached[sealed.entry.feed] = sealed.entry.seq
        if len(entries) >= BATCH_ENTRIES_MAX:
            break
    return EntryBatch(tuple(entries), reached) if entries else None


def _in_order(reader: Reader, kind: Kind, reached: Mapping[str, int]) -> Iterator[Sealed]:
    """Entries beyond `reached`, which the caller moves on as it takes them: dependencies first, then by clock."""
    heads, frozen = read_heads(reader, f"{kind}/"), read_verdict(reader).frozen

    def entries_of(feed: str) -> Iterator[Sealed]:
        entries = read_entries(reader, feed, after=max(reached.get(feed, 0), 0))
        limit = frozen.get(feed)  # beyond it nobody takes any
        return entries if limit is None else takewhile(lambda sealed: sealed.entry.seq <= limit, entries)

    feeds = {feed: entries_of(feed) for feed in heads}
    nexts = {feed: sealed for feed, entries in feeds.items() if (sealed := next(entries, None)) is not None}

    def rank(sealed: Sealed) -> tuple[bool, int, str]:
        # A dependency that is not here cannot be waited for: a disk may have lost it.
        waits = any(
            reached.get(feed, 0) < min(seq, heads[feed].seq) for feed, seq in sealed.entry.deps.items() if feed in heads
        )
        return waits, sealed.entry.clock, sealed.entry.feed

    while nexts:
        chosen = min(nexts.values(), key=rank) if len(nexts) > 1 else next(iter(nexts.values()))
        yield chosen
        following = next(feeds[chosen.entry.feed], None)
        if following is None:
            del nexts[chosen.entry.feed]
        else:
            nexts[chosen.entry.feed] = following


async def install(store: Store, genesis: bytes, network_id: str, entries: Sequence[bytes], *, now: float) -> None:
    """Make an empty store a member's: the network's genesis, and the entries of its members feeds.

    Raises:
        EntryError: something of it does not verify from `network_id` on. Nothing is kept then.
        StoreError: the store belongs to a network already, or the disk refused.
    """
    if network_hash(genesis).hex() != network_id:
        raise EntryError("wrong_network", "The genesis that was sent is not that of the invited network.")
    read_genesis(genesis)
    checked = await _checked(store, entries, "members")

    def plan(reader: Reader) -> tuple[Batch, None]:
        if reader.get(GENESIS_KEY) is not None:
            raise StoreError("This data folder belongs to a network already.", reason="in_use")
        overlay = Overlay(reader)
        overlay.put([(GENESIS_KEY, genesis), (VIEW_KEY, str(VIEW_VERSION).encode())])
        settle_anew(overlay)
        taken = take(overlay, checked, now)
        for error in (*taken.refused, *map(_too_early, taken.early)):
            raise error
        return list(overlay.changes.items()), None

    await store.commit(plan)


def _too_early(sealed: Sealed) -> EntryError:
    return EntryError("missing_dependency", f"Entry {sealed.entry.seq} of {sealed.feed} builds on one that is missing.")


async def ingest(
    store: Store,
    kind: Kind,
    entries: Sequence[bytes],
    *,
    now: float,
    waiting: Sequence[Sealed] = (),
    aftermath: Aftermath | None = None,
) -> Ingested:
    """Verify entries and write those that are new and count as the next of their feeds.

    Args:
        store: a member's.
        kind: of every entry.
        entries: exact bytes, as they came.
        now: Unix seconds.
        waiting: what was given back as `early` before, and may have its turn now.
        aftermath: what else to write in the same batch.

    Raises:
        StoreError: the disk refused, or this node belongs to no network.
    """
    checked = await _checked(store, entries, kind)

    def plan(reader: Reader) -> tuple[Batch, Ingested]:
        overlay = Overlay(reader)
        taken = take(overlay, [*checked, *waiting], now)
        if aftermath is not None:
            aftermath(overlay, taken)
        return list(overlay.changes.items()), taken

    return await store.commit(plan)


async def _checked(store: Store, entries: Sequence[bytes], kind: Kind) -> list[Sealed | EntryError]:
    """Decoded, of that kind, and signed by whom they say; the errors in their place."""
    if len(entries) <= INLINE_ENTRIES_MAX or not store.in_thread:
        return [_check(stored, kind) for stored in entries]
    # libsodium works without the interpreter's lock: every core verifies its share.
    share = -(-len(entries) // min(THREADS_MAX, os.cpu_count() or 1))
    shares: dict[int, list[Sealed | EntryError]] = {}

    async def check(start: int) -> None:
        part = entries[start : start + share]
        shares[start] = await trio.to_thread.run_sync(lambda: [_check(stored, kind) for stored in part])

    async with trio.open_nursery() as nursery:
        for start in range(0, len(entries), share):
            nursery.start_soon(check, start)
    return [checked for start in sorted(shares) for checked in shares[start]]


def _check(stored: bytes, kind: Kind) -> Sealed | EntryError:
    try:
        sealed = unseal(stored)
        if sealed.feed.kind != kind:
            raise EntryError("wrong_kind", f"An entry of {sealed.feed} came among those of {kind}.")
        check_signature(sealed)
        return sealed
    except EntryError as error:
        return error


def take(overlay: Overlay, entries: Iterable[Sealed | EntryError], now: float) -> Ingested:
    """Lay entries whose signatures were checked over the store, going round while that lets further ones have a turn.

    An error among the entries is refused in its place. What its feed is nobody can tell, so only it is left out.
    """
    intake = _Intake(overlay, now)
    taken = intake.taken
    of_feed: dict[str, list[Sealed]] = {}
    for item in entries:
        if isinstance(item, EntryError):
            taken.refused.append(item)
        else:
            of_feed.setdefault(item.entry.feed, []).append(item)
    # In their order: what has waited for its turn must not stand behind what has to wait for it.
    queues = {feed: deque(sorted(some, key=lambda sealed: sealed.entry.seq)) for feed, some in of_feed.items()}
    moved = True
    while moved:
        moved = False
        for feed, queue in list(queues.items()):
            try:
                while queue:
                    intake.take(queue[0])
                    queue.popleft()
                    moved = True
                del queues[feed]
            except EntryError as error:
                if error.reason not in EARLY:
                    error.feed = feed
                    taken.refused.append(error)
                    del queues[feed]
    taken.early = [sealed for queue in queues.values() for sealed in queue]
    intake.write_heads()
    return taken


class _Intake:
    """Judges single entries as the store stands, and lays those that fit over it."""

    def __init__(self, overlay: Overlay, now: float) -> None:
        genesis = overlay.get(GENESIS_KEY)
        if genesis is None:
            raise StoreError("This node belongs to no network yet.", reason="no_network")
        self._overlay = overlay
        self._now = now
        self._net, self._recovery = network_hash(genesis), read_genesis(genesis).recovery_peer
        self._verdict = read_verdict(overlay)
        self._authors: set[str] = set()
        self._heads: dict[str, Head] = {}
        self._unwritten: set[str] = set()
        self.taken = Ingested()

    def write_heads(self) -> None:
        """Lay the heads of the feeds that have grown over the store: once for all their entries."""
        self._overlay.put([(head_key(feed), encode_head(self._heads[feed])) for feed in self._unwritten])
        self._unwritten.clear()

    def _head(self, feed: str) -> Head:
        head = self._heads.get(feed)
        if head is None:
            head = self._heads[feed] = read_head(self._overlay, feed)
        return head

    def take(self, sealed: Sealed) -> None:
        """Keep the entry if it is new; `EntryError` unless it has its place here."""
        overlay, entry, feed = self._overlay, sealed.entry, sealed.feed
        head = self._head(entry.feed)
        if entry.net != self._net:
            raise EntryError("wrong_network", f"Entry {entry.seq} of {feed} belongs to another network.")
        if entry.seq <= head.seq:
            self._compare(sealed)
            return
        if entry.seq > head.seq + 1:
            raise EntryError("gap", f"Entry {entry.seq} of {feed} came before entry {head.seq + 1}.")
        self._check_author(sealed)
        frozen = self._verdict.frozen.get(entry.feed, NO_LIMIT)
        if entry.seq > frozen:
            raise EntryError("equivocation", f"{feed} is frozen at entry {frozen}: its author wrote two entries after.")
        check_place(sealed, self._net, head)
        self._check_deps(sealed)
        future = is_ahead(entry.clock, self._now)
        self._heads[entry.feed] = sealed.head(head)
        self._unwritten.add(entry.feed)
        if speaks_of_authors(sealed):
            self.write_heads()  # whoever judges anew reads them
            self.taken.voided += record_entry(overlay, sealed, self._verdict, future=future)
            self._verdict = read_verdict(overlay)
        else:
            self.taken.voided += record_entry(overlay, sealed, self._verdict, future=future)
        self.taken.applied += 1
        if future:
            self.taken.ahead.add(feed.author)

    def _check_author(self, sealed: Sealed) -> None:
        feed, seq = sealed.feed, sealed.entry.seq
        if feed.author == self._recovery and feed.kind != "members":
            raise EntryError("wrong_kind", f"{feed} is signed by the recovery key, which speaks of members alone.")
        if feed.author not in self._authors:
            if not is_author(self._overlay, feed.author):
                raise EntryError("not_an_author", f"An entry of {feed} is by one who may not write it.")
            self._authors.add(feed.author)
        if seq > VOID_ENTRIES_MAX and seq - VOID_ENTRIES_MAX > self._verdict.limit(feed):
            raise EntryError("removed", f"{feed} is by an author who was removed: no more of it is kept.")

    def _check_deps(self, sealed: Sealed) -> None:
        for feed, seq in sealed.entry.deps.items():
            # Of a frozen feed nobody gets more: what its author wrote after counts for nothing.
            if self._head(feed).seq < min(seq, self._verdict.frozen.get(feed, NO_LIMIT)):
                raise EntryError(
                    "missing_dependency", f"Entry {sealed.entry.seq} of {sealed.feed} builds on entry {seq} of {feed}."
                )

    def _compare(self, sealed: Sealed) -> None:
        """Is it the very entry that is here already? If not, its author has equivocated, and this is the proof."""
        feed, seq = sealed.entry.feed, sealed.entry.seq
        ours = next(read_entries(self._overlay, feed, after=seq - 1), None)
        if ours is None or ours.hash == sealed.hash:
            return
        self.write_heads()
        voided = keep_proof(self._overlay, ours, sealed)
        if voided is not None:
            self.taken.frozen.append(feed)
            self.taken.voided += voided
            self._verdict = read_verdict(self._overlay)


async def ingest_proofs(
    store: Store, proofs: Iterable[tuple[bytes, bytes]], *, now: float, aftermath: Aftermath | None = None
) -> Ingested:
    """Take in what others hold as proof that authors equivocated: only what proves it counts.

    Raises:
        StoreError: the disk refused.
    """
    pairs = [pair for pair in map(checked_proof, proofs) if pair is not None]

    def plan(reader: Reader) -> tuple[Batch, Ingested]:
        overlay, taken = Overlay(reader), Ingested()
        for first, second in pairs:
            if is_author(overlay, first.feed.author):
                voided = keep_proof(overlay, first, second)
                if voided is not None:
                    taken.frozen.append(first.entry.feed)
                    taken.voided += voided
        if aftermath is not None:
            aftermath(overlay, taken)
        return list(overlay.changes.items()), taken

    return await store.commit(plan) if pairs else Ingested()


def checked_proof(pair: tuple[bytes, bytes]) -> tuple[Sealed, Sealed] | None:
    """Two entries for one place, both signed by its author; `None` for whatever is not that."""
    try:
        first, second = map(unseal, pair)
        check_signature(first)
        check_signature(second)
    except EntryError:
        return None
    same = (first.entry.feed, first.entry.seq, first.entry.net) == (
        second.entry.feed,
        second.entry.seq,
        second.entry.net,
    )
    return (first, second) if same and first.hash != second.hash else None
