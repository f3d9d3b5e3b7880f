"""The composition root, and the only wiring: opens what the roles need, in order, and closes it in reverse."""

import logging
import socket
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, get_args

import msgspec
import trio

from covey import config as configuration
from covey.about import About
from covey.assets import assets_folder
from covey.bus.background import open_background
from covey.bus.bus import Bus, BusHandle
from covey.client import Client
from covey.cluster.cluster import Cluster
from covey.cluster.host import open_host
from covey.config import Config, backends_of
from covey.contracts.auth import AUTHORIZE, SET_UP_SECRET, TAKE_RECOVERY_KEY, VERIFY, Actor, AuthorizeActor
from covey.contracts.method import Nothing, Party
from covey.control import open_control
from covey.draining import Draining
from covey.errors import CallError, describe, leaves
from covey.folders import default_data_folder
from covey.http.access import AccessLog
from covey.http.asgi import Scope
from covey.http.credential import credential
from covey.http.health import PATHS as HEALTH_PATHS
from covey.http.health import HealthApp
from covey.http.router import Router
from covey.http.server import HttpConfig, Listener, is_loopback, parse_listen
from covey.recovery import Recovery
from covey.roles.base import Lifecycle, NodeInfo, Parts, Role
from covey.store.denied import HeededRows
from covey.store.feeds import Clock, SystemClock
from covey.store.files import size_of
from covey.store.identity import Identity, open_identity
from covey.store.leveldb import DATABASE, open_leveldb
from covey.store.replica import Replica
from covey.store.writer import Store, open_store
from covey.telemetry.collectors import LinkSample, ReplicationSample, StoreSample
from covey.telemetry.loop_lag import measure_loop_lag
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId
from covey.upkeep import Upkeep
from covey.version import __version__

log = logging.getLogger(__name__)

DRAIN_SHARE = 0.7
"""How much of `shutdown_seconds` running requests get; the rest is for closing the roles and the store."""


class RoleCrashed(Exception):
    """A role failed while it opened, ran or closed; `__cause__` is why. The node has ended."""

    def __init__(self, role: str, cause: BaseException) -> None:
        self.role = role
        super().__init__(f"The role {role} failed: {describe(cause)}")


class Node:
    """A running node. Made by `open_node`."""

    def __init__(self, info: NodeInfo, parts: "_Base", roles_to_run: Callable[[], tuple[str, ...]]) -> None:
        self._roles_to_run = roles_to_run
        self.name = info.name
        self.roles = info.roles
        self.peer_id: PeerId = parts.identity.peer_id
        self.urls: tuple[str, ...] = ()
        self._base = parts

    @property
    def app(self) -> Router:
        """The ASGI application of this node's roles, for mounting in a server of your own. It wants keys, as ever."""
        return self._base.router

    @property
    def bus(self) -> BusHandle:
        """The bus, with the operator's rights: whoever holds the process holds the node."""
        return self._base.bus.stamped("operator")

    @property
    def client(self) -> Client:
        """A typed client on that bus."""
        return Client(self.bus)

    @property
    def chat(self) -> Callable[..., Any]:
        """Short for `client.chat`."""
        return self.client.chat

    def stop(self) -> None:
        """Take no new work from now on; whoever holds the block then leaves it."""
        self._base.begin_stop()

    @property
    def is_stopping(self) -> bool:
        """Whether it takes no new work any more."""
        return self._base.lifecycle.stop.is_set()

    async def wait_stopped(self) -> None:
        """Until `stop` was called."""
        await self._base.lifecycle.stop.wait()

    async def promoted(self) -> tuple[str, ...]:
        """Wait until this machine is admitted with roles that would run after a start, and do not now; returns them."""
        changes, seen = self._base.cluster.membership.changes, -1
        while True:
            seen = await changes.after(seen)
            if gained := tuple(role for role in self._roles_to_run() if role not in self.roles):
                return gained

    async def set_up_url(self) -> str:
        """The one-time link for making the first administrator; "" where there is one, or no auth or web role here."""
        if not self.urls or "web" not in self.roles or self._base.bus.served(SET_UP_SECRET.name) is None:
            return ""
        secret = (await self.bus.call(SET_UP_SECRET, Nothing())).secret
        # In the fragment, which browsers never send: no log on the way can hold it.
        return f"{self.urls[0]}/setup#{secret}" if secret else ""

    async def take_recovery_key(self) -> str:
        """The recovery key of the network that this node has just founded, for this once; "" ever after."""
        if self._base.bus.served(TAKE_RECOVERY_KEY.name) is None:
            return ""
        return (await self.bus.call(TAKE_RECOVERY_KEY, Nothing())).recovery_key


