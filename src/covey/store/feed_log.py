"""Where feeds lie in the store: entries, heads, and the rows that entries change."""

from collections.abc import Iterator

import msgspec

from covey.store.entries import NO_HEAD, Head, Sealed, unseal
from covey.store.kv import Batch, Reader
from covey.store.memory import MemoryStore
from covey.store.merge import EntryMeta, apply
from covey.store.view import VIEW_KEY, VIEW_VERSION, View, encode_row, row_key
from covey.store.writer import Overlay

GENESIS_KEY = b"m/genesis"
INCARNATION_KEY = b"l/feeds/incarnation"
"""Which of its own feeds this node writes. Where it is missing (a restored backup) a new incarnation begins."""
CLOCK_KEY = b"l/feeds/clock"
"""The highest clock that this node has seen, 8 bytes: wall time may go backwards over a restart."""
UNSEEN_KEY = b"l/feeds/unseen"
"""There from founding a network until somebody was shown its recovery key."""

encode_head = msgspec.msgpack.Encoder(order="deterministic").encode
_decode_head = msgspec.msgpack.Decoder(Head).decode


def entry_key(feed: str, seq: int) -> bytes:
    """Where an entry is stored; they sort by sequence number."""
    return f"e/{feed}/{seq:016x}".encode()


def head_key(feed: str) -> bytes:
    """Where a feed's head is stored."""
    return f"h/{feed}".encode()


def lost_key(feed: str) -> bytes:
    """Where `covey store repair` notes the last sequence number that a feed, now shorter, is known to have had."""
    return f"x/{feed}/lost".encode()


def read_head(reader: Reader, feed: str) -> Head:
    """The head of a feed; `NO_HEAD` for one that has no entry."""
    value = reader.get(head_key(feed))
    return NO_HEAD if value is None else _decode_head(value)


def read_heads(reader: Reader, prefix: str = "") -> dict[str, Head]:
    """Every feed whose name begins with `prefix`, with its head."""
    return {key[2:].decode(): _decode_head(value) for key, value in reader.scan(f"h/{prefix}".encode())}


def read_entries(reader: Reader, feed: str, *, after: int = 0, reverse: bool = False) -> Iterator[Sealed]:
    """The entries of one feed beyond a sequence number, in their order or (with `reverse`) the last one first."""
    prefix, low = f"e/{feed}/".encode(), entry_key(feed, after + 1)
    for key, stored in reader.scan(prefix, start=None if reverse else low, reverse=reverse):
        if key < low:
            return
        yield unseal(stored)


def record(overlay: Overlay, sealed: Sealed, before: Head) -> None:
    """Lay a checked entry, its feed's new head and the rows it changes over the store."""
    feed = sealed.entry.feed
    overlay.put(
        [(entry_key(feed, sealed.entry.seq), sealed.stored), (head_key(feed), encode_head(sealed.head(before)))]
    )
    apply_entry(overlay, sealed)


def apply_entry(overlay: Overlay, sealed: Sealed) -> None:
    """Lay the rows that an entry changes over what is there."""
    entry, view = sealed.entry, View(overlay)
    meta = EntryMeta(entry.clock, entry.feed, entry.seq, sealed.hash)
    for op in entry.ops:
        overlay.put([(row_key(row), encode_row(row)) for row in apply(view, meta, op)])


def derive_view(reader: Reader) -> dict[bytes, bytes]:
    """Every row, made anew from the entries of `reader`, by key."""
    rows = Overlay(MemoryStore())
    for feed in read_heads(reader):
        for sealed in read_entries(reader, feed):
            apply_entry(rows, sealed)
    return {key: value for key, value in rows.changes.items() if value is not None}


def rebuild_view(reader: Reader) -> Batch:
    """The changes that make the stored rows what the entries add up to."""
    derived = derive_view(reader)
    stale: list[tuple[bytes, bytes | None]] = [(key, None) for key, _ in reader.scan(b"v/") if key not in derived]
    return [*stale, *derived.items(), (VIEW_KEY, str(VIEW_VERSION).encode())]
