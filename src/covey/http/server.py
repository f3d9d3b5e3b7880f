"""The listener: our own sockets, counted connections (`covey.http.connection`), and an end that comes in time."""

import errno
import ipaddress
import logging
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import partial
from typing import Annotated, Any

import msgspec
import trio

from covey.errors import CallError
from covey.http.asgi import ASGIApp
from covey.http.connection import Connection, Http1Terms
from covey.http.cors import Cors, check_origin
from covey.http.descriptors import allow_connections
from covey.http.http2 import Http2Connection
from covey.http.proxies import Proxies, ProxyHeader
from covey.http.terms import Served
from covey.http.tls import HANDSHAKE_SECONDS_MAX, Certificate, Handshake
from covey.http.wire import PlainWire, Wire
from covey.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

PORT_DEFAULT = 26839


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[http]`."""

    listen: str = f"127.0.0.1:{PORT_DEFAULT}"
    host_names: tuple[str, ...] = ()
    tls_certificate_file: str = ""
    tls_key_file: str = ""
    trusted_proxies: tuple[str, ...] = ()
    proxy_header: ProxyHeader = "x-forwarded-for"
    allow_plain_http: bool = False
    cors_origins: tuple[str, ...] = ()
    connections_max: int = 12_000
    head_seconds_max: float = 15.0
    write_seconds_max: float = 20.0
    keep_alive_seconds: Annotated[float, msgspec.Meta(gt=0)] = 75.0

    def __post_init__(self) -> None:
        """`ValueError` for what can be seen to be wrong without opening anything."""
        if bool(self.tls_certificate_file) != bool(self.tls_key_file):
            raise ValueError("tls_certificate_file and tls_key_file go together")
        Proxies(self.trusted_proxies)
        for origin in self.cors_origins:
            check_origin(origin)

    @property
    def is_private(self) -> bool:
        """Whether what goes over the network is encrypted, here or by a proxy, or need not be."""
        return self.allow_plain_http or bool(self.tls_certificate_file) or bool(self.trusted_proxies)


class Listener:
    """One listener. `urls` are what a client on this machine would type; `ended` is set once it has drained."""

    def __init__(self, config: HttpConfig, metrics: Metrics) -> None:
        self.urls: tuple[str, ...] = ()
        self.ended = trio.Event()
        self._config = config
        self._metrics = metrics
        self._connections: set[Served] = set()
        self._connections_max = config.connections_max
        self._certificate: Certificate | None = None
        self._empty = trio.Event()
        self._draining = False

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
            CallError: `conflict` where the address is taken, `invalid` where it cannot be listened on, or the files
                of TLS cannot be used.
        """
        host, port = parse_listen(self._config.listen)
        refuse_public(host, allow_plain_http=self._config.is_private)
        if self._config.tls_certificate_file:
            self._certificate = Certificate(self._config.tls_certificate_file, self._config.tls_key_file)
        listeners = await _open_listeners(host, port)
        scheme = "https" if self._certificate else "http"
        self.urls = tuple(_url(scheme, listener.socket.getsockname()) for listener in listeners)
        self._connections_max = allow_connections(self._config.connections_max)
        terms = self._terms(app)
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                if self._certificate:
                    accepting.start_soon(self._certificate.watch)
                accepting.start_soon(terms.sweep)
                accepting.start_soon(
                    partial(trio.serve_listeners, partial(self._connect, terms), listeners, handler_nursery=connections)
                )
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel()
            await self._drain(terms, drain_until)
            connections.cancel_scope.cancel()
            for connection in self._connections:
                connection.cut()
        self.ended.set()

    def _terms(self, app: ASGIApp) -> Http1Terms:
        config = self._config
        return Http1Terms(
            Cors(app, config.cors_origins) if config.cors_origins else app,
            config.write_seconds_max,
            config.keep_alive_seconds,
            config.head_seconds_max,
            Proxies(config.trusted_proxies, config.proxy_header),
        )

    async def _drain(self, terms: Http1Terms, until: Callable[[], float]) -> None:
        self._draining = True
        await terms.close()
        for connection in self._connections:
            connection.close_if_idle()
        if not self._connections:
            self._empty.set()
        with trio.CancelScope(deadline=until()):
            await self._empty.wait()
        if self._connections:
            log.warning("Cutting %d connections that did not finish in time.", len(self._connections))

    async def _connect(self, terms: Http1Terms, stream: trio.SocketStream) -> None:
        if len(self._connections) >= self._connections_max:
            if not terms.idle:
                await trio.aclose_forcefully(stream)
                return
            # A client that comes to ask goes before one that only keeps its place.
            longest = next(iter(terms.idle))
            del terms.idle[longest]
            longest.close_if_idle()
        try:
            wire: Wire | None = PlainWire(stream)
            if self._certificate:
                handshake = Handshake(stream, self._certificate.context)
                with self._counted(handshake):
                    terms.is_idle(handshake, HANDSHAKE_SECONDS_MAX)
                    try:
                        wire = await handshake.run()
                    finally:
                        terms.is_busy(handshake)
            if wire is None:
                return
            connection = Http2Connection(terms, wire) if wire.protocol == "h2" else Connection(terms, wire)
            with self._counted(connection):
                await connection.run()
        except Exception:
            log.exception("A connection failed; the others go on.")

    @contextmanager
    def _counted(self, connection: Served) -> Generator[None, None, None]:
        self._connections.add(connection)
        self._metrics.http_connections.set(len(self._connections))
        try:
            yield
        finally:
            self._connections.discard(connection)
            if not self._connections and self._draining:
                self._empty.set()
            self._metrics.http_connections.set(len(self._connections))


def parse_listen(listen: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port` or `:port` (loopback) to its parts.

    Raises:
        CallError: `invalid`.
    """
    host, colon, port = listen.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
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
            f"Listening on {host} would send keys and passwords over the network unencrypted. Give [http]"
            " tls_certificate_file and tls_key_file, or trusted_proxies where a proxy speaks TLS; or say"
            " --allow-plain-http where the network itself is private.",
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
    except UnicodeError as error:
        raise CallError("invalid", f"Cannot listen on {host}:{port}: that is no host name.") from error


def _url(scheme: str, address: Iterable[Any]) -> str:
    host, port, *_ = address
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared with, not bound
        host = "127.0.0.1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
