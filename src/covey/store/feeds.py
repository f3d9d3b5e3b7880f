"""Signed feeds and the view that they add up to: where every change of auth state is written.

`Feeds.append` takes a decision, not a change: a function that looks at the current view and says what to do. It runs
in its turn in the store's one writer, so nothing comes between the look and the deed, and what it decides becomes one
signed entry per kind of feed. Entries, heads and rows go to the disk in one synced batch.
"""

import heapq
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Generic, Protocol, TypeVar, get_args

from covey.contracts.feeds import OPS, Admit, Kind, Op
from covey.errors import CallError
from covey.store.ahead import clock_order, counting_ahead, is_before_founding, to_say
from covey.store.denied import keep_denied, restated
from covey.store.entries import KINDS, NO_HEAD, Entry, FeedId, Head, Sealed, new_deps, seal
from covey.store.feed_log import (
    CLOCK_KEY,
    GENESIS_KEY,
    INCARNATION_KEY,
    UNSEEN_KEY,
    judge_without,
    postpone,
    read_entries,
    read_heads,
    read_verdict,
    rebuild_view,
    record,
    settle_anew,
)
from covey.store.genesis import found, network_hash, read_genesis
from covey.store.hybrid_clock import tick
from covey.store.identity import Identity
from covey.store.ingest import Ingested
from covey.store.kv import FORMAT_KEY, Batch, Reader, StoreError
from covey.store.membership import AUTHOR_ROLE, DEPENDS_ON
from covey.store.reissue import reissued
from covey.store.rows import MemberRow
from covey.store.view import VIEW_KEY, VIEW_VERSION, View
from covey.store.writer import LOCAL_PREFIX, USAGE_PREFIX, Overlay, Store
from covey.transport.base import PeerId

OP_KINDS: dict[type[Any], Kind] = {op: kind for kind in KINDS for op in get_args(OPS[kind])}

Decide = Callable[[View], Sequence[Op]]
"""What to do, given how things stand: may raise `CallError` to refuse, and may run without being carried out."""


T = TypeVar("T")
Settled = Callable[[Mapping[str, int]], Awaitable[tuple[PeerId, ...]]]
"""From the heads that were written to the members that have them (`covey.store.acks.Acks.settled`)."""

AHEAD_ENTRIES_MAX = 1024
"""How many entries a node says again at most, of its own and of others': more were not written while a clock was wrong
for a while."""
OPS_PER_REISSUE = 256
"""In one entry, of what is said again."""


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """What to do, in one batch: say `ops` in the feeds, and change this node's own corner (`Local.key`).

    `result`: what whoever asked is told once both are durable.
    """

    ops: Sequence[Op]
    result: T
    local: Batch = ()


class Clock(Protocol):
    """Wall time."""

    def now(self) -> float:
        """Unix seconds."""
        ...


class SystemClock:
    """The machine's wall clock."""

    def now(self) -> float:
        """Unix seconds."""
        return time.time()


@dataclass(frozen=True, slots=True)
class Receipt(Generic[T]):
    """Where an append ended up: the feeds it wrote, with their new last sequence numbers. Empty: nothing to do.

    `result`: what the decision gave. `held_by`: the other members that have said by now that they have it, too.
    """

    heads: Mapping[str, int]
    result: T
    held_by: tuple[PeerId, ...] = ()