class _Base:
    """What lies under the roles."""

    def __init__(self, config: Config, folder: Path, identity: Identity, store: Store, metrics: Metrics) -> None:
        self.folder = folder
        self.identity = identity
        self.store = store
        self.metrics = metrics
        self.bus = Bus(identity.peer_id, metrics, name=config.node.name or socket.gethostname())
        self.router = Router(config.http.host_names)
        metrics.links.read = self._read_links
        self.lifecycle = Lifecycle()
        self.clock = SystemClock()
        self.cluster = Cluster(self.bus, store, identity, config.network, open_host, self.clock)
        metrics.replication.read = self._read_replication
        self.access_log = config.telemetry.access_log
        self._drain_seconds = config.node.shutdown_seconds * DRAIN_SHARE

    def _read_links(self) -> list[LinkSample]:
        return [
            LinkSample(
                node=link.name,
                up=link.path != "down",
                relayed=link.path == "relayed",
                rtt_seconds=link.rtt_seconds,
                reconnects=link.reconnects,
                received_bytes=link.received_bytes,
                sent_bytes=link.sent_bytes,
                calls=link.calls_made + link.calls_served,
            )
            for link in self.cluster.links()
        ]

    def _read_replication(self) -> ReplicationSample:
        return trio.from_thread.run_sync(self._sample_replication)

    def _sample_replication(self) -> ReplicationSample:
        sync, lease = self.cluster.sync, self.cluster.lease.state
        return ReplicationSample(
            lease_seconds_left=lease.seconds_left if lease.needed else None,
            lag_seconds=sync.lag_seconds(),
            behind_entries=sync.behind(),
            quarantined_entries=len(sync.quarantine),
            refusals=dict(sync.refusals),
        )

    def begin_stop(self) -> None:
        """No new work from now on; what runs may finish for a while."""
        if not self.lifecycle.stop.is_set():
            self.lifecycle.draining = True
            self.lifecycle.drain_until = trio.current_time() + self._drain_seconds
            self.lifecycle.stop.set()
            self.bus.drain()

    async def drained(self) -> None:
        """Until nothing runs here for other nodes, or the time for that is over."""
        self.begin_stop()
        with trio.move_on_at(self.lifecycle.drain_until):
            await self.cluster.idle()


@asynccontextmanager
async def open_node(
    config: Config | Mapping[str, Any] | Path | None = None,
    *,
    roles: Sequence[str] | None = None,
    data: Path | None = None,
    listen: bool = False,
) -> AsyncGenerator[Node, None]:
    """Run a node as long as the block: its roles are ready inside, drained and closed outside.

    Closed by default: with `listen` false nothing listens on the network, and the application (`node.app`) that you
    may mount in a server of your own wants API keys, as ever.

    Args:
        config: a loaded `Config`, plain tables as in `roles.toml`, or a file's path; `None`: the user's own file.
        roles: instead of the configuration's.
        data: the data folder; `None`: the user's own.
        listen: open the HTTP listener of `[http]`.

    Raises:
        CallError: the configuration, the data folder or the address is refused; the message says what to do.
        RoleCrashed: a role failed.
    """
    checked = _config(config, roles)
    folder = data or default_data_folder()
    with unwrapped():
        async with AsyncExitStack() as stack:
            base = await _open_base(stack, checked, folder)
            names = roles_to_run(checked, base.cluster)
            _check_roles(base.cluster, names, alone=not listen)
            ordered = in_order([_known_role(checked, name)[0] for name in names])
            info = NodeInfo(
                base.bus.name_of(base.bus.me), __version__, int(base.clock.now()), tuple(role.name for role in ordered)
            )
            node = Node(info, base, partial(roles_to_run, checked, base.cluster))
            base.metrics.build.info({"version": __version__, "roles": ",".join(node.roles)})
            About(
                base.bus.stamped("member"),
                info,
                base.lifecycle,
                lambda: node.urls,
                lambda: base.cluster.membership.network_id,
            )
            Upkeep(base.bus.stamped("member"), base.store, base.identity, base.clock.now)
            Recovery(
                base.bus.stamped("member"),
                base.store,
                base.identity,
                base.clock.now,
                has_auth="auth" in node.roles,
                promoted=base.cluster.complete_as_it_is,
            )
            Draining(base.bus, base.lifecycle, base.cluster.membership, has_auth="auth" in node.roles)
            for role in ordered:
                await stack.enter_async_context(_open_role(role, checked, base, info))
            if needs_replica(node.roles, base.bus):
                serve_replica(base.bus, base.store, base.cluster, base.clock, base.metrics)
            await stack.enter_async_context(base.cluster.running(base.drained))
            await stack.enter_async_context(open_control(base.bus, folder, base.lifecycle))
            stack.callback(base.begin_stop)
            if listen:
                node.urls = await _open_listeners(stack, checked, base)
            yield node


