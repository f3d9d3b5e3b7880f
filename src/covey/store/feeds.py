"""Signed feeds and the view that they add up to: where every change of auth state is written.

`Feeds.append` takes a decision, not a change: a function that looks at the current view and says what to do. It runs
in its turn in the store's one writer, so nothing comes between the look and the deed, and what it decides becomes one
signed entry per kind of feed. Entries, heads and rows go to the disk in one synced batch.
"""

import heapq
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Protocol, get_args

import msgspec

from covey.contracts.feeds import OPS, Admit, Kind, Op
from covey.errors import CallError
from covey.store.entries import KINDS, NO_HEAD, Entry, FeedId, Head, Sealed, new_deps, seal, unseal
from covey.store.genesis import Genesis, found, network_hash, read_genesis
from covey.store.hybrid_clock import tick
from covey.store.identity import Identity
from covey.store.kv import Batch, Reader, StoreError
from covey.store.membership import AUTHOR_ROLE, DEPENDS_ON, may_author
from covey.store.memory import MemoryStore
from covey.store.merge import EntryMeta, apply
from covey.store.rows import MemberRow
from covey.store.view import VIEW_KEY, VIEW_VERSION, View, encode_row, row_key
from covey.store.writer import Overlay, Store

GENESIS_KEY = b"m/genesis"
INCARNATION_KEY = b"l/feeds/incarnation"
"""Which of its own feeds this node writes. Where it is missing (a restored backup) a new incarnation begins."""
CLOCK_KEY = b"l/feeds/clock"
"""The highest clock that this node has seen, 8 bytes: wall time may go backwards over a restart."""

OP_KINDS: dict[type[Any], Kind] = {op: kind for kind in KINDS for op in get_args(OPS[kind])}

Decide = Callable[[View], Sequence[Op]]
"""What to do, given how things stand: may raise `CallError` to refuse, and may run without being carried out."""

_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode_head = msgspec.msgpack.Decoder(Head).decode


class Clock(Protocol):
    """Wall time."""

    def now(self) -> float:
        """Unix seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where an append ended up: the feeds it wrote, with their new last sequence numbers. Empty: nothing to do."""

    heads: Mapping[str, int]


def entry_key(feed: str, seq: int) -> bytes:
    """Where an entry is stored; they sort by sequence number."""
    return f"e/{feed}/{seq:016x}".encode()


def head_key(feed: str) -> bytes:
    """Where a feed's head is stored."""
    return f"h/{feed}".encode()


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
    entry = sealed.entry
    meta = EntryMeta(entry.clock, entry.feed, entry.seq, sealed.hash)
    overlay.put(
        [
            (entry_key(entry.feed, entry.seq), sealed.stored),
            (head_key(entry.feed), _encode(sealed.head(before))),
        ]
    )
    view = View(overlay)
    for op in entry.ops:
        overlay.put([(row_key(row), encode_row(row)) for row in apply(view, meta, op)])


def derive_view(reader: Reader) -> dict[bytes, bytes]:
    """Every row, made anew from the entries of `reader`, by key."""
    rows = Overlay(MemoryStore())
    view = View(rows)
    for feed in read_heads(reader):
        for sealed in read_entries(reader, feed):
            entry = sealed.entry
            meta = EntryMeta(entry.clock, entry.feed, entry.seq, sealed.hash)
            for op in entry.ops:
                rows.put([(row_key(row), encode_row(row)) for row in apply(view, meta, op)])
    return {key: value for key, value in rows.changes.items() if value is not None}


class Feeds:
    """This node's own feeds, and the view of all. Made by `open_feeds`."""

    def __init__(self, store: Store, identity: Identity, clock: Clock, opened: "_Opened") -> None:
        self._store = store
        self._identity = identity
        self._clock = clock
        self._net = network_hash(opened.genesis)
        self._incarnation = opened.incarnation
        self._known = set(read_heads(store.reader)) | {self.own(kind) for kind in KINDS}
        self.genesis: Genesis = read_genesis(opened.genesis)
        self.network_id: str = self._net.hex()
        self.recovery_key: str | None = opened.recovery_key
        """Only where this very opening founded the network, and nowhere else ever: show it, do not keep it."""
        self.view = View(store.reader)

    def own(self, kind: Kind) -> str:
        """The name of this node's feed of that kind."""
        return str(FeedId(kind, self._identity.peer_id, self._incarnation))

    def heads(self) -> dict[str, int]:
        """The last sequence number of every feed that this node holds."""
        return {feed: head.seq for feed, head in read_heads(self._store.reader).items()}

    async def append(self, decide: Decide) -> Receipt:
        """Decide on the current view, and write what was decided. Durable on this node's disk when it returns.

        Args:
            decide: sees all that was appended before it. Its ops may be of several kinds; all of them happen at once.

        Raises:
            CallError: the decision's own refusal; `too_large`; `forbidden` where this node may no longer write;
                `storage` where the disk refused: then nothing happened.
        """
        return await self._store.commit(lambda reader: self._plan(reader, decide))

    def history(self, kind: Kind, *, newest_first: bool = False) -> Iterator[Sealed]:
        """Every entry of one kind, over all authors, by clock: for the audit. Lazy: take as many as you need."""
        reader = self._store.reader
        feeds = (read_entries(reader, feed, reverse=newest_first) for feed in read_heads(reader, f"{kind}/"))
        return heapq.merge(*feeds, key=attrgetter("entry.clock", "entry.feed"), reverse=newest_first)

    def _plan(self, reader: Reader, decide: Decide) -> tuple[Batch, Receipt]:
        view = View(reader)
        ops = decide(view)
        if not ops:
            return [], Receipt({})
        me = self._identity.peer_id
        if not may_author(me, view.get(MemberRow, me), self.genesis.founder):
            raise CallError("forbidden", "This node is no auth node of its network: it may not change anything there.")
        overlay = Overlay(reader)
        heads: dict[str, int] = {}
        for kind in KINDS:
            said = tuple(op for op in ops if OP_KINDS[type(op)] == kind)
            if said:
                feed = self.own(kind)
                heads[feed] = self._write_entry(overlay, kind, feed, said)
        return list(overlay.changes.items()), Receipt(heads)

    def _write_entry(self, overlay: Overlay, kind: Kind, feed: str, ops: tuple[Op, ...]) -> int:
        head = read_head(overlay, feed)
        clock = tick(int.from_bytes(overlay.get(CLOCK_KEY) or b""), self._clock.now())
        others = {
            other: read_head(overlay, other).seq
            for other in self._known
            if other != feed and other.partition("/")[0] in DEPENDS_ON[kind]
        }
        entry = Entry(
            net=self._net,
            feed=feed,
            seq=head.seq + 1,
            prev_hash=head.hash,
            clock=clock,
            deps=new_deps(others, head.deps),
            ops=ops,
        )
        record(overlay, seal(self._identity, entry), head)
        overlay.put([(CLOCK_KEY, clock.to_bytes(8))])
        return entry.seq