class Author:
    """This node as a writer of its own feeds: turns decisions into entries. No I/O of its own.

    Args:
        identity: who signs.
        genesis: the network's, as stored.
        incarnation: of the feeds; `None`: as the store says, where it may have to begin anew.
        new_incarnation: names the feeds that it begins: 16 hexadecimal digits that nobody has used.
    """

    def __init__(
        self,
        identity: Identity,
        genesis: bytes,
        incarnation: str | None = None,
        *,
        new_incarnation: Callable[[], bytes] = lambda: secrets.token_hex(8).encode(),
    ) -> None:
        self._identity = identity
        self._new_incarnation = new_incarnation
        self._incarnation = incarnation
        self.net = network_hash(genesis)

    def own(self, reader: Reader, kind: Kind) -> str:
        """The name of this author's feed of that kind."""
        incarnation = self._incarnation or (reader.get(INCARNATION_KEY) or b"").decode()
        return str(FeedId(kind, self._identity.peer_id, incarnation))

    def plan(self, reader: Reader, decide: Decide, now: float) -> tuple[Batch, dict[str, int]]:
        """What to write for a decision; `CallError` as `Feeds.append`. `now` in Unix seconds."""
        return self.write(reader, decide(View(reader)), now)

    def write(self, reader: Reader, ops: Sequence[Op], now: float) -> tuple[Batch, dict[str, int]]:
        """The same, for what has been decided."""
        if not ops:
            return [], {}
        overlay = Overlay(reader)
        heads = self.lay(overlay, ops, now)
        return list(overlay.changes.items()), heads

    def lay(self, overlay: Overlay, ops: Sequence[Op], now: float) -> dict[str, int]:
        """The same, laid over the store; returns the last sequence numbers of the feeds that it wrote."""
        if not read_verdict(overlay).may_write(self._identity.peer_id):
            raise CallError(
                "forbidden",
                "This node's key is not that of an auth node of its network: `covey store restore` the backup that "
                "belongs here, or join anew with an empty data folder.",
            )
        self._thaw(overlay)
        heads: dict[str, int] = {}
        pending = list(ops)
        while pending:
            voided: list[Op] = []
            for kind in KINDS:
                said = tuple(op for op in pending if OP_KINDS[type(op)] == kind)
                if said:
                    feed, seq = self._write_entry(overlay, kind, said, now, voided)
                    heads[feed] = seq
            pending = reissued(voided, View(overlay))  # removing an author may undo what it denied
        return heads

    def say_again(self, overlay: Overlay, taken: Ingested, now: float) -> None:
        """Deny anew what was denied in entries that count no more (`covey.store.ingest.Aftermath`).

        Where this node may not write, it keeps it for the time when it may (`covey.store.denied`).
        """
        if not self._writes(overlay):
            keep_denied(overlay, taken.voided)
            return
        kept, cleared = restated(overlay)
        overlay.put(cleared)
        again = reissued([*taken.voided, *kept], View(overlay))
        for start in range(0, len(again), OPS_PER_REISSUE):
            self.lay(overlay, again[start : start + OPS_PER_REISSUE], now)

    def _writes(self, reader: Reader) -> bool:
        """Whether this node is an auth node and has feeds: it begins them when the role starts for the first time."""
        has_feeds = self._incarnation is not None or reader.get(INCARNATION_KEY) is not None
        return has_feeds and read_verdict(reader).may_write(self._identity.peer_id)

    def set_clock_right(self, overlay: Overlay, now: float) -> None:
        """Where this node's clock was far ahead and is not any more, say again what was said then.

        Others let all but the denials of such entries wait until the time has come; so this node does the same from
        now on, with those that it wrote itself, in whichever of its feeds, and with those that it took from others
        whose clocks were as wrong. It begins new feeds, whose clocks are those of `now`. Where it is rather that the
        clock is behind now, nothing is lost either: what waits comes back with the right time.
        """
        if not read_verdict(overlay).may_write(self._identity.peer_id):
            return
        ahead = self._ahead(overlay, now)
        if not ahead:
            return
        pending = to_say(overlay, ahead, self._identity.peer_id, now)
        voided = postpone(overlay, ahead)
        overlay.put([(INCARNATION_KEY, self._new_incarnation()), (CLOCK_KEY, None)])
        for ops in pending:
            if ops:
                self.lay(overlay, ops, now)
        self.say_again(overlay, Ingested(voided=voided), now)

    def _ahead(self, overlay: Overlay, now: float) -> list[Sealed]:
        """The entries that are to wait from now on."""
        me, ahead = self._identity.peer_id, counting_ahead(overlay, now, most=AHEAD_ENTRIES_MAX + 1)
        mine = [sealed for sealed in ahead if sealed.feed.author == me]
        others = [sealed for sealed in ahead if sealed.feed.author != me]
        if len(mine) > AHEAD_ENTRIES_MAX:
            mine = []
        if not others or len(others) > AHEAD_ENTRIES_MAX or is_before_founding(overlay, now):
            return mine
        if not judge_without(overlay, others).may_write(me):
            # Let in by a word that has to wait, it would be out itself, and could say nothing in anybody's stead.
            return mine
        return sorted([*mine, *others], key=clock_order)

    def _thaw(self, overlay: Overlay) -> None:
        """Begin anew where one of this node's feeds is frozen: another copy of it wrote there, too."""
        frozen = read_verdict(overlay).frozen
        if self._incarnation is None and any(self.own(overlay, kind) in frozen for kind in KINDS):
            overlay.put([(INCARNATION_KEY, self._new_incarnation())])

    def _write_entry(
        self, overlay: Overlay, kind: Kind, ops: tuple[Op, ...], now: float, voided: list[Op]
    ) -> tuple[str, int]:
        feed = self.own(overlay, kind)
        heads: dict[str, Head] = {}
        for other in DEPENDS_ON[kind]:
            heads |= read_heads(overlay, f"{other}/")
        head = heads.pop(feed, NO_HEAD)
        clock = tick(int.from_bytes(overlay.get(CLOCK_KEY) or b""), now, (theirs.clock for theirs in heads.values()))
        entry = Entry(
            net=self.net,
            feed=feed,
            seq=head.seq + 1,
            prev_hash=head.hash,
            clock=max(clock, head.clock + 1),  # a disk put back may have forgotten what its peers gave back
            deps=new_deps({other: theirs.seq for other, theirs in heads.items()}, head.deps),
            ops=ops,
        )
        voided += record(overlay, seal(self._identity, entry), head, read_verdict(overlay))
        overlay.put([(CLOCK_KEY, entry.clock.to_bytes(8))])
        return feed, entry.seq