def roles_to_run(config: Config, cluster: Cluster) -> tuple[str, ...]:
    """Those of the configuration; else those that this machine joined with and was promoted to since; else all."""
    if config.node.roles:
        return config.node.roles
    joined_with, own = cluster.roles(), cluster.own
    if not joined_with:
        return configuration.DEFAULT_ROLES
    admitted = own.roles if own is not None and not own.removed else ()
    return (*joined_with, *(role for role in admitted if role not in joined_with and role in config.roles))


def needs_replica(roles: Sequence[str], bus: Bus) -> bool:
    """Whether this node checks keys by its own copy of the feeds. An auth role serves VERIFY once it has all keys."""
    return "gateway" in roles and "auth" not in roles and bus.served(VERIFY.name) is None


def serve_replica(bus: Bus, store: Store, cluster: Cluster, clock: Clock, metrics: Metrics) -> None:
    """Serve VERIFY and DENIALS from the feeds that this gateway's store holds, so that callers need no auth node."""
    rows = HeededRows(store.reader)
    Replica(store, rows, clock, cluster.lease.check, metrics).serve(bus.stamped("gateway"))


def _check_roles(cluster: Cluster, names: Sequence[str], *, alone: bool) -> None:
    """A machine runs the roles it was admitted with; an auth node may take on more, and founds a network by itself.

    Args:
        cluster: what this machine belongs to.
        names: the roles it is to run.
        alone: it is embedded and listens nowhere, so it may do without a network.
    """
    me = cluster.own
    if cluster.removed:
        raise CallError("forbidden", cluster.removed, reason="removed")
    if me is None:
        if "auth" not in names and not alone and not cluster.membership.network_id:
            raise CallError(
                "not_found",
                "This machine belongs to no network yet. On the first one, run: covey invite"
                f" --role {' --role '.join(names)}   Then, here: covey join TOKEN",
                reason="no_network",
            )
        return
    missing = [name for name in names if name not in me.roles]
    if missing and "auth" not in me.roles:
        raise CallError(
            "forbidden",
            f"This machine was admitted as {', '.join(me.roles)}, not as {', '.join(missing)}. Ask for another invite"
            f" with --role {' --role '.join(missing)}, or leave that role out.",
        )


def _known_role(config: Config, name: str) -> tuple[Role, msgspec.Struct]:
    try:
        return config.roles[name]
    except KeyError:
        raise CallError("invalid", f"Name the role {name!r} in [node] roles: it is not one of Covey's own.") from None


async def _open_base(stack: AsyncExitStack, config: Config, folder: Path) -> _Base:
    metrics = Metrics()
    # The store's lock comes first: a second process on one folder touches nothing.
    kv = await trio.to_thread.run_sync(open_leveldb, folder)
    stack.callback(kv.close)
    identity = await trio.to_thread.run_sync(open_identity, folder)
    store = await stack.enter_async_context(open_store(kv, metrics))
    base = _Base(config, folder, identity, store, metrics)
    await stack.enter_async_context(base.bus.open())
    (await stack.enter_async_context(open_background())).start_soon(measure_loop_lag, metrics.loop_lag)
    metrics.store.read = lambda: StoreSample(*size_of(folder / DATABASE))
    return base


