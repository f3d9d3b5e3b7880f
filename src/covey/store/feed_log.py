"""Where feeds lie in the store: entries, heads, what they say about authors, and the rows that entries change."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import msgspec
from msgspec.structs import replace

from covey.contracts.feeds import Admit, Op, Remove
from covey.store.entries import NO_HEAD, Entry, FeedId, Head, Sealed, is_feed, unseal
from covey.store.genesis import read_genesis
from covey.store.kv import Batch, Reader
from covey.store.membership import AUTHOR_ROLE
from covey.store.memory import MemoryStore
from covey.store.merge import EntryMeta, apply, is_denial, touched
from covey.store.rows import MemberRow
from covey.store.verdict import Authorship, Place, Removal, Verdict, settle
from covey.store.view import VIEW_KEY, VIEW_VERSION, View, encode_row, key_of, row_key
from covey.store.writer import Overlay

GENESIS_KEY = b"m/genesis"
INCARNATION_KEY = b"l/feeds/incarnation"
"""Which of its own feeds this node writes. Where it is missing (a restored backup) a new incarnation begins."""
CLOCK_KEY = b"l/feeds/clock"
"""The highest clock that this node has seen, 8 bytes: wall time may go backwards over a restart."""
UNSEEN_KEY = b"l/feeds/unseen"
"""There from founding a network until somebody was shown its recovery key."""

VERDICT_KEY = b"m/verdict"
"""`covey.store.verdict.Verdict`: follows from `c/` and `q/`, and is kept because every entry is held to it."""

encode_head = msgspec.msgpack.Encoder(order="deterministic").encode
_decode_head = msgspec.msgpack.Decoder(Head).decode
_encode_cutoffs = _encode_verdict = _encode_proof = encode_head
_decode_cutoffs = msgspec.msgpack.Decoder(dict[str, int]).decode
_decode_verdict = msgspec.msgpack.Decoder(Verdict).decode


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


def read_entries(
    reader: Reader, feed: str, *, after: int = 0, upto: int | None = None, reverse: bool = False
) -> Iterator[Sealed]:
    """The entries of one feed beyond a sequence number, in their order or (with `reverse`) the last one first.

    `upto`: with `reverse`, the highest sequence number to begin at.
    """
    prefix, low = f"e/{feed}/".encode(), entry_key(feed, after + 1)
    high = None if upto is None else entry_key(feed, upto)
    for key, stored in reader.scan(prefix, start=high if reverse else low, reverse=reverse):
        if key < low:
            return
        yield unseal(stored)


def record(
    overlay: Overlay, sealed: Sealed, before: Head, verdict: Verdict | None = None, *, future: bool = False
) -> list[Op]:
    """Lay a checked entry, its feed's new head and the rows it changes over the store.

    Args:
        overlay: the store, with what is to be written on top.
        sealed: checked, and the next of its feed.
        before: the head that its feed has now.
        verdict: the stored one, where it is known.
        future: its clock is too far ahead: all but its denials waits (`release`).

    Returns:
        The denials that count no more, where the entry removed an author who had made them.
    """
    overlay.put([(head_key(sealed.entry.feed), encode_head(sealed.head(before)))])
    return record_entry(overlay, sealed, verdict, future=future)


def record_entry(overlay: Overlay, sealed: Sealed, verdict: Verdict | None = None, *, future: bool = False) -> list[Op]:
    """As `record`, where the feed's head is the caller's to write: once for many entries."""
    overlay.put([(entry_key(sealed.entry.feed, sealed.entry.seq), sealed.stored)])
    if future:
        overlay.put([(future_key(sealed), b"")])
    note(overlay, sealed, future=future)
    voided: list[Op] = []
    if verdict is None or speaks_of_authors(sealed):
        voided, verdict = settle_anew(overlay), read_verdict(overlay)
    apply_entry(overlay, sealed, verdict, future=future)
    return voided


def speaks_of_authors(sealed: Sealed) -> bool:
    """Whether an entry may change the verdict."""
    return sealed.feed.kind == "members" and any(isinstance(op, Remove | Admit) for op in sealed.entry.ops)


def note(overlay: Overlay, sealed: Sealed, *, future: bool = False) -> None:
    """Keep what an entry says about authors, whether or not it will turn out to count."""
    entry, feed = sealed.entry, sealed.feed
    if feed.kind != "members":
        return
    for op in entry.ops:
        if isinstance(op, Remove):
            key = _removal_key(op.peer, entry)
            overlay.put([(key, _encode_cutoffs(_stricter(overlay.get(key), op.cutoffs)))])
        elif isinstance(op, Admit) and AUTHOR_ROLE in op.roles and not future:
            overlay.put([(_authorship_key(op.peer, entry), b"")])


def is_author(reader: Reader, peer: str) -> bool:
    """Whether anybody ever admitted this peer as an auth node: its entries are kept, if perhaps they do not count."""
    founders = read_genesis(reader.get(GENESIS_KEY) or b"")
    return peer in (founders.founder, founders.recovery_peer) or any(
        True for _ in reader.scan(f"c/author/{peer}/".encode(), limit=1)
    )


def read_verdict(reader: Reader) -> Verdict:
    """Whose entries count, as of what is stored."""
    value = reader.get(VERDICT_KEY)
    return Verdict() if value is None else _decode_verdict(value)


def judge(reader: Reader) -> Verdict:
    """The verdict on everything that is noted; reads some rows for each author there ever was."""
    genesis = read_genesis(reader.get(GENESIS_KEY) or b"")
    removals = [
        Removal(_place(key), key.decode().split("/")[2], _decode_cutoffs(value))
        for key, value in reader.scan(b"c/removal/")
    ]
    authorships = [Authorship(_place(key), key.decode().split("/")[2]) for key, _ in reader.scan(b"c/author/")]
    return settle(
        removals,
        authorships,
        founder=genesis.founder,
        recovery=genesis.recovery_peer,
        frozen={feed: proof.seq - 1 for feed, proof in read_proofs(reader).items()},
    )


def settle_anew(overlay: Overlay) -> list[Op]:
    """Judge again, and bring the rows to the new verdict.

    Returns:
        The denials that counted and do so no more, in their feeds' order: for whoever is to say them again.
    """
    old, new = read_verdict(overlay), judge(overlay)
    if old == new:
        return []
    overlay.put([(VERDICT_KEY, _encode_verdict(new))])
    changed: set[bytes] = {key_of(MemberRow, peer) for peer in {*old.removed} ^ {*new.removed}}
    voided: list[Op] = []
    for feed, head in read_heads(overlay).items():
        was, now = old.limit(FeedId.parse(feed)), new.limit(FeedId.parse(feed))
        if was == now or head.seq <= min(was, now):
            continue
        for sealed in read_entries(overlay, feed, after=min(was, now)):
            if sealed.entry.seq > max(was, now):
                break
            for op in sealed.entry.ops:
                changed.update(key_of(*row) for row in touched(op))
                if now < was and is_denial(op) and not isinstance(op, Remove):
                    voided.append(op)
    _make_anew(overlay, changed, new)
    return voided


def _make_anew(overlay: Overlay, changed: set[bytes], verdict: Verdict) -> None:
    """Make these rows what the entries that count add up to. Reads every entry of their kinds: removals are rare."""
    kinds = {key.split(b"/")[1].decode() for key in changed}
    overlay.put([(key, None) for key in changed])
    for kind in sorted(kinds):
        for feed in read_heads(overlay, f"{kind}/"):
            for sealed in counting(overlay, feed, verdict):
                if any(key_of(*row) in changed for op in sealed.entry.ops for row in touched(op)):
                    apply_entry(overlay, sealed, verdict, future=is_future(overlay, sealed))
    mark_removed(overlay, verdict, changed)


def mark_removed(overlay: Overlay, verdict: Verdict, changed: set[bytes] | None = None) -> None:
    """Have the rows say who is removed; `changed`: only of these."""
    view = View(overlay)
    for peer in verdict.removed:
        if changed is None or key_of(MemberRow, peer) in changed:
            row = view.get(MemberRow, peer) or MemberRow(peer=peer)
            overlay.put([(row_key(row), encode_row(replace(row, removed=True)))])


def counting(reader: Reader, feed: str, verdict: Verdict) -> Iterator[Sealed]:
    """The entries of a feed that count."""
    limit = verdict.limit(FeedId.parse(feed))
    for sealed in read_entries(reader, feed):
        if sealed.entry.seq > limit:
            return
        yield sealed


def apply_entry(overlay: Overlay, sealed: Sealed, verdict: Verdict | None = None, *, future: bool = False) -> None:
    """Lay the rows that an entry changes over what is there; none where the verdict is that it does not count."""
    entry, view = sealed.entry, View(overlay)
    if verdict is not None and entry.seq > verdict.limit(sealed.feed):
        return
    meta = EntryMeta(entry.clock, entry.feed, entry.seq, sealed.hash)
    for op in entry.ops:
        if not future or is_denial(op):
            overlay.put([(row_key(row), encode_row(row)) for row in apply(view, meta, op)])


# Entries from the future


def future_key(sealed: Sealed) -> bytes:
    """Where it is noted that an entry waits; they sort by clock."""
    return f"f/{sealed.entry.clock:016x}/{sealed.entry.feed}/{sealed.entry.seq:016x}".encode()


def is_future(reader: Reader, sealed: Sealed) -> bool:
    """Whether all but the denials of an entry waits."""
    return reader.get(future_key(sealed)) is not None


def release(overlay: Overlay, clock_max: int) -> list[Op]:
    """Let those entries count whose clock is no longer too far ahead; returns as `record`."""
    voided: list[Op] = []
    for key, _ in list(overlay.scan(b"f/")):
        _, clock, *feed, seq = key.decode().split("/")
        if int(clock, 16) > clock_max:
            break
        overlay.put([(key, None)])
        sealed = next(read_entries(overlay, "/".join(feed), after=int(seq, 16) - 1), None)
        if sealed is None:
            continue
        note(overlay, sealed)
        voided += settle_anew(overlay) if any(isinstance(op, Admit) for op in sealed.entry.ops) else []
        apply_entry(overlay, sealed, read_verdict(overlay))
    return voided


def postpone(overlay: Overlay, entries: Sequence[Sealed]) -> list[Op]:
    """Have all but the denials of entries wait that counted until now; returns as `record`."""
    changed = {key_of(*row) for sealed in entries for op in sealed.entry.ops for row in touched(op)}
    overlay.put([(future_key(sealed), b"") for sealed in entries])
    overlay.put([(key, None) for key in _authorship_keys(entries)])
    voided = settle_anew(overlay)
    _make_anew(overlay, changed, read_verdict(overlay))
    return voided


def judge_without(reader: Reader, entries: Sequence[Sealed]) -> Verdict:
    """What the verdict would be if these waited."""
    overlay = Overlay(reader)
    overlay.put([(key, None) for key in _authorship_keys(entries)])
    return judge(overlay)


def _authorship_keys(entries: Sequence[Sealed]) -> list[bytes]:
    return [
        _authorship_key(op.peer, sealed.entry)
        for sealed in entries
        for op in sealed.entry.ops
        if isinstance(op, Admit) and AUTHOR_ROLE in op.roles
    ]


# Two entries for one place


class Proof(msgspec.Struct, frozen=True):
    """That an author equivocated: two entries, exact bytes, for one place of one feed, both signed by it."""

    seq: int
    first: bytes
    second: bytes


_decode_proof = msgspec.msgpack.Decoder(Proof).decode


def proof_key(feed: str) -> bytes:
    """Where a feed's proof is kept: that of the lowest place."""
    return f"q/{feed}".encode()


