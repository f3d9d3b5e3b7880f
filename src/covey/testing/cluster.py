"""A whole cluster in one process, for tests of roles and plug-ins, ours and others'.

    async def test_two_machines(autojump_clock):
        async with open_memory_cluster(seed=7) as cluster:
            alice = await cluster.found("alice")
            bob = await cluster.join("bob", run=[(MY_ROLE, MyConfig())])
            await cluster.linked()
            cluster.network.cut(alice.machine, bob.machine)

Every node has a real bus, store, identity and membership, keeps real links, and came in by a real invite; the first
runs the real auth role. Only the wire is memory (`covey.testing.memory_host`). What hashes passwords works in a thread,
which virtual time does not wait for: prefer keys to passwords in what you test.
"""

import random
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import get_args

import msgspec
import trio
import trio.testing

from covey.assets import assets_folder
from covey.backends.base import Plugged
from covey.bus.background import open_background
from covey.bus.bus import Bus, BusHandle
from covey.cluster.cluster import Cluster, NetworkConfig
from covey.cluster.invites import Invite, parse_invite
from covey.cluster.joining import join
from covey.contracts.auth import Actor
from covey.contracts.cluster import EXCHANGE_ADDRESSES, KnownAddresses
from covey.contracts.membership import INVITE_NODE, InviteNode
from covey.contracts.method import Party
from covey.errors import CallError
from covey.http.router import Router
from covey.node import needs_replica, serve_replica, unwrapped
from covey.recovery import Recovery
from covey.roles.auth.config import AuthConfig
from covey.roles.auth.role import ROLE as AUTH
from covey.roles.base import Lifecycle, NodeInfo, Parts, Role
from covey.store.identity import Identity
from covey.store.memory import MemoryStore
from covey.store.writer import Store, open_store
from covey.telemetry.metrics import Metrics
from covey.testing.memory_host import ADDRESS_PREFIX, MemoryHost, memory_hosts
from covey.transport.base import PeerId
from covey.transport.memory import PERFECT, LinkQuality, MemoryNetwork
from covey.version import __version__

RunRole = tuple[Role, msgspec.Struct]
"""A role with its settings."""
CHEAP_AUTH: RunRole = (AUTH, AuthConfig(argon2_memory_kibibytes=8, argon2_passes=1))
LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 0.1
"""Of real time."""


NOTHING_NEW = KnownAddresses({})
ANSWER_SECONDS = 2.0


class NotLinked(AssertionError):
    """Nodes that should have a link have none, or several; the message says which."""