@dataclass(frozen=True, slots=True)
class _Opened:
    genesis: bytes
    incarnation: str
    recovery_key: str | None


@asynccontextmanager
async def open_feeds(
    store: Store,
    identity: Identity,
    clock: Clock,
    *,
    node_name: str,
    roles: tuple[str, ...] = (AUTHOR_ROLE,),
    found: bool = False,
) -> AsyncGenerator[Feeds, None]:
    """Open this auth node's feeds; the store stays its owner's.

    Args:
        store: open for as long as this is.
        identity: who signs.
        clock: wall time.
        node_name: what the founding node is called.
        roles: what the founding node is admitted with, and an auth node from now on where it has gained a role.
        found: begin a network where the store holds none. `Feeds.recovery_key` is then to be shown, once.

    Raises:
        CallError: `not_found` (`no_network`): there is none, and `found` is false; `forbidden`: this node's key is
            not that of an auth node of the network.
        StoreError: `newer_format`: a newer Covey wrote these feeds; or the disk refused.
    """
    opened = await store.commit(lambda reader: _open(reader, identity, clock.now(), may_found=found))
    feeds = Feeds(store, identity, clock, opened)

    def admit_self(view: View) -> Sequence[Op]:
        me = view.get(MemberRow, identity.peer_id)
        if not may_author(identity.peer_id, me, feeds.genesis.founder):
            raise CallError(
                "forbidden",
                "This data folder's network does not know this node's key as an auth node: `covey store restore` the "
                "backup that belongs to it, or start with an empty folder.",
            )
        missing = set(roles) - set(me.roles) if me else set(roles)
        if not missing:
            return ()
        name = me.name if me else node_name
        all_roles = tuple(sorted(missing.union(me.roles if me else ())))
        return (Admit(peer=identity.peer_id, roles=all_roles, name=name, by="operator"),)

    await feeds.append(admit_self)
    yield feeds


def _open(reader: Reader, identity: Identity, now: float, *, may_found: bool) -> tuple[Batch, _Opened]:
    genesis, recovery_key = reader.get(GENESIS_KEY), None
    changes: list[tuple[bytes, bytes | None]] = []
    if genesis is None:
        if not may_found:
            raise CallError("not_found", "This node belongs to no network yet: `covey join` one.", reason="no_network")
        genesis, recovery_key = found(identity.peer_id, now)
        changes += [(GENESIS_KEY, genesis), (VIEW_KEY, str(VIEW_VERSION).encode())]
    else:
        changes += _upgrade_view(reader)
    incarnation = reader.get(INCARNATION_KEY)
    if incarnation is None:
        incarnation = secrets.token_hex(8).encode()
        changes.append((INCARNATION_KEY, incarnation))
    return changes, _Opened(genesis, incarnation.decode(), recovery_key)


def _upgrade_view(reader: Reader) -> Batch:
    """Make the rows anew where the rules that made them have changed since."""
    version = int(reader.get(VIEW_KEY) or b"0")
    if version > VIEW_VERSION:
        raise StoreError("A newer Covey wrote this node's feeds: upgrade Covey.", reason="newer_format")
    return [] if version == VIEW_VERSION else rebuild_view(reader)


def rebuild_view(reader: Reader) -> Batch:
    """The changes that make the stored rows what the entries add up to."""
    derived = derive_view(reader)
    stale: list[tuple[bytes, bytes | None]] = [(key, None) for key, _ in reader.scan(b"v/") if key not in derived]
    return [*stale, *derived.items(), (VIEW_KEY, str(VIEW_VERSION).encode())]