def read_proofs(reader: Reader, prefix: str = "") -> dict[str, Proof]:
    """By feed."""
    return {key[2:].decode(): _decode_proof(value) for key, value in reader.scan(f"q/{prefix}".encode())}


def keep_proof(overlay: Overlay, first: Sealed, second: Sealed) -> list[Op] | None:
    """Keep a proof whose signatures were checked, and freeze the feed; returns as `record`.

    `None` where a proof of the same or an earlier place is kept already.
    """
    feed, seq = first.entry.feed, first.entry.seq
    known = overlay.get(proof_key(feed))
    if known is not None and _decode_proof(known).seq <= seq:
        return None
    one, other = sorted((first.stored, second.stored))
    overlay.put([(proof_key(feed), _encode_proof(Proof(seq, one, other)))])
    return settle_anew(overlay)


# The whole view


def derive_view(reader: Reader, ends: Mapping[str, int] | None = None) -> Overlay:
    """Everything that follows from the entries of `reader`, made anew: rows, notes, and the verdict.

    Args:
        reader: what is stored.
        ends: the last sequence number of each feed that can be believed; default: as their heads say.
    """
    derived = Overlay(MemoryStore())
    if ends is None:
        ends = {feed: head.seq for feed, head in read_heads(reader).items()}
    derived.put([(GENESIS_KEY, reader.get(GENESIS_KEY)), *reader.scan(b"q/")])
    for feed, end in ends.items():
        if feed.startswith("members/"):
            for sealed in islice(read_entries(reader, feed), end):
                note(derived, sealed, future=is_future(reader, sealed))
    verdict = judge(derived)
    for feed, end in ends.items():
        if not is_feed(feed):
            continue
        for sealed in islice(counting(reader, feed, verdict), end):
            apply_entry(derived, sealed, future=is_future(reader, sealed))
    mark_removed(derived, verdict)
    derived.put([(VERDICT_KEY, _encode_verdict(verdict))])
    return derived