class MemoryClock:
    """Wall time that runs with trio's, and jumps when told to."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._offset = now

    def now(self) -> float:
        """Unix seconds."""
        return self._offset + trio.current_time()

    def jump(self, seconds: float) -> None:
        """Somebody, or NTP, sets the clock."""
        self._offset += seconds


class MemoryDisk(MemoryStore):
    """Outlives the process that used it."""

    def close(self) -> None:
        """The next process opens it again."""

    def copy(self) -> "MemoryDisk":
        """As it is now, apart from this one from now on."""
        copied = MemoryDisk()
        copied.write(list(self.scan(b"")))
        return copied


@dataclass(eq=False)
class MemoryNode:
    """A machine with one node on it, running or not. What runs is replaced at every start.

    Args:
        name: the machine's; what the network calls the node is up to its auth node.
        machine: its address, and what the network's faults are about.
        identity: the node's key.
        disk: what survives a restart.
        folder: the data folder, for roles.
        run: the roles that its process runs.
        backends: for those roles.
        config: of its links.
        wish: what it would like the network to call it.
    """

    name: str
    machine: PeerId
    identity: Identity
    folder: Path
    config: NetworkConfig
    wish: str
    run: tuple[RunRole, ...] = ()
    backends: tuple[Plugged, ...] = ()
    clock: MemoryClock = field(default_factory=MemoryClock)
    slept_seconds: float = 0.0
    disk: MemoryDisk = field(default_factory=MemoryDisk)
    bus: Bus = field(init=False)
    store: Store = field(init=False)
    cluster: Cluster = field(init=False)
    metrics: Metrics = field(init=False)
    lifecycle: Lifecycle = field(init=False)
    host: MemoryHost | None = None
    running: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)

    @property
    def peer_id(self) -> PeerId:
        """Of its identity."""
        return self.identity.peer_id

    def boot_seconds(self) -> float:
        """A clock that runs through a suspend."""
        return trio.current_time() + self.slept_seconds

    def wake_after(self, seconds: float) -> None:
        """Its machine has been suspended for that long, and all others saw nothing of it."""
        self.slept_seconds += seconds

    @property
    def operator(self) -> BusHandle:
        """The bus with the rights of whoever runs this machine."""
        return self.bus.stamped("operator")

    def parts(self, role: Role) -> Parts:
        """What a role of this node gets."""
        stamp: Party = role.name if role.name in get_args(Party) else "member"  # type: ignore[assignment]
        return Parts(
            node=NodeInfo(self.name, __version__, int(self.clock.now()), tuple(one.name for one, _ in self.run)),
            identity=self.identity,
            bus=self.bus.stamped(stamp),
            store=self.store,
            http=Router(),
            metrics=self.metrics,
            clock=self.clock,
            lifecycle=self.lifecycle,
            folder=self.folder,
            assets=assets_folder(),
            backends=self.backends,
            cluster=self.cluster,
        )


class MemoryCluster:
    """Nodes on one network in memory. Made by `open_memory_cluster`.

    Args:
        network: where its faults are made: by `node.machine`.
        folder: of the nodes' data folders.
        config: of every node's links.
        seed: of every identity and every jitter.
        nursery: the nodes'.
    """

    def __init__(
        self, network: MemoryNetwork, folder: Path, config: NetworkConfig, seed: int, nursery: trio.Nursery
    ) -> None:
        self.network = network
        self.clock = MemoryClock()
        self.nodes: dict[str, MemoryNode] = {}
        self._folder = folder
        self._config = config
        self._random = random.Random(seed)  # noqa: S311 - a simulation
        self._nursery = nursery
        self._moves = count()
        self._patience = _Patience()

    async def found(
        self, name: str = "alice", *, run: Sequence[RunRole] = (), backends: Sequence[Plugged] = ()
    ) -> MemoryNode:
        """Start the first node, which founds the network; the auth role comes first where `run` has none."""
        roles = run if any(role.name == AUTH.name for role, _ in run) else (CHEAP_AUTH, *run)
        return await self.start(self.add(name, run=roles, backends=backends))

    async def join(
        self,
        name: str,
        *,
        roles: Sequence[str] = (),
        run: Sequence[RunRole] = (),
        backends: Sequence[Plugged] = (),
        issuer: MemoryNode | None = None,
    ) -> MemoryNode:
        """Invite a machine, let it join, and start it: `admit` and `start`. It may not be linked yet: see `linked`."""
        return await self.start(await self.admit(name, roles=roles, run=run, backends=backends, issuer=issuer))

    async def admit(
        self,
        name: str,
        *,
        roles: Sequence[str] = (),
        run: Sequence[RunRole] = (),
        backends: Sequence[Plugged] = (),
        issuer: MemoryNode | None = None,
    ) -> MemoryNode:
        """Let a machine join, by the real protocol, and leave it stopped.

        Args:
            name: what it would like to be called.
            roles: what it is admitted with; default: those that it runs, or `inference`.
            run: what its process runs.
            backends: for those roles.
            issuer: who invites; default: the first node.
        """
        issuer = issuer or next(iter(self.nodes.values()))
        wanted = roles or [role.name for role, _ in run] or ["inference"]
        made = await issuer.operator.call(INVITE_NODE, InviteNode(Actor(), tuple(wanted)))
        node = self.add(name, run=run, backends=backends)
        await self.use_invite(node, parse_invite(made.token))
        return node

    async def use_invite(self, node: MemoryNode, invite: Invite) -> None:
        """What `covey join` does on a machine whose node is not running. Errors as `covey.cluster.joining.join`."""
        async with AsyncExitStack() as stack:
            metrics = Metrics()
            store = await stack.enter_async_context(open_store(node.disk, metrics, in_thread=False))
            opener = memory_hosts(self.network, lambda: node.machine, lambda _: None)
            host = await stack.enter_async_context(
                opener(node.identity, "none", is_member=lambda _: False, on_rpc=_hang_up, on_join=_hang_up)
            )
            welcome = await join(host, store, invite, name=node.wish, version=__version__, now=self.clock.now())
            cluster = Cluster(Bus(node.peer_id, metrics), store, node.identity, node.config, opener, self.clock)
            await cluster.keep_roles(welcome.roles)
            await cluster.book.learn({PeerId(invite.issuer): invite.addresses})
            await cluster.book.learn({PeerId(peer): found for peer, found in welcome.addresses.items()})

    def add(
        self,
        name: str,
        *,
        identity: Identity | None = None,
        run: Sequence[RunRole] = (),
        backends: Sequence[Plugged] = (),
    ) -> MemoryNode:
        """A machine with nothing on its disk, stopped; it gets a new identity where none is given.

        `ValueError` for a name that another one has.
        """
        if name in self.nodes:
            raise ValueError(f"there is a machine called {name} already")
        folder, key = self._folder / name, identity or Identity(self._random.randbytes(32))
        folder.mkdir()
        machine = PeerId(ADDRESS_PREFIX + name)
        node = MemoryNode(name, machine, key, folder, self._config, name, tuple(run), tuple(backends), self.clock)
        self.nodes[name] = node
        return node

    def copy(self, node: MemoryNode, name: str) -> MemoryNode:
        """Another machine with a copy of a node's disk and key, stopped: a restored image, or a thief's."""
        copied = self.add(name, identity=node.identity, run=node.run, backends=node.backends)
        copied.disk = node.disk.copy()
        return copied

    # Processes

    async def start(self, node: MemoryNode) -> MemoryNode:
        """Start a node's process; its roles are ready when this returns.

        Raises:
            ValueError: it runs already.
            CallError: it refused; that it was removed from the network, for one.
        """
        if node.running:
            raise ValueError(f"{node.name} runs already")
        node.scope, node.ended, node.running = trio.CancelScope(), trio.Event(), True
        with self._patience, unwrapped():
            await self._nursery.start(self._run, node, name=f"the node {node.name}")
        return node

    async def stop(self, node: MemoryNode) -> None:
        """End it in order, as SIGTERM does; returns once it is gone."""
        node.scope.cancel()
        await node.ended.wait()

    async def kill(self, node: MemoryNode) -> None:
        """As SIGKILL does: nobody is told. What it has written stays on its disk."""
        self.network.kill(node.machine)
        await self.stop(node)

    async def lose_power(self, node: MemoryNode) -> None:
        """As pulling the plug does: its connections are not even broken, and the others wait for it in vain."""
        self.network.vanish(node.machine)
        await self.stop(node)

    async def restart(self, node: MemoryNode) -> MemoryNode:
        """Kill, and start again at once with the same disk and key."""
        await self.kill(node)
        return await self.start(node)

    async def move(self, node: MemoryNode) -> None:
        """A running node's machine gets another address; what runs to the old one leads nowhere, and nobody is told."""
        node.machine = PeerId(f"{ADDRESS_PREFIX}{node.name}@{next(self._moves)}")
        if node.host is not None:
            await node.host.move(node.machine)

    async def _run(self, node: MemoryNode, *, task_status: trio.TaskStatus[None]) -> None:
        def opened(host: MemoryHost) -> None:
            node.host = host

        async def drained() -> None:
            node.lifecycle.draining = True
            node.lifecycle.stop.set()
            node.bus.drain()

        seed = self._random.getrandbits(32)
        try:
            with node.scope:
                async with AsyncExitStack() as stack:
                    node.metrics, node.lifecycle = Metrics(), Lifecycle()
                    node.bus = Bus(node.peer_id, node.metrics, name=node.name)
                    node.store = await stack.enter_async_context(open_store(node.disk, node.metrics, in_thread=False))
                    await stack.enter_async_context(node.bus.open())
                    opener = memory_hosts(self.network, lambda: node.machine, opened)
                    node.cluster = Cluster(
                        node.bus,
                        node.store,
                        node.identity,
                        node.config,
                        opener,
                        node.clock,
                        now=node.boot_seconds,
                        seed=seed,
                    )
                    for role, settings in node.run:
                        await stack.enter_async_context(role.open(settings, node.parts(role)))
                    Recovery(
                        node.bus.stamped("member"),
                        node.store,
                        node.identity,
                        node.clock.now,
                        has_auth=any(role.name == AUTH.name for role, _ in node.run),
                        promoted=node.cluster.complete_as_it_is,
                    )
                    if needs_replica([role.name for role, _ in node.run], node.bus):
                        serve_replica(node.bus, node.store, node.cluster, node.clock, node.metrics)
                    await stack.enter_async_context(node.cluster.running(drained))
                    task_status.started()
                    await trio.sleep_forever()
        finally:
            node.running, node.host = False, None
            node.ended.set()

    # Looking

    def members(self) -> list[MemoryNode]:
        """The nodes that run and are members, as they see it themselves."""
        return [node for node in self.nodes.values() if node.running and node.cluster.own and not node.cluster.removed]

    def trouble(self, nodes: Sequence[MemoryNode] | None = None) -> list[str]:
        """What keeps nodes (default: all running members) from having exactly one link each, both ways."""
        everybody = self.members() if nodes is None else list(nodes)
        found: list[str] = []
        for node in everybody:
            up = {link.peer for link in node.cluster.links() if link.path != "down"}
            others = {other.peer_id: other for other in everybody if other is not node}
            found += [f"{node.name} has no link to {others[peer].name}" for peer in others.keys() - up]
            found += [f"{node.name} is linked to {peer}" for peer in up - others.keys()]
            for other in others.values():
                if node.name < other.name and (wrong := _connection_trouble(node, other)):
                    found.append(f"{wrong} between {node.name} and {other.name}")
        return found

    async def linked(self, nodes: Sequence[MemoryNode] | None = None, *, within_seconds: float = 60.0) -> float:
        """Wait until each of the nodes (default: all running members) has one link to each other, and is answered.

        Returns:
            After how many seconds they had.

        Raises:
            NotLinked: it did not happen within that time.
        """
        began = trio.current_time()
        while True:
            trouble, took = self.trouble(nodes), trio.current_time() - began
            if not trouble and not (trouble := await self._silence(self.members() if nodes is None else nodes)):
                return took
            if took > within_seconds:
                raise NotLinked("; ".join(trouble))
            await trio.sleep(LOOK_SECONDS)

    async def _silence(self, nodes: Sequence[MemoryNode]) -> list[str]:
        """Who does not answer whom: a link may be up and its other end gone."""
        found: list[str] = []

        async def ask(node: MemoryNode, other: MemoryNode) -> None:
            try:
                bus = node.bus.stamped("member")
                await bus.call(EXCHANGE_ADDRESSES, NOTHING_NEW, to=other.peer_id, timeout_seconds=ANSWER_SECONDS)
            except CallError as error:
                found.append(f"{other.name} does not answer {node.name}: {error}")

        async with trio.open_nursery() as nursery:
            for node in nodes:
                for other in nodes:
                    if other is not node:
                        nursery.start_soon(ask, node, other)
        return found


