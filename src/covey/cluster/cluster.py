"""The node's links to other machines: asleep until the first invite or join, then for good.

libp2p is imported only when they wake: it costs 0.3 s and 47 MB, which a laptop on its own never pays.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Protocol

import msgspec
import trio

from covey.bus.background import open_background
from covey.bus.bus import Bus
from covey.bus.caller import Caller
from covey.cluster.address_book import AddressBook
from covey.cluster.boot_clock import BootClock, boot_seconds
from covey.cluster.exchange import Exchange
from covey.cluster.joining import JoinDialer, answer_join
from covey.cluster.leasing import Leasing
from covey.cluster.link import LinkConfig
from covey.cluster.links import Host, Links
from covey.cluster.membership import Membership
from covey.cluster.relaying import Relayer, Relaying
from covey.cluster.replication import Replication
from covey.cluster.standing import Standing
from covey.contracts.cluster import LINKS, NOTICE, LinkList, LinkStatus, Notice
from covey.contracts.joining import JoinAnswer, JoinRequest
from covey.contracts.method import Nothing
from covey.contracts.replication import HEADS, TAIL_SECRET
from covey.errors import CallError
from covey.store.feed_log import GENESIS_KEY
from covey.store.feeds import Clock
from covey.store.genesis import read_genesis
from covey.store.identity import Identity
from covey.store.rows import MemberRow
from covey.store.sync import Sync
from covey.store.writer import Store
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

PORT_DEFAULT = 26840
LOOK_AT_INTERFACES_SECONDS = 2.0
HEAR_SECONDS_MAX = 3.0
ASK_BEFORE_WRITING_SECONDS_MAX = 3.0
"""How long an auth node's first write waits for another one to say what it wrote before: its disk may have been put
back to an older state, and no sequence number may be used twice."""
Welcomer = Callable[[PeerId, JoinRequest], Awaitable[JoinAnswer]]


class NetworkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table `[network]`. `listen` "": all interfaces, port 26840 or a free one that is kept; "none": dial only."""

    listen: str = ""
    announce: tuple[str, ...] = ()
    discovery: bool = True
    dial_seconds_max: float = 5.0
    redial_seconds_min: float = 0.2
    redial_seconds_max: float = 30.0
    ping_seconds: float = 5.0
    dead_seconds: float = 15.0

    @property
    def links(self) -> LinkConfig:
        """What `Links` needs of it."""
        return LinkConfig(
            dial_seconds_max=self.dial_seconds_max,
            redial_seconds_min=self.redial_seconds_min,
            redial_seconds_max=self.redial_seconds_max,
            ping_seconds=self.ping_seconds,
            dead_seconds=self.dead_seconds,
        )


class ClusterHost(Host, JoinDialer, Relayer, Protocol):
    """What the cluster runs on."""


class HostOpener(Protocol):
    """Opens the host, with what it asks and whom it tells."""

    def __call__(
        self,
        identity: Identity,
        listen: str,
        *,
        announce: Sequence[str] = (),
        network_id: str = "",
        is_member: Callable[[PeerId], bool],
        on_rpc: Callable[[PeerId, trio.abc.Stream], Awaitable[None]],
        on_join: Callable[[PeerId, trio.abc.Stream], Awaitable[None]],
        on_hint: Callable[[PeerId, tuple[str, ...]], Awaitable[None]] | None = None,
    ) -> AbstractAsyncContextManager[ClusterHost]:
        """`listen`: `host:port`, or "none". `on_hint`: look for members of the network on the local one, and tell."""
        ...