class Feeds:
    """This node's own feeds, and the view of all. Made by `open_feeds`."""

    def __init__(self, store: Store, author: Author, clock: Clock, recovery_key: str | None) -> None:
        self.settled: Settled = _held_here_alone
        """Waits for others to have what was written."""
        self.may_write: Callable[[], Awaitable[None]] = _at_once
        """Waited for before anything is written: until peers have said what this node wrote before."""
        self._store = store
        self._author = author
        self._clock = clock
        self.network_id: str = author.net.hex()
        self.recovery_key: str | None = recovery_key
        """Only where this very opening founded the network, and nowhere else ever: show it, do not keep it."""
        self.reader = store.reader
        """What is durable now, this node's own corner included."""
        self.view = View(store.reader)

    def own(self, kind: Kind) -> str:
        """The name of this node's feed of that kind."""
        return self._author.own(self.reader, kind)

    def heads(self) -> dict[str, int]:
        """The last sequence number of every feed that this node holds."""
        return {feed: head.seq for feed, head in read_heads(self._store.reader).items()}

    async def recovery_key_shown(self) -> None:
        """Say that a person is shown the recovery key now: the network that it belongs to is there to stay."""
        await self._store.commit(lambda _: ([(UNSEEN_KEY, None)], None))

    async def append(self, decide: Decide) -> Receipt[None]:
        """Decide on the current view, and write what was decided. Durable on this node's disk when it returns, and on
        another auth node's where one is linked and answers.

        Args:
            decide: sees all that was appended before it. Its ops may be of several kinds; all of them happen at once.

        Raises:
            CallError: the decision's own refusal; `too_large`; `forbidden` where this node may no longer write;
                `storage` where the disk refused: then nothing happened.
        """
        return await self.append_with(lambda reader: Decision(decide(View(reader)), None))

    async def append_with(self, decide: Callable[[Reader], Decision[T]]) -> Receipt[T]:
        """As `append`, for a decision that also reads or changes what never leaves this node: all of it, or nothing.

        Args:
            decide: sees the whole store, with all that was decided before it. What it would change beside the feeds
                lies in this node's own corner; anything else is a `ValueError`.
        """

        def plan(reader: Reader) -> tuple[Batch, tuple[dict[str, int], T]]:
            decision = decide(reader)
            if any(not key.startswith(LOCAL_PREFIX) for key, _ in decision.local):
                raise ValueError("a decision writes to the feeds by its operations alone")
            said, heads = self._author.write(reader, decision.ops, self._clock.now())
            return [*said, *decision.local], (heads, decision.result)

        await self.may_write()
        heads, result = await self._store.commit(plan)
        return Receipt(heads, result, await self.settled(heads))

    def history(self, kind: Kind, *, newest_first: bool = False) -> Iterator[Sealed]:
        """Every entry of one kind, over all authors, by clock: for the audit. Lazy: take as many as you need."""
        reader = self._store.reader
        feeds = (read_entries(reader, feed, reverse=newest_first) for feed in read_heads(reader, f"{kind}/"))
        return heapq.merge(*feeds, key=attrgetter("entry.clock", "entry.feed"), reverse=newest_first)


