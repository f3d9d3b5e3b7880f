"""Other authors' entries: verified, then laid into the store as if they had been written here.

Membership is judged as the store stands just before the entry: an entry counts only where its author may write then.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from covey.contracts.feeds import Kind
from covey.store.entries import EntryError, Sealed, check_place, check_signature, unseal
from covey.store.feed_log import GENESIS_KEY, read_entries, read_head, read_heads, record
from covey.store.genesis import network_hash, read_genesis
from covey.store.kv import Batch, Reader, StoreError
from covey.store.membership import may_author
from covey.store.rows import MemberRow
from covey.store.view import VIEW_KEY, VIEW_VERSION, View
from covey.store.writer import Overlay, Store

BATCH_ENTRIES_MAX = 64
BATCH_BYTES_MAX = 512 * 1024


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
    batch: list[bytes] = []
    size = 0
    for feed in sorted(read_heads(reader, f"{kind}/")):
        for sealed in read_entries(reader, feed, after=max(have.get(feed, 0), 0)):
            if batch and (len(batch) >= BATCH_ENTRIES_MAX or size + len(sealed.stored) > BATCH_BYTES_MAX):
                yield tuple(batch)
                batch, size = [], 0
            batch.append(sealed.stored)
            size += len(sealed.stored)
    if batch:
        yield tuple(batch)


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


def _ingest(overlay: Overlay, entries: Iterable[bytes], kind: Kind) -> int:
    genesis = overlay.get(GENESIS_KEY)
    if genesis is None:
        raise StoreError("This node belongs to no network yet.", reason="no_network")
    net, founder = network_hash(genesis), read_genesis(genesis).founder
    applied = 0
    for stored in entries:
        sealed = unseal(stored)
        if sealed.feed.kind != kind:
            raise EntryError("wrong_kind", f"An entry of {sealed.feed} came among those of {kind}.")
        if _is_known(overlay, sealed):
            continue
        head = read_head(overlay, sealed.entry.feed)
        check_place(sealed, net, head)
        check_signature(sealed)
        author = sealed.feed.author
        if not may_author(author, View(overlay).get(MemberRow, author), founder):
            raise EntryError("not_an_author", f"An entry of {sealed.feed} is by one who may not write it.")
        record(overlay, sealed, head)
        applied += 1
    return applied


def _is_known(overlay: Overlay, sealed: Sealed) -> bool:
    known = read_head(overlay, sealed.entry.feed).seq
    if sealed.entry.seq > known:
        return False
    own = next(read_entries(overlay, sealed.entry.feed, after=sealed.entry.seq - 1), None)
    if own is None or own.hash != sealed.hash:
        raise EntryError(
            "equivocation", f"{sealed.feed} has two different entries {sealed.entry.seq}: its author's key was copied."
        )
    return True
