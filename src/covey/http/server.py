"""The listener: Hypercorn's protocols on our own sockets, with the two repairs that make it safe to stop.

Measured on Hypercorn 0.18 (docs/adr/0004-http-server.md):

1. A framework may cancel a request's tasks as soon as it sees `http.disconnect`, which Hypercorn emits while still
   inside the final `send`: keep-alive timers then never start and closing sockets never close. The last body message
   is shielded.
2. Hypercorn shields every write for ever: one client that stops reading would make shutdown hang. Each write has a
   deadline, and the end of the grace period cuts them all. Connections are counted and capped here too.
"""

import errno
import ipaddress
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState

from covey.errors import CallError
from covey.http.asgi import ASGIApp, Message, Receive, Scope, Send
from covey.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

HEADER_BYTES_MAX = 32 * 1024
PORT_DEFAULT = 26839


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[http]`."""

    listen: str = f"127.0.0.1:{PORT_DEFAULT}"
    host_names: tuple[str, ...] = ()
    allow_plain_http: bool = False
    connections_max: int = 2_000
    write_seconds_max: float = 20.0
    keep_alive_seconds: float = 75.0


class Listener:
    """One listener. `urls` are what a client on this machine would type; `ended` is set once it has drained."""

    def __init__(self, config: HttpConfig, metrics: Metrics) -> None:
        self.urls: tuple[str, ...] = ()
        self.ended = trio.Event()
        self._config = config
        self._metrics = metrics
        self._connections: set[_Connection] = set()
        self._empty = trio.Event()
        self._context = WorkerContext(None)

    async def serve(
        self,
        app: ASGIApp,
        *,
        stop: trio.Event,
        drain_until: Callable[[], float],
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until `stop` is set, then let running requests finish until trio's time `drain_until`, and return.

        Raises:
            CallError: `conflict` where the address is taken, `invalid` where it cannot be listened on.
        """
        host, port = parse_listen(self._config.listen)
        refuse_public(host, allow_plain_http=self._config.allow_plain_http)
        listeners = await _open_listeners(host, port)
        self.urls = tuple(_url(listener.socket.getsockname()) for listener in listeners)
        hypercorn = _hypercorn_config(self._config)
        wrapped = ASGIWrapper(_shield_last_message(app))  # type: ignore[arg-type]
        connect = partial(self._connect, wrapped, hypercorn)
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(partial(trio.serve_listeners, connect, listeners, handler_nursery=connections))
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel()
            await self._context.terminated.set()  # idle keep-alive connections close now
            if not self._connections:
                self._empty.set()
            with trio.CancelScope(deadline=drain_until()):
                await self._empty.wait()
            if self._connections:
                log.warning("Cutting %d connections that did not finish in time.", len(self._connections))
            connections.cancel_scope.cancel()
            for connection in self._connections:
                connection.cut()
        self.ended.set()

    async def _connect(self, app: AppWrapper, config: HypercornConfig, stream: Any) -> None:
        if len(self._connections) >= self._config.connections_max:
            await trio.aclose_forcefully(stream)
            return
        connection = _Connection(app, config, self._context, ConnectionState({}), stream)
        connection.write_seconds_max = self._config.write_seconds_max
        self._connections.add(connection)
        self._metrics.http_connections.set(len(self._connections))
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            if not self._connections and self._context.terminated.is_set():
                self._empty.set()
            self._metrics.http_connections.set(len(self._connections))


class _Connection(TCPServer):
    """Hypercorn's connection with a deadline on each write."""

    write_seconds_max: float = 20.0
    _writing: trio.CancelScope | None = None
    _is_cut = False

    def cut(self) -> None:
        """Give up the write under way, and those to come."""
        self._is_cut = True
        if self._writing is not None:
            self._writing.cancel()

    async def protocol_send(self, event: Event) -> None:
        """As Hypercorn's, but a write that takes too long closes the connection."""
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + self.write_seconds_max) as scope:
                if self._is_cut:
                    scope.cancel()
                self._writing = scope
                try:
                    await self.stream.send_all(event.data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    await self.protocol.handle(Closed())
                finally:
                    self._writing = None
        if scope.cancelled_caught:
            await trio.aclose_forcefully(self.stream)
            await self.protocol.handle(Closed())


def parse_listen(listen: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port` or `:port` (loopback) to its parts.

    Raises:
        CallError: `invalid`.
    """
    host, colon, port = listen.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not colon or not port.isdigit() or int(port) > 65_535:
        raise CallError(
            "invalid", f"The listen address {listen!r} is not host:port; write e.g. 127.0.0.1:{PORT_DEFAULT}."
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_public(host: str, *, allow_plain_http: bool) -> None:
    """Raise `invalid` for an address that others can reach, unless that was said outright."""
    if not is_loopback(host) and not allow_plain_http:
        raise CallError(
            "invalid",
            f"Listening on {host} would send keys and passwords over the network unencrypted. Listen on 127.0.0.1"
            " behind a proxy that speaks TLS, or say --allow-plain-http where the network itself is private.",
        )


async def _open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    try:
        return await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        inner = error.errno
        if inner == errno.EADDRINUSE:
            raise CallError(
                "conflict",
                f"The address {host}:{port} is in use. Stop what listens there, or choose another with"
                f" --listen {host}:{port + 1 if port < 65_535 else 0}.",
            ) from error
        raise CallError("invalid", f"Cannot listen on {host}:{port}: {error.strerror or error}.") from error


def _url(address: Iterable[Any]) -> str:
    host, port, *_ = address
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared with, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _hypercorn_config(config: HttpConfig) -> HypercornConfig:
    made = HypercornConfig()
    made.accesslog = None
    made.errorlog = logging.getLogger("covey.http")
    made.include_server_header = False
    made.keep_alive_timeout = config.keep_alive_seconds
    made.keep_alive_max_requests = 1_000_000
    made.h11_max_incomplete_size = HEADER_BYTES_MAX
    return made


def _shield_last_message(app: ASGIApp) -> ASGIApp:
    async def shielded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return

        async def send_shielded(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                with trio.CancelScope(shield=True):  # bounded by the write's own deadline
                    await send(message)
            else:
                await send(message)

        await app(scope, receive, send_shielded)

    return shielded