class Cluster:
    """The links, once they are awake. Implements `covey.roles.base.ClusterDoor`.

    Args:
        now: a clock that runs through a suspend, for leases.
        seed: of the redials' jitter.
    """

    def __init__(
        self,
        bus: Bus,
        store: Store,
        identity: Identity,
        config: NetworkConfig,
        open_host: HostOpener,
        clock: Clock,
        *,
        now: BootClock = boot_seconds,
        seed: int | None = None,
    ) -> None:
        self.membership = Membership(store)
        self.book = AddressBook(store)
        self._bus = bus
        self._store = store
        self._identity = identity
        self._config = config
        self._open_host = open_host
        self.sync = Sync(bus, store, identity, clock, lambda: self.membership.granted(bus.me))
        self.lease = Leasing(bus, self.membership, self.sync, now)
        self._replication = Replication(bus, store, self.membership, self.sync, self.lease)
        self._seed = seed
        self._local = store.local("cluster")
        self._standing = Standing(self.membership, self.book, self._local, bus.me)
        self._exchange = Exchange(bus, self.membership, self.book, self._own_addresses)
        self._welcome: Welcomer | None = None
        self._host: ClusterHost | None = None
        self._links: Links | None = None
        self._nursery: trio.Nursery | None = None
        self._waking = trio.Lock()
        self._asleep = trio.Event()
        """Set while no host runs that has to close first."""
        self._asleep.set()
        self._may_write = False
        bus.known_name = self.membership.known_name

    # The door of roles

    async def open(self) -> tuple[str, ...]:
        """See `ClusterDoor.open`."""
        await self.wake()
        host = self._host
        if host is None or not host.addresses:
            raise CallError(
                "conflict", 'This node only dials out ([network] listen = "none"): invite from one that listens.'
            )
        return host.addresses

    def serve_joins(self, welcome: Welcomer) -> None:
        """See `ClusterDoor.serve_joins`."""
        self._welcome = welcome

    def addresses(self) -> dict[str, tuple[str, ...]]:
        """See `ClusterDoor.addresses`."""
        return self._exchange.known()

    async def hear_all(self, *, but: str) -> None:
        """See `ClusterDoor.hear_all`."""
        bus = self._bus.stamped("auth")

        async def hear(peer: PeerId) -> None:
            try:
                await self.sync.applied((await bus.call(HEADS, Nothing(), to=peer)).heads)
            except CallError as error:
                log.warning("%s did not say what it holds: %s", bus.name_of(peer), error.message)

        with trio.move_on_after(HEAR_SECONDS_MAX):
            async with trio.open_nursery() as nursery:
                for peer in bus.serving(HEADS):
                    if peer not in (but, self._bus.me):
                        nursery.start_soon(hear, peer)

    async def caught_up(self) -> None:
        """See `ClusterDoor.caught_up`."""
        if self._may_write or not self._other_authors():
            return
        with trio.move_on_after(ASK_BEFORE_WRITING_SECONDS_MAX):
            await self._until(lambda: self.sync.caught_up)
        self._may_write = True

    def labels(self, peer: PeerId) -> frozenset[str]:
        """See `ClusterDoor.labels`."""
        return self.membership.labels(peer)

    @property
    def is_complete(self) -> bool:
        """See `ClusterDoor.is_complete`."""
        genesis = self._store.reader.get(GENESIS_KEY)
        founded = genesis is not None and read_genesis(genesis).founder == self._bus.me
        return founded or bool(self._local.get(b"complete"))

    async def complete(self) -> None:
        """See `ClusterDoor.complete`."""
        if not self.is_complete:
            await self._until(lambda: self.sync.caught_up)
            await self._local.put(b"complete", b"1")

    async def complete_as_it_is(self) -> None:
        """Nobody is left who holds more: what is here is all that there is, unless some other auth node is live."""
        live = {*self._bus.stamped("member").serving(TAIL_SECRET)}
        if not live & (self.membership.authors - {self._bus.me}):
            await self._local.put(b"complete", b"1")

    async def let_back_in(self) -> None:
        """An auth node says that this machine is a member, whatever it heard before."""
        await self._standing.lift()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while True:
            seen = self.sync.changes.count
            if holds():
                return
            await self.sync.changes.after(seen)

    def _other_authors(self) -> bool:
        rows = self.membership.rows().items()
        return any("auth" in row.roles and not row.removed and peer != self._bus.me for peer, row in rows)

    def _own_addresses(self) -> tuple[str, ...]:
        return () if self._host is None else self._host.addresses

    # Its life

    @property
    def awake(self) -> bool:
        """Whether there are links to keep."""
        return self._host is not None

    def links(self) -> tuple[LinkStatus, ...]:
        """Every link that is kept, up or down, by name."""
        links = () if self._links is None else self._links.all()
        found = [
            link.status(self.membership.name(link.peer), self._roles_of(link.peer), self._labels_of(link.peer))
            for link in links
        ]
        return tuple(sorted(found, key=lambda link: link.name))

    @property
    def removed(self) -> str:
        """Why this machine is no member any more, and what to do; "" while it is one."""
        return self._standing.removed

    @property
    def own(self) -> MemberRow | None:
        """This machine's own admission; `None` where it belongs to no network."""
        return self.membership.get(self._bus.me)

    def roles(self) -> tuple[str, ...]:
        """What this machine joined its network as; () where it founded one, or has none."""
        kept = self._local.get(b"roles")
        return () if kept is None else msgspec.msgpack.decode(kept, type=tuple[str, ...])

    async def keep_roles(self, roles: tuple[str, ...]) -> None:
        """Remember what this machine joined as, so that later starts need no `--role`."""
        await self._local.put_all([(b"roles", msgspec.msgpack.encode(roles)), (b"awake", b"1")])

    @asynccontextmanager
    async def running(self, drained: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
        """Keep the links while the block runs; wakes by itself where this node was in a cluster before.

        Args:
            drained: waited for before the links are cut.
        """
        self._bus.serve(LINKS, self._list_links)
        self._bus.serve(NOTICE, self._notice)
        self._replication.serve()
        async with open_background() as nursery:
            self._nursery = nursery
            nursery.start_soon(self.membership.watch)
            nursery.start_soon(self._standing.watch)
            nursery.start_soon(self._wake_when_back)
            if self._local.get(b"awake") or len(self.membership.rows()) > 1:
                await self.wake()
            try:
                yield
            finally:
                with trio.CancelScope(shield=True):  # bounded by the grace period
                    await drained()
                self._nursery = None

    async def idle(self) -> None:
        """Until no call of another node runs here."""
        while any(link.calls_served for link in self.links()):  # noqa: ASYNC110 - only while the node stops
            await trio.sleep(0.02)

    async def wake(self) -> None:
        """Listen and link, from now on and after every restart; waking twice is no error."""
        async with self._waking:
            if self._host is not None:
                return
            if self._nursery is None:
                raise CallError("draining", "This node is stopping.")
            if self.removed:
                raise CallError("forbidden", self.removed, reason="removed")
            await self._nursery.start(self._run_host)
            # Not before: a port that is taken must not keep the node from starting the next time.
            await self._local.put(b"awake", b"1")

    async def _wake_when_back(self) -> None:
        """Link again whenever this machine, removed, is let back in."""
        seen = self._standing.back.count
        while True:
            seen = await self._standing.back.after(seen)
            await self._asleep.wait()
            if not self.removed:
                await self.wake()

    async def _run_host(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with self._open_any_port() as host:
            self._host, self._asleep = host, trio.Event()
            await self._remember_port(host)
            links = Links(
                self._bus,
                host,
                self.membership,
                self.book,
                self._config.links,
                doubted=self._doubted,
                seed=self._seed,
            )
            self._links = links
            try:
                async with open_background() as nursery:
                    nursery.start_soon(links.run)
                    nursery.start_soon(self.sync.run, links.changes)
                    nursery.start_soon(self.lease.run, links.changes)
                    nursery.start_soon(self._exchange.run)
                    nursery.start_soon(Relaying(host, links.neighbours, self.book.get).run)
                    nursery.start_soon(self._watch_interfaces, host, links)
                    task_status.started()
                    await self._standing.over.wait()
            finally:
                self._host = self._links = None
        self._asleep.set()

    @asynccontextmanager
    async def _open_any_port(self) -> AsyncGenerator[ClusterHost, None]:
        """On the configured address; else the port it had before, else 26840, else a free one."""
        kept = (self._local.get(b"port") or b"").decode()
        tries = [self._config.listen] if self._config.listen else [f"0.0.0.0:{kept or PORT_DEFAULT}", "0.0.0.0:0"]
        async with AsyncExitStack() as stack:
            for listen in tries:
                opening = self._open_host(
                    self._identity,
                    listen,
                    announce=self._config.announce,
                    network_id=self.membership.network_id,
                    is_member=self.membership.is_member,
                    on_rpc=self._on_rpc,
                    on_join=self._on_join,
                    on_hint=self._on_hint if self._config.discovery else None,
                )
                try:
                    host = await stack.enter_async_context(opening)
                except CallError as error:
                    if error.code != "conflict" or listen == tries[-1]:
                        raise
                    log.info("%s Taking a free port.", error.message)
                    continue
                yield host
                return

    async def _remember_port(self, host: ClusterHost) -> None:
        for address in host.addresses:
            _, tcp, rest = address.partition("/tcp/")
            if tcp and not self._config.listen:
                await self._local.put(b"port", rest.partition("/")[0].encode())
                return

    # What the host tells

    async def _on_rpc(self, peer: PeerId, stream: trio.abc.Stream) -> None:
        if self._links is None:
            await trio.aclose_forcefully(stream)
            return
        await self._links.accept(peer, stream)

    async def _on_join(self, peer: PeerId, stream: trio.abc.Stream) -> None:
        if self._welcome is None:
            await trio.aclose_forcefully(stream)
            return
        await answer_join(peer, stream, self._welcome)

    async def _on_hint(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        if peer != self._bus.me and self.membership.is_member(peer):
            await self.book.learn({peer: addresses})

    async def _watch_interfaces(self, host: ClusterHost, links: Links) -> None:
        """A machine that has moved to another network finds its links dead at once, not after `dead_seconds`."""
        known = host.addresses
        while True:
            await trio.sleep(LOOK_AT_INTERFACES_SECONDS)
            if (now := host.addresses) != known:
                log.info("This machine can now be reached at: %s", ", ".join(now) or "no address")
                known = now
                await links.check()

    async def _doubted(self, peer: PeerId, error: CallError) -> None:
        if self._host is not None:
            await self._standing.doubt(self._host, peer, error)

    def _roles_of(self, peer: PeerId) -> tuple[str, ...]:
        row = self.membership.get(peer)
        return row.roles if row else ()

    def _labels_of(self, peer: PeerId) -> tuple[str, ...]:
        return tuple(sorted(self.membership.labels(peer)))

    # What it serves

    async def _list_links(self, caller: Caller, request: Nothing) -> LinkList:
        """Serve LINKS."""
        own = self.own
        labels = self._labels_of(self._bus.me)
        return LinkList(self.links(), roles=own.roles if own else (), removed=self.removed, labels=labels)

    async def _notice(self, caller: Caller, request: Notice) -> Nothing:
        """Serve NOTICE."""
        log.error("The node %s says: %s", self.membership.name(caller.peer), " ".join(request.message[:500].split()))
        return Nothing()