DERIVED_PREFIXES = (b"v/", b"c/", VERDICT_KEY)
"""What `derive_view` makes."""


def rebuild_view(reader: Reader) -> Batch:
    """The changes that make the stored rows what the entries add up to."""
    derived = derive_view(reader).changes
    fresh = {key: value for key, value in derived.items() if key.startswith(DERIVED_PREFIXES) and value is not None}
    stale: list[tuple[bytes, bytes | None]] = [
        (key, None) for prefix in DERIVED_PREFIXES for key, _ in reader.scan(prefix) if key not in fresh
    ]
    return [*stale, *fresh.items(), (VIEW_KEY, str(VIEW_VERSION).encode())]


def _removal_key(target: str, entry: Entry) -> bytes:
    return f"c/removal/{target}/{entry.feed}/{entry.seq:016x}".encode()


def _authorship_key(peer: str, entry: Entry) -> bytes:
    return f"c/author/{peer}/{entry.feed}/{entry.seq:016x}".encode()


def _place(key: bytes) -> Place:
    _, _, _, *feed, seq = key.decode().split("/")
    return Place("/".join(feed), feed[1], int(seq, 16))


def _stricter(known: bytes | None, cutoffs: dict[str, int]) -> dict[str, int]:
    """Of two removals of one peer in one entry."""
    if known is None:
        return cutoffs
    other = _decode_cutoffs(known)
    return {feed: min(cutoffs[feed], other[feed]) for feed in cutoffs.keys() & other.keys()}
