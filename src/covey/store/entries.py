"""The entries of signed feeds: their format, and the checks that stand between bytes and belief. Pure.

An entry is encoded once, by its author. Those exact bytes are signed, hashed, stored and sent; nothing is ever
re-encoded. On disk and on the wire an entry is its signature (64 bytes) followed by its bytes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, cast, get_args

import msgspec

from covey.contracts.feeds import OPS, Kind, Op
from covey.errors import CallError
from covey.store.identity import SIGNATURE_BYTES, Identity, digest, verify

KINDS: tuple[Kind, ...] = get_args(Kind)
ENTRY_DOMAIN = "entry/1"
ENTRY_BYTES_MAX = 256 * 1024
OPS_MAX = 1024
NO_HASH = bytes(32)
"""The `prev_hash` of a feed's first entry, whose `seq` is 1."""

Flaw = Literal[
    "malformed",
    "too_large",
    "unknown_op",
    "wrong_kind",
    "wrong_network",
    "broken_chain",
    "bad_signature",
    "not_an_author",
    "removed",
    "gap",
    "missing_dependency",
    "equivocation",
]

_FEED = re.compile(r"(members|keys|secret)/(12D3KooW[1-9A-HJ-NP-Za-km-z]{44})/([0-9a-f]{16})")
_KIND_OF: dict[type[Any], Kind] = {op: kind for kind in KINDS for op in get_args(OPS[kind])}
_TAGS = frozenset(str(op.__struct_config__.tag) for op in _KIND_OF)


class EntryError(CallError):
    """An entry that must not be believed; `reason` is its `Flaw`; `feed`: which it says it is of, or ""."""

    def __init__(self, flaw: Flaw, message: str, feed: str = "") -> None:
        super().__init__("protocol", message, reason=flaw)
        self.feed = feed


class UnknownOpError(EntryError):
    """An entry from a newer Covey: its feed stops here until this node is upgraded, for it may be a denial."""

    def __init__(self, tag: str, feed: str, seq: int) -> None:
        super().__init__(
            "unknown_op",
            f"Entry {seq} of {feed} holds {tag!r}, which this version does not know: upgrade Covey.",
            feed,
        )


class FeedId(msgspec.Struct, frozen=True, order=True):
    """`<kind>/<author's peer id>/<incarnation>`.

    `incarnation`: 16 hexadecimal digits, random: a node that lost part of its own feed (a restored backup, a repaired
    disk) goes on in a new one, so that no sequence number is ever used twice.
    """

    kind: Kind
    author: str
    incarnation: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.author}/{self.incarnation}"

    @classmethod
    def parse(cls, text: str) -> "FeedId":
        """`EntryError` for whatever is not exactly of that form."""
        if (parsed := _parse_feed(text)) is None:
            raise EntryError("malformed", f"{text[:128]!r} is not the name of a feed.")
        return parsed


def is_feed(text: str) -> bool:
    """Whether it is exactly of that form."""
    return _parse_feed(text) is not None


@lru_cache(maxsize=1024)  # a catch-up parses one name a hundred thousand times
def _parse_feed(text: str) -> FeedId | None:
    match = _FEED.fullmatch(text)
    return None if match is None else FeedId(cast(Kind, match[1]), match[2], match[3])


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What one author says at one place of one of its feeds.

    `net`: the network's hash. `seq` counts from 1. `prev_hash`: of the entry before it. `clock`: see
    `covey.store.hybrid_clock`. `deps`: other feeds' entries that count before this one, beyond those that earlier
    entries of this feed name; only of feeds that every reader of this one also reads.
    """

    net: bytes
    feed: str
    seq: int
    prev_hash: bytes
    clock: int
    deps: dict[str, int]
    ops: tuple[Op, ...]


class _Frame(msgspec.Struct, frozen=True, kw_only=True):
    """An entry whose ops are still bytes."""

    net: bytes
    feed: str
    seq: int
    prev_hash: bytes
    clock: int
    deps: dict[str, int]
    ops: tuple[msgspec.Raw, ...]


class _Tag(msgspec.Struct, frozen=True):
    type: str


class Head(msgspec.Struct, frozen=True):
    """The last entry of a feed. `deps`: everything that this feed's entries have named so far."""

    seq: int
    hash: bytes
    clock: int
    deps: dict[str, int]


NO_HEAD = Head(0, NO_HASH, 0, {})


@dataclass(frozen=True, slots=True)
class Sealed:
    """An entry with the bytes it was signed as.

    `hash`: 32 bytes, of the body alone. `stored`: signature and body, as on disk and on the wire.
    """

    entry: Entry
    feed: FeedId
    hash: bytes
    stored: bytes

    def head(self, before: Head) -> Head:
        """The feed's head once this entry is its last."""
        deps = {**before.deps, **self.entry.deps} if self.entry.deps else before.deps
        return Head(self.entry.seq, self.hash, self.entry.clock, deps)


