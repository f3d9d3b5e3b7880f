"""Other authors' entries: verified, then laid into the store as if they had been written here.

An entry counts only where its author may write as the store stands just before it, and only after the entries that it
names as its dependencies. Entries of several feeds may come in any order as long as each feed's own are in theirs.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from covey.contracts.feeds import Kind
from covey.store.entries import EntryError, Sealed, check_place, check_signature, unseal
from covey.store.feed_log import GENESIS_KEY, read_entries, read_head, read_heads, record
from covey.store.genesis import network_hash, read_genesis
from covey.store.kv import Batch, Reader, StoreError
from covey.store.membership import counts
from covey.store.rows import MemberRow
from covey.store.view import VIEW_KEY, VIEW_VERSION, View
from covey.store.writer import Overlay, Store

BATCH_ENTRIES_MAX = 64
BATCH_BYTES_MAX = 512 * 1024


@dataclass(frozen=True, slots=True)
class EntryBatch:
    """Entries, exact bytes, and the vector of whoever has taken them in."""

    entries: tuple[bytes, ...]
    vector: dict[str, int]


@dataclass(frozen=True, slots=True)
class Ingested:
    """How many entries were new; those that the store had already are no error."""

    applied: int


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
    heads = read_heads(reader, f"{kind}/")
    feeds = {feed: read_entries(reader, feed, after=max(reached.get(feed, 0), 0)) for feed in heads}
    nexts = {feed: sealed for feed, entries in feeds.items() if (sealed := next(entries, None)) is not None}

    def rank(sealed: Sealed) -> tuple[bool, int, str]:
        # A dependency that is not here cannot be waited for: a disk may have lost it.
        waits = any(
            reached.get(feed, 0) < min(seq, heads[feed].seq) for feed, seq in sealed.entry.deps.items() if feed in heads
        )
        return waits, sealed.entry.clock, sealed.entry.feed

    while nexts:
        chosen = min(nexts.values(), key=rank)
        yield chosen
        following = next(feeds[chosen.entry.feed], None)
        if following is None:
            del nexts[chosen.entry.feed]
        else:
            nexts[chosen.entry.feed] = following


async def install(store: Store, genesis: bytes, network_id: str, entries: Sequence[bytes]) -> None:
    """Make an empty store a member's: the network's genesis, and the entries of its members feeds.

    Raises:
        EntryError: something of it does not verify from `network_id` on.
        StoreError: the store belongs to a network already, or the disk refused.
    """
    if network_hash(genesis).hex() != network_id:
        raise EntryError("wrong_network", "The genesis that was sent is not that of the invited network.")
    read_genesis(genesis)

    def plan(reader: Reader) -> tuple[Batch, None]:
        if reader.get(GENESIS_KEY) is not None:
            raise StoreError("This data folder belongs to a network already.", reason="in_use")
        overlay = Overlay(reader)
        overlay.put([(GENESIS_KEY, genesis), (VIEW_KEY, str(VIEW_VERSION).encode())])
        _ingest(overlay, entries, "members")
        return list(overlay.changes.items()), None

    await store.commit(plan)


async def ingest(store: Store, kind: Kind, entries: Sequence[bytes]) -> Ingested:
    """Verify entries and write those that are new, all or none of them.

    Raises:
        EntryError: one of them is forged, out of order, of another kind or network, or by one who may not write;
            `UnknownOpError` where this node must be upgraded first.
        StoreError: the disk refused.
    """

    def plan(reader: Reader) -> tuple[Batch, Ingested]:
        overlay = Overlay(reader)
        applied = _ingest(overlay, entries, kind)
        return list(overlay.changes.items()), Ingested(applied)

    return await store.commit(plan)


_MAY_YET_COUNT = frozenset({"not_an_author", "missing_dependency"})
"""What another feed's entry can put right: its author's admission, or what it builds on."""


def _ingest(overlay: Overlay, entries: Iterable[bytes], kind: Kind) -> int:
    """Take in what is new, feed by feed, going round for as long as that lets further entries count."""
    intake = _Intake(overlay)
    waiting = _by_feed(entries, kind)
    applied = 0
    while waiting:
        refusal: EntryError | None = None
        before = sum(map(len, waiting.values()))
        for feed, queue in list(waiting.items()):
            try:
                while queue:
                    applied += intake.take(queue[0])
                    queue.popleft()
                del waiting[feed]
            except EntryError as error:
                if error.reason not in _MAY_YET_COUNT:
                    raise
                refusal = refusal or error
        if refusal is not None and before == sum(map(len, waiting.values())):
            raise refusal
    return applied


def _by_feed(entries: Iterable[bytes], kind: Kind) -> dict[str, deque[Sealed]]:
    found: dict[str, deque[Sealed]] = {}
    for stored in entries:
        sealed = unseal(stored)
        if sealed.feed.kind != kind:
            raise EntryError("wrong_kind", f"An entry of {sealed.feed} came among those of {kind}.")
        found.setdefault(sealed.entry.feed, deque()).append(sealed)
    return found


class _Intake:
    """Judges single entries as the store stands, and lays those that count over it."""

    def __init__(self, overlay: Overlay) -> None:
        genesis = overlay.get(GENESIS_KEY)
        if genesis is None:
            raise StoreError("This node belongs to no network yet.", reason="no_network")
        self._overlay = overlay
        self._net, self._founder = network_hash(genesis), read_genesis(genesis).founder

    def take(self, sealed: Sealed) -> bool:
        """Whether the entry was new; `EntryError` unless it counts."""
        overlay, entry = self._overlay, sealed.entry
        head = read_head(overlay, entry.feed)
        if entry.seq <= head.seq:
            self._check_same(sealed)
            return False
        check_place(sealed, self._net, head)
        for feed, seq in entry.deps.items():
            if read_head(overlay, feed).seq < seq:
                raise EntryError(
                    "missing_dependency", f"Entry {entry.seq} of {sealed.feed} builds on entry {seq} of {feed}."
                )
        author = View(overlay).get(MemberRow, sealed.feed.author)
        if not counts(sealed.feed, entry.seq, author, self._founder):
            raise EntryError("not_an_author", f"An entry of {sealed.feed} is by one who may not write it.")
        check_signature(sealed)  # last: it is the costly one
        record(overlay, sealed, head)
        return True

    def _check_same(self, sealed: Sealed) -> None:
        """Is it the very entry that is here already?"""
        ours = next(read_entries(self._overlay, sealed.entry.feed, after=sealed.entry.seq - 1), None)
        if ours is not None and ours.stored == sealed.stored:
            return
        if sealed.entry.net != self._net:
            raise EntryError("wrong_network", f"Entry {sealed.entry.seq} of {sealed.feed} belongs to another network.")
        check_signature(sealed)  # a forgery proves nothing about the author
        if ours is None or ours.hash != sealed.hash:
            raise EntryError(
                "equivocation",
                f"{sealed.feed} has two different entries {sealed.entry.seq}: its author's key was copied.",
            )
