"""How this node's copy of the feeds does, and whether all auth nodes agree: REPLICATION and REPLICATIONS."""

import logging
import math
from functools import partial

import trio

from covey.bus.bus import Bus
from covey.bus.caller import Caller
from covey.cluster.leasing import Leasing
from covey.cluster.membership import Membership
from covey.contracts.feeds import Kind
from covey.contracts.method import Nothing
from covey.contracts.replication import (
    REPLICATION,
    REPLICATIONS,
    FeedStatus,
    KindStatus,
    LeaseStatus,
    Replications,
    ReplicationStatus,
    SourceStatus,
)
from covey.errors import CallError
from covey.store.entries import FeedId
from covey.store.feed_log import VERDICT_KEY, read_heads, read_verdict
from covey.store.membership import DEPENDS_ON
from covey.store.sync import Sync
from covey.store.view import View
from covey.store.writer import Store
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

ASK_SECONDS_MAX = 4.0
"""For each other auth node."""


class Replication:
    """Serves both."""

    def __init__(self, bus: Bus, store: Store, membership: Membership, sync: Sync, lease: Leasing) -> None:
        self._bus = bus
        self._store = store
        self._membership = membership
        self._sync = sync
        self._lease = lease
        self._hashes: dict[Kind, tuple[object, str]] = {}
        self._hashing = trio.Lock()

    def serve(self) -> None:
        """From now on."""
        self._bus.serve(REPLICATION, self._replication)
        self._bus.serve(REPLICATIONS, self._replications)

    async def status(self) -> ReplicationStatus:
        """This node's own."""
        sync, own = self._sync, self._membership.get(self._bus.me)
        return ReplicationStatus(
            node=self._bus.name_of(self._bus.me),
            peer=str(self._bus.me),
            roles=own.roles if own else (),
            kinds=tuple([await self._kind(kind) for kind in sync.kinds()]),
            lease=lease_status(self._lease),
            behind_entries=sync.behind(),
            lag_seconds=sync.lag_seconds(),
            quarantined_entries=len(sync.quarantine),
            refused_entries=dict(sync.refusals),
            blocked=dict(sync.blocked) if sync.blocking() else {},
            ahead=tuple(sorted(self._membership.name(PeerId(author)) for author in sync.ahead)),
        )

    async def _kind(self, kind: Kind) -> KindStatus:
        reader = self._store.reader
        frozen = read_verdict(reader).frozen
        feeds = [
            FeedStatus(feed, self._membership.name(PeerId(FeedId.parse(feed).author)), head.seq, feed in frozen)
            for feed, head in read_heads(reader, f"{kind}/").items()
        ]
        sources = [
            SourceStatus(self._membership.name(peer), source.caught_up)
            for (of_kind, peer), source in self._sync.sources().items()
            if of_kind == kind
        ]
        return KindStatus(
            kind,
            await self._hash(kind),
            tuple(sorted(feeds, key=lambda one: (one.author, one.feed))),
            tuple(sorted(sources, key=lambda one: one.node)),
        )

    async def _hash(self, kind: Kind) -> str:
        """The view's; read once for each state of what it follows from."""
        async with self._hashing:
            with self._store.reader.snapshot() as snapshot:
                state = (
                    [read_heads(snapshot, f"{other}/") for other in DEPENDS_ON[kind]],
                    snapshot.get(VERDICT_KEY),
                    [key for key, _ in snapshot.scan(b"f/")],
                )
                if kind not in self._hashes or self._hashes[kind][0] != state:
                    read = partial(View(snapshot).hash, kind)
                    found = await trio.to_thread.run_sync(read) if self._store.in_thread else read()
                    self._hashes[kind] = (state, found)
            return self._hashes[kind][1]

    async def _replication(self, caller: Caller, request: Nothing) -> ReplicationStatus:
        """Serve REPLICATION."""
        return await self.status()

    async def _replications(self, caller: Caller, request: Nothing) -> Replications:
        """Serve REPLICATIONS."""
        others = sorted(self._membership.authors - {self._bus.me}, key=self._membership.name)
        found: dict[PeerId, ReplicationStatus] = {}

        async def ask(peer: PeerId) -> None:
            try:
                bus = self._bus.stamped("member")
                found[peer] = await bus.call(REPLICATION, Nothing(), to=peer, timeout_seconds=ASK_SECONDS_MAX)
            except CallError as error:
                log.info("%s did not say how its feeds do: %s", self._membership.name(peer), error)

        async with trio.open_nursery() as nursery:
            for peer in others:
                nursery.start_soon(ask, peer)
            own = await self.status()
        nodes = (own, *(found[peer] for peer in others if peer in found))
        return Replications(nodes, tuple(self._membership.name(peer) for peer in others if peer not in found))


def lease_status(lease: Leasing) -> LeaseStatus:
    """A lease, for people."""
    state = lease.state
    endless = not state.needed or math.isinf(state.seconds_left)
    return LeaseStatus(state.needed, None if endless else state.seconds_left, state.why)