@asynccontextmanager
async def open_memory_cluster(
    *, seed: int = 0, quality: LinkQuality = PERFECT, config: NetworkConfig | None = None
) -> AsyncGenerator[MemoryCluster, None]:
    """An empty cluster: `found` its first node. Leaving stops every node. Use it with `autojump_clock`.

    Args:
        seed: of identities, jitter and the network; what trio's scheduler does is its own affair.
        quality: of links between machines that have none of their own.
        config: of every node's links; default: what `[network]` has by default.
    """
    network = MemoryNetwork(seed, quality)
    with tempfile.TemporaryDirectory(prefix="covey-cluster-") as folder:
        async with open_background() as nursery:
            cluster = MemoryCluster(network, Path(folder), config or NetworkConfig(), seed, nursery)
            yield cluster
            for node in cluster.nodes.values():
                if node.running:
                    await cluster.stop(node)


def _connection_trouble(node: MemoryNode, other: MemoryNode) -> str:
    here = node.host.connections(other.peer_id) if node.host else set[object]()
    there = other.host.connections(node.peer_id) if other.host else set[object]()
    if here != there:
        return "a connection that one end has closed"
    return "" if len(here) == 1 else f"{len(here)} connections"


class _Patience:
    """While somebody holds it, a virtual clock leaps only where nothing happens for a while: threads may work."""

    def __init__(self) -> None:
        self._holders = 0
        self._threshold_seconds = 0.0

    def __enter__(self) -> None:
        clock = trio.lowlevel.current_clock()
        self._holders += 1
        if isinstance(clock, trio.testing.MockClock) and self._holders == 1:
            self._threshold_seconds = clock.autojump_threshold
            clock.autojump_threshold = max(PATIENCE_SECONDS, self._threshold_seconds)

    def __exit__(self, *_: object) -> None:
        clock = trio.lowlevel.current_clock()
        self._holders -= 1
        if isinstance(clock, trio.testing.MockClock) and self._holders == 0:
            clock.autojump_threshold = self._threshold_seconds


async def _hang_up(peer: PeerId, stream: trio.abc.Stream) -> None:
    await trio.aclose_forcefully(stream)