async def _held_here_alone(heads: Mapping[str, int]) -> tuple[PeerId, ...]:
    return ()


async def _at_once() -> None:
    pass


@dataclass(frozen=True, slots=True)
class _Opened:
    genesis: bytes
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
        found: begin a network where the store holds none, or one that is still empty and whose recovery key nobody
            was shown (a first start that failed). `Feeds.recovery_key` is then to be shown, once.

    Raises:
        CallError: `not_found` (`no_network`): there is none, and `found` is false; `forbidden`: this node's key is
            not that of an auth node of the network.
        StoreError: `newer_format`: a newer Covey wrote these feeds; or the disk refused.
    """
    opened = await store.commit(lambda reader: _open(reader, identity, clock.now(), may_found=found))
    author = Author(identity, opened.genesis)
    feeds = Feeds(store, author, clock, opened.recovery_key)

    def admit_self(view: View) -> Sequence[Op]:
        me = view.get(MemberRow, identity.peer_id)
        wanted = {AUTHOR_ROLE, *roles}
        if me is None:
            return (Admit(peer=identity.peer_id, roles=tuple(sorted(wanted)), name=node_name, by="operator"),)
        if wanted <= set(me.roles):
            return ()
        all_roles = tuple(sorted(wanted.union(me.roles)))
        return (Admit(peer=identity.peer_id, roles=all_roles, name=me.name, by="operator"),)

    await feeds.append(admit_self)
    yield feeds


def _open(reader: Reader, identity: Identity, now: float, *, may_found: bool) -> tuple[Batch, _Opened]:
    genesis, recovery_key = reader.get(GENESIS_KEY), None
    changes: list[tuple[bytes, bytes | None]] = []
    if may_found and (stillborn := _stillborn(reader, identity)):
        changes += [(key, None) for key in stillborn]
        reader = Overlay(reader)
        reader.put(changes)
        genesis = None
    if genesis is None:
        if not may_found:
            raise CallError("not_found", "This node belongs to no network yet: `covey join` one.", reason="no_network")
        genesis, recovery_key = found(identity.peer_id, now)
        overlay = Overlay(reader)
        overlay.put([(GENESIS_KEY, genesis), (VIEW_KEY, str(VIEW_VERSION).encode()), (UNSEEN_KEY, b"")])
        settle_anew(overlay)
        changes += overlay.changes.items()
    else:
        changes += upgraded_view(reader)
    if reader.get(INCARNATION_KEY) is None:
        changes.append((INCARNATION_KEY, secrets.token_hex(8).encode()))
    return changes, _Opened(genesis, recovery_key)


def _stillborn(reader: Reader, founder: Identity) -> list[bytes]:
    """Every key of a network that holds nothing but its founding by this node, and whose recovery key nobody was
    shown: the start that founded it failed. Going on with it would mean to do without the key for ever.
    """
    genesis = reader.get(GENESIS_KEY)
    if reader.get(UNSEEN_KEY) is None or genesis is None or read_genesis(genesis).founder != founder.peer_id:
        return []
    if sum(1 for _ in reader.scan(b"e/", limit=2)) > 1:
        return []
    # What was used tells nothing of a network: an embedding program chats without any.
    every = [key for key, _ in reader.scan(b"") if key != FORMAT_KEY and not key.startswith(USAGE_PREFIX)]
    corner = any(key.startswith(LOCAL_PREFIX) and not key.startswith(b"l/feeds/") for key in every)
    return [] if corner else every


def upgraded_view(reader: Reader) -> Batch:
    """Make the rows anew where the rules that made them have changed since.

    Raises:
        StoreError: `newer_format`: a newer Covey wrote these feeds.
    """
    if reader.get(GENESIS_KEY) is None:
        return []
    mark = reader.get(VIEW_KEY) or b"0"
    version = int(mark) if mark.isdigit() else 0
    if version > VIEW_VERSION:
        raise StoreError("A newer Covey wrote this node's feeds: upgrade Covey.", reason="newer_format")
    return [] if version == VIEW_VERSION else rebuild_view(reader)