@asynccontextmanager
async def _open_role(role: Role, config: Config, base: _Base, info: NodeInfo) -> AsyncGenerator[None, None]:
    settings = config.roles[role.name][1]
    stamp: Party = role.name if role.name in get_args(Party) else "member"  # type: ignore[assignment]
    parts = Parts(
        node=info,
        identity=base.identity,
        bus=base.bus.stamped(stamp),
        store=base.store,
        http=base.router,
        metrics=base.metrics,
        clock=base.clock,
        lifecycle=base.lifecycle,
        folder=base.folder,
        assets=assets_folder(),
        cluster=base.cluster,
        backends=tuple(config.backends[name] for name in backends_of(settings)),
    )
    passing: BaseException | None = None
    try:
        async with role.open(settings, parts):
            log.debug("The role %s is ready.", role.name)
            try:
                yield
            except BaseException as error:
                passing = error  # from within the block: another role's, or the program's own
                raise
    except trio.Cancelled:
        raise
    except CallError:
        raise  # already says what to do
    except Exception as error:
        if error is passing:
            raise
        if isinstance(passing, Exception) and not {*map(id, leaves(passing))}.isdisjoint(map(id, leaves(error))):
            raise passing from passing.__cause__  # the role's nursery wrapped it
        raise RoleCrashed(role.name, error) from error


async def _open_listeners(stack: AsyncExitStack, config: Config, base: _Base) -> tuple[str, ...]:
    """Open the listener of `[http]`, where a role has mounted something, and that of `[telemetry]`."""
    telemetry = config.telemetry.listen
    serves_pages = base.router.mounted
    health = HealthApp(base.metrics, partial(_missing, base.lifecycle), partial(_guard_metrics, config, base))
    health_router = Router(config.http.host_names) if telemetry else base.router
    for path in HEALTH_PATHS:
        health_router.mount(path, health)
    nursery = await stack.enter_async_context(open_background())
    opened: list[Listener] = []
    if serves_pages:
        opened.append(await _listen(nursery, config.http, base, base.router))
    if telemetry:
        apart = msgspec.structs.replace(config.http, listen=telemetry)
        opened.append(await _listen(nursery, apart, base, health_router))
    stack.push_async_callback(_drain, base, opened)
    return opened[0].urls if serves_pages else ()


async def _listen(nursery: trio.Nursery, config: HttpConfig, base: _Base, router: Router) -> Listener:
    listener = Listener(config, base.metrics)
    app = AccessLog(router, base.metrics, routes=HEALTH_PATHS, writes=base.access_log)
    lifecycle = base.lifecycle
    await nursery.start(partial(listener.serve, app, stop=lifecycle.stop, drain_until=lambda: lifecycle.drain_until))
    return listener


async def _drain(base: _Base, listeners: list[Listener]) -> None:
    """Before the listeners' tasks are cancelled: let what runs finish."""
    base.begin_stop()
    for listener in listeners:
        await listener.ended.wait()


def _missing(lifecycle: Lifecycle) -> dict[str, str]:
    if lifecycle.draining:
        return {"node": "it is stopping" if lifecycle.stop.is_set() else "it is drained"}
    return dict(lifecycle.missing)


async def _guard_metrics(config: Config, base: _Base, scope: Scope) -> None:
    """On a public listener, or behind a proxy, metrics are for administrators: they tell models, load and versions."""
    listen = config.telemetry.listen or config.http.listen
    if is_loopback(parse_listen(listen)[0]) and (config.telemetry.listen or not config.http.trusted_proxies):
        return
    identity = await base.bus.stamped("member").call(AUTHORIZE, AuthorizeActor(Actor(key=credential(scope))))
    if identity.role != "admin":
        raise CallError("forbidden", "Metrics on a public address need an administrator's key.")


def _config(config: Config | Mapping[str, Any] | Path | None, roles: Sequence[str] | None) -> Config:
    overrides = {"node": {"roles": list(roles)}} if roles is not None else {}
    if isinstance(config, Config):
        if roles is not None:
            raise CallError("invalid", "Give the roles in the configuration, or beside a file or tables: not twice.")
        return config
    if config is None or isinstance(config, Path):
        return configuration.load(config, overrides)
    return configuration.build(config, overrides=overrides)


def in_order(roles: Sequence[Role]) -> list[Role]:
    """Sorted so that each comes after those it needs, as far as they are here; otherwise as given.

    Raises:
        CallError: `invalid` where two need each other.
    """
    by_name = {role.name: role for role in roles}
    graph = {role.name: [name for name in role.after if name in by_name] for role in roles}
    try:
        return [by_name[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError as error:
        raise CallError("invalid", f"These roles need each other first: {' -> '.join(error.args[1])}.") from error


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise the sole exception of a group instead of the group: callers catch `CallError` and `RoleCrashed` plainly."""
    try:
        yield
    except ExceptionGroup as group:
        inner = list(leaves(group))
        if len(inner) > 1:
            raise
        raise inner[0] from inner[0].__cause__