_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_FRAMES = msgspec.msgpack.Decoder(_Frame)
_ENTRIES = msgspec.msgpack.Decoder(Entry)
_OPS: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(cast(Any, Op))
_TAG = msgspec.msgpack.Decoder(_Tag)


def seal(identity: Identity, entry: Entry) -> Sealed:
    """Encode and sign an entry, once.

    Raises:
        CallError: `too_large`: more than `OPS_MAX` ops or `ENTRY_BYTES_MAX` bytes.
    """
    body = _encode(entry)
    if len(body) > ENTRY_BYTES_MAX or len(entry.ops) > OPS_MAX:
        raise CallError("too_large", "That is too much for one change: make it in several smaller ones.")
    stored = identity.sign(ENTRY_DOMAIN, body) + body
    return Sealed(entry, FeedId.parse(entry.feed), digest(ENTRY_DOMAIN, body), stored)


def unseal(stored: bytes) -> Sealed:
    """Decode an entry without believing it: `check_signature` and `check_place` are still to come.

    Raises:
        EntryError: `malformed`, `too_large`, `wrong_kind`; `UnknownOpError`.
    """
    if len(stored) > SIGNATURE_BYTES + ENTRY_BYTES_MAX:
        raise EntryError("too_large", f"An entry of {len(stored)} bytes is refused.")
    body = stored[SIGNATURE_BYTES:]
    try:
        entry = _ENTRIES.decode(body)  # one pass, for most are good
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        entry = _explain(body)
    feed = FeedId.parse(entry.feed)
    if entry.seq < 1 or not 0 <= entry.clock < 2**64 or len(entry.prev_hash) != 32:
        raise EntryError("malformed", f"An entry of {feed} has impossible fields.")
    if len(entry.ops) > OPS_MAX:
        raise EntryError("too_large", f"Entry {entry.seq} of {feed} holds {len(entry.ops)} operations.")
    for op in entry.ops:
        if _KIND_OF[type(op)] != feed.kind:
            what = type(op).__struct_config__.tag
            raise EntryError("wrong_kind", f"Entry {entry.seq} of {feed} holds {what!r}, which is none of its kind.")
    return Sealed(entry, feed, digest(ENTRY_DOMAIN, body), stored)


def _explain(body: bytes) -> Entry:
    """Read an entry operation by operation, to say what is wrong with it."""
    try:
        frame = _FRAMES.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise EntryError("malformed", f"An entry is unreadable: {error}.") from error
    feed = FeedId.parse(frame.feed)
    return Entry(
        net=frame.net,
        feed=frame.feed,
        seq=frame.seq,
        prev_hash=frame.prev_hash,
        clock=frame.clock,
        deps=frame.deps,
        ops=tuple(_decode_op(raw, feed, frame.seq) for raw in frame.ops[: OPS_MAX + 1]),
    )


def _decode_op(raw: msgspec.Raw, feed: FeedId, seq: int) -> Op:
    try:
        return cast(Op, _OPS.decode(raw))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        try:
            tag = _TAG.decode(raw).type
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            tag = ""
        if tag in _TAGS or not tag:
            raise EntryError("malformed", f"An operation in entry {seq} of {feed} is unreadable: {error}.") from error
        raise UnknownOpError(tag[:64], str(feed), seq) from error


def check_signature(sealed: Sealed) -> None:
    """The costly check: did the feed's author sign these bytes? `EntryError`: `bad_signature`."""
    signature, body = sealed.stored[:SIGNATURE_BYTES], sealed.stored[SIGNATURE_BYTES:]
    if not verify(cast(Any, sealed.feed.author), ENTRY_DOMAIN, body, signature):
        raise EntryError("bad_signature", f"Entry {sealed.entry.seq} of {sealed.feed} is not signed by its author.")


def check_place(sealed: Sealed, net: bytes, head: Head) -> None:
    """Is it of this network, and the next one of its feed?

    Raises:
        EntryError: `wrong_network`, or `broken_chain` (sequence number, previous hash or clock).
    """
    entry = sealed.entry
    if entry.net != net:
        raise EntryError("wrong_network", f"Entry {entry.seq} of {sealed.feed} belongs to another network.")
    if entry.seq != head.seq + 1 or entry.prev_hash != head.hash or entry.clock <= head.clock:
        raise EntryError("broken_chain", f"Entry {entry.seq} of {sealed.feed} does not follow entry {head.seq}.")


def new_deps(heads: Mapping[str, int], declared: Mapping[str, int]) -> dict[str, int]:
    """What an entry has to name: the heads that this feed has not named yet."""
    return {feed: seq for feed, seq in heads.items() if declared.get(feed, 0) < seq}
