"""Keeping up with the feeds of the auth nodes: the reading end of the tail contracts, on every member.

An auth node tails every other one; other members tail two, where there are two, so that one that is silent, slow or
lying holds nothing back. Catch-up asks one first. What is wrong is refused and told; what comes early waits.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import trio

from covey.bus.background import open_background
from covey.bus.bus import Bus, BusHandle
from covey.contracts.feeds import Kind
from covey.contracts.method import Party
from covey.contracts.replication import ACKNOWLEDGE, HASH_BYTES, TAILS, FeedEntries, Heads, Tail
from covey.errors import CallError
from covey.store.entries import KINDS, FeedId, Sealed, is_feed
from covey.store.feed_log import GENESIS_KEY, read_entries, read_head, read_heads, read_verdict, release
from covey.store.feeds import Author, Clock, upgraded_view
from covey.store.hybrid_clock import farthest
from covey.store.identity import Identity
from covey.store.ingest import VOID_ENTRIES_MAX, Aftermath, Ingested, ingest, ingest_proofs
from covey.store.kv import Batch, Reader
from covey.store.membership import READERS
from covey.store.pulse import Pulse
from covey.store.quarantine import Quarantine
from covey.store.tails import position
from covey.store.verdict import NO_LIMIT
from covey.store.writer import Overlay, Store
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

SOURCES_MIN = 2
"""How many auth nodes a member that is none tails, where there are as many."""
CATCH_UP_SECONDS_MAX = 5.0
"""How long the first source may take before a second one is asked as well."""
RETRY_SECONDS_MIN = 0.2
RETRY_SECONDS_MAX = 10.0
LOOK_SECONDS = 1.0
ACKNOWLEDGE_SECONDS_MIN = 0.01
"""The pause between two acknowledgements to one peer: a burst of writes is acknowledged once."""
RELEASE_SECONDS = 30.0
REFUSALS_TOLD_MAX = 64


@dataclass(slots=True)
class Source:
    """One auth node as the source of one kind. `heads`: what it last said it holds, once it `has_spoken`."""

    scope: trio.CancelScope
    since: float
    has_spoken: bool = False
    heads: dict[str, int] = field(default_factory=dict[str, int])
    caught_up: bool = False


class Sync:
    """Follows every kind that this node's roles may read; `run` owns every task.

    Args:
        bus: of this node.
        store: a member's.
        identity: this node's: an auth node says again which denials came undone.
        clock: wall time.
        granted: what this node was admitted as.
    """

    def __init__(
        self, bus: Bus, store: Store, identity: Identity, clock: Clock, granted: Callable[[], frozenset[Party]]
    ) -> None:
        self.changes = Pulse()
        """Beats when a source says something, or comes or goes."""
        self.quarantine = Quarantine()
        self.refusals: dict[str, int] = {}
        """How many entries were refused, by `Flaw`."""
        self.blocked: dict[str, str] = {}
        """Feeds that hold what this version does not know, with what to do about it."""
        self.ahead: set[str] = set()
        """Authors whose clock is too far ahead."""
        self._bus = bus
        self._store = store
        self._identity = identity
        self._clock = clock
        self._granted = granted
        self._sources: dict[tuple[Kind, PeerId], Source] = {}
        self._taking = trio.Lock()
        self._once_caught_up: set[Kind] = set()
        self._told: set[tuple[str, str]] = set()
        self._behind_since: float | None = None

    # What others ask

    def kinds(self) -> tuple[Kind, ...]:
        """What this node reads."""
        granted = self._granted()
        return tuple(kind for kind in KINDS if READERS[kind] & granted)

    def heads(self) -> dict[str, int]:
        """The last sequence number of every feed that this node holds."""
        return {feed: head.seq for feed, head in read_heads(self._store.reader).items()}

    def has(self, heads: Mapping[str, int]) -> bool:
        """Whether all that these heads name has been applied here, as far as it ever will be."""
        return has_applied(self._store.reader, heads, self.kinds())

    async def applied(self, heads: Mapping[str, int]) -> None:
        """Until that is so."""
        commits = self._store.commits
        while True:
            seen = commits.count
            if self.has(heads):
                return
            await commits.after(seen)

    def blocking(self) -> bool:
        """Whether something that counts could not be read here: it may be a denial, so this node vouches for nobody."""
        if not self.blocked:
            return False
        reader = self._store.reader
        verdict = read_verdict(reader)
        return any(read_head(reader, feed).seq < verdict.limit(FeedId.parse(feed)) for feed in self.blocked)

    @property
    def caught_up(self) -> bool:
        """Whether this node has had all that some auth node held, of every kind, since it started."""
        return self._once_caught_up >= set(self.kinds())

    def behind(self) -> int:
        """How many entries sources have named that are not here yet."""
        wanted: dict[str, int] = {}
        for source in self._sources.values():
            for feed, seq in source.heads.items():
                wanted[feed] = max(seq, wanted.get(feed, 0))
        return sum(missing(self._store.reader, wanted))

    def lag_seconds(self) -> float:
        """For how long something has been named that is not here yet; 0.0 while there is nothing."""
        self._note_lag()
        return 0.0 if self._behind_since is None else trio.current_time() - self._behind_since

    def _note(self) -> None:
        """See who has no more to tell, of any kind: what came of one may have let in what another one's waited for."""
        self._note_lag()
        for (kind, _), source in self._sources.items():
            if source.has_spoken and not source.caught_up and self.has(source.heads):
                source.caught_up = True
                self._once_caught_up.add(kind)
        self.changes.beat()

    def _note_lag(self) -> None:
        if not self.behind():
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = trio.current_time()

    def sources(self) -> dict[tuple[Kind, PeerId], Source]:
        """Who is tailed for what."""
        return dict(self._sources)

    # Its tasks

    async def run(self, links: Pulse) -> None:
        """Until cancelled. `links` beats when a link may have come up."""
        await self._store.commit(lambda reader: (upgraded_view(reader), None))
        async with trio.open_nursery() as nursery:
            for kind in KINDS:
                nursery.start_soon(self._follow, kind, links)
            nursery.start_soon(self._acknowledge, links)
            nursery.start_soon(self._keep_time)

    async def _follow(self, kind: Kind, links: Pulse) -> None:
        """Keep tails of one kind open to those that there should be."""
        async with open_background() as nursery:
            while True:
                seen = links.count
                wanted = self._wanted(kind)
                for (of_kind, peer), source in list(self._sources.items()):
                    if of_kind == kind and peer not in wanted:
                        source.scope.cancel()
                for peer in wanted:
                    if (kind, peer) not in self._sources:
                        self._sources[kind, peer] = Source(trio.CancelScope(), trio.current_time())
                        nursery.start_soon(self._keep_tail, kind, peer)
                with trio.move_on_after(LOOK_SECONDS):
                    await links.after(seen)

    def _wanted(self, kind: Kind) -> list[PeerId]:
        bus = self._stamped(kind)
        if bus is None:
            return []
        live = [peer for peer in bus.serving(TAILS[kind]) if peer != self._bus.me]
        live.sort(key=lambda peer: (kind, peer) not in self._sources)  # whoever serves well goes on
        if kind not in self._once_caught_up:
            first = self._sources.get((kind, live[0])) if live else None
            patient = first is None or trio.current_time() - first.since < CATCH_UP_SECONDS_MAX
            return live[:1] if patient else live
        return live if "auth" in self._granted() else live[:SOURCES_MIN]

    def _stamped(self, kind: Kind) -> BusHandle | None:
        stamps = READERS[kind] & self._granted()
        return self._bus.stamped(min(stamps)) if stamps else None

    async def _keep_tail(self, kind: Kind, peer: PeerId) -> None:
        source = self._sources[kind, peer]
        wait_seconds = RETRY_SECONDS_MIN
        anew: set[str] = set()
        try:
            with source.scope:
                while True:
                    try:
                        anew = await self._tail(kind, peer, source, anew)
                        wait_seconds = RETRY_SECONDS_MIN
                    except CallError as error:
                        log.debug("No %s feeds from %s now: %s", kind, peer, error)
                        source.caught_up = source.has_spoken = False
                        if error.code == "unreachable":
                            return
                    await trio.sleep(wait_seconds)
                    wait_seconds = min(wait_seconds * 2, RETRY_SECONDS_MAX)
        finally:
            del self._sources[kind, peer]
            self.changes.beat()

    async def _tail(self, kind: Kind, peer: PeerId, source: Source, anew: set[str]) -> set[str]:
        """Follow one source until it ends, or until it turns out to hold another feed than ours under one name.

        `anew` are feeds to be sent from their first entry on. Returns the feeds that differ.
        """
        bus = self._stamped(kind)
        if bus is None:
            raise CallError("unreachable", "This node may not read these feeds any more.")
        here = position(self._store.reader, kind)
        request = Tail({**here.vector, **dict.fromkeys(anew, 0)}, here.hashes)
        async with bus.stream(TAILS[kind], request, to=peer) as batches:
            async for batch in batches:
                await self._take(kind, peer, batch)
                source.heads, source.has_spoken = batch.heads, True
                self._note()
                if different := self._different(batch) - anew:
                    return different
        return set()

    def _different(self, batch: FeedEntries) -> set[str]:
        """Feeds of which the source's last entry that counts is not ours."""
        reader = self._store.reader
        frozen = read_verdict(reader).frozen
        found: set[str] = set()
        for feed, theirs in batch.hashes.items():
            seq = batch.heads.get(feed, 0)
            if not 1 <= seq <= frozen.get(feed, NO_LIMIT):
                continue
            ours = next(read_entries(reader, feed, after=seq - 1), None)
            if ours is not None and ours.entry.seq == seq and ours.hash[:HASH_BYTES] != theirs:
                found.add(feed)
        return found

    async def _take(self, kind: Kind, peer: PeerId, batch: FeedEntries) -> None:
        aftermath = self._aftermath()
        if batch.proofs:
            taken = await ingest_proofs(self._store, batch.proofs, now=self._clock.now(), aftermath=aftermath)
            self._tell(peer, taken)
        if not batch.entries:
            return
        # One after the other: what comes early has to be seen waiting by whatever it waits for.
        async with self._taking:
            applied = await self._ingest(kind, peer, batch.entries, self.quarantine.take(kind))
            while applied:  # what came of one kind may be what another kind's have waited for
                applied = 0
                for other in KINDS:
                    if early := self.quarantine.take(other):
                        applied += await self._ingest(other, peer, (), early)

    async def _ingest(self, kind: Kind, peer: PeerId, entries: tuple[bytes, ...], waiting: list[Sealed]) -> int:
        taken = Ingested(early=waiting)  # unless it comes to that
        try:
            taken = await ingest(
                self._store, kind, entries, now=self._clock.now(), waiting=waiting, aftermath=self._aftermath()
            )
        finally:
            refused = {error.feed for error in taken.refused}
            self.quarantine.put(kind, [sealed for sealed in taken.early if sealed.entry.feed not in refused])
        self._tell(peer, taken)
        return taken.applied

    def _aftermath(self) -> Aftermath | None:
        genesis = self._store.reader.get(GENESIS_KEY)
        if genesis is None:
            return None
        author, now = Author(self._identity, genesis), self._clock.now()

        return lambda overlay, taken: author.say_again(overlay, taken, now)

    def _tell(self, peer: PeerId, taken: Ingested) -> None:
        """Say once what is wrong, and count it."""
        for error in taken.refused:
            flaw = error.reason
            self.refusals[flaw] = self.refusals.get(flaw, 0) + 1
            if flaw == "unknown_op":
                self.blocked[error.feed] = error.message
            self._once((flaw, error.feed), f"What {self._bus.name_of(peer)} sent was refused: {error.message}")
        for feed in taken.frozen:
            self.refusals["equivocation"] = self.refusals.get("equivocation", 0) + 1
            self._once(
                ("frozen", feed),
                f"{feed} has two different entries for one place: its author's key was copied, or its disk put back."
                " The feed is frozen, and the proof kept.",
            )
        for author in taken.ahead:
            self.ahead.add(author)
            self._once(
                ("ahead", author),
                f"The clock of {self._bus.name_of(PeerId(author))} is far ahead: set it. What it says waits until then,"
                " but for what it denies.",
            )

    def _once(self, about: tuple[str, str], message: str) -> None:
        if about not in self._told and len(self._told) < REFUSALS_TOLD_MAX:
            self._told.add(about)
            log.error("%s", message)

    # Acknowledging

    async def _acknowledge(self, links: Pulse) -> None:
        """Tell every auth node what is durable here."""
        telling: set[PeerId] = set()

        async def keep_telling(peer: PeerId) -> None:
            try:
                await self._tell_heads(peer)
            except CallError as error:
                log.debug("Nothing acknowledged to %s now: %s", peer, error)
            finally:
                telling.discard(peer)

        bus = self._bus.stamped("member")
        async with open_background() as nursery:
            while True:
                seen = links.count
                if self._granted():
                    for peer in bus.serving(ACKNOWLEDGE):
                        if peer != self._bus.me and peer not in telling:
                            telling.add(peer)
                            nursery.start_soon(keep_telling, peer)
                with trio.move_on_after(LOOK_SECONDS):
                    await links.after(seen)

    async def _tell_heads(self, peer: PeerId) -> None:
        """Until the peer is gone."""
        bus, commits = self._bus.stamped("member"), self._store.commits
        told: dict[str, int] | None = None
        while True:
            seen, heads = commits.count, self.heads()
            if heads != told:
                await bus.call(ACKNOWLEDGE, Heads(heads), to=peer)
                told = heads
            await commits.after(seen)
            await trio.sleep(ACKNOWLEDGE_SECONDS_MIN)

    # The future

    async def _keep_time(self) -> None:
        """Let entries count whose clock was too far ahead, once it is not; and mend what this node's own clock did."""
        while True:
            try:
                await self._store.commit(self._release)
            except CallError as error:  # a disk that is full for a while
                log.warning("What waits for its time could not be looked through: %s", error.message)
            if next(self._store.reader.scan(b"f/", limit=1), None) is None:
                self.ahead.clear()
            await trio.sleep(RELEASE_SECONDS)

    def _release(self, reader: Reader) -> tuple[Batch, None]:
        overlay, now = Overlay(reader), self._clock.now()
        taken = Ingested(voided=release(overlay, farthest(now)))
        if aftermath := self._aftermath():
            aftermath(overlay, taken)
        if "auth" in self._granted() and (genesis := overlay.get(GENESIS_KEY)) is not None:
            Author(self._identity, genesis).set_clock_right(overlay, now)
        return list(overlay.changes.items()), None


def has_applied(reader: Reader, heads: Mapping[str, int], kinds: tuple[Kind, ...] = KINDS) -> bool:
    """Whether a store holds all that these heads name of these kinds, as far as it ever will: frozen feeds end, and of
    a removed author's no more is kept than `VOID_ENTRIES_MAX` beyond what counts.
    """
    return not any(missing(reader, {feed: seq for feed, seq in heads.items() if feed.startswith(_prefixes(kinds))}))


def missing(reader: Reader, heads: Mapping[str, int]) -> Iterator[int]:
    """How many entries of each of these feeds are named and not here, though they could be."""
    verdict = read_verdict(reader)
    for feed, seq in heads.items():
        if is_feed(feed):
            end = min(verdict.frozen.get(feed, NO_LIMIT), verdict.limit(FeedId.parse(feed)) + VOID_ENTRIES_MAX)
            yield max(0, min(seq, end) - read_head(reader, feed).seq)


def _prefixes(kinds: tuple[Kind, ...]) -> tuple[str, ...]:
    return tuple(f"{kind}/" for kind in kinds)
