"""The listener: our own sockets, counted connections (`covey.http.connection`), and an end that comes in time."""

import errno
import ipaddress
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec
import trio

from covey.errors import CallError
from covey.http.asgi import ASGIApp
from covey.http.connection import Connection, Terms
from covey.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

PORT_DEFAULT = 26839


class HttpConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[http]`."""

    listen: str = f"127.0.0.1:{PORT_DEFAULT}"
    host_names: tuple[str, ...] = ()
    allow_plain_http: bool = False
    connections_max: int = 12_000
    write_seconds_max: float = 20.0
    keep_alive_seconds: float = 75.0


class Listener:
    """One listener. `urls` are what a client on this machine would type; `ended` is set once it has drained."""

    def __init__(self, config: HttpConfig, metrics: Metrics) -> None:
        self.urls: tuple[str, ...] = ()
        self.ended = trio.Event()
        self._config = config
        self._metrics = metrics
        self._connections: set[Connection] = set()
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
            CallError: `conflict` where the address is taken, `invalid` where it cannot be listened on.
        """
        host, port = parse_listen(self._config.listen)
        refuse_public(host, allow_plain_http=self._config.allow_plain_http)
        listeners = await _open_listeners(host, port)
        self.urls = tuple(_url(listener.socket.getsockname()) for listener in listeners)
        terms = Terms(app, self._config.write_seconds_max, self._config.keep_alive_seconds)
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(
                    partial(trio.serve_listeners, partial(self._connect, terms), listeners, handler_nursery=connections)
                )
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel()
            self._draining = True
            await terms.close()
            for connection in self._connections:
                connection.close_if_idle()
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

    async def _connect(self, terms: Terms, stream: trio.SocketStream) -> None:
        if len(self._connections) >= self._config.connections_max:
            await trio.aclose_forcefully(stream)
            return
        connection = Connection(terms, stream)
        self._connections.add(connection)
        self._metrics.http_connections.set(len(self._connections))
        try:
            await connection.run()
        except Exception:
            log.exception("A connection failed; the others go on.")
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
    except UnicodeError as error:
        raise CallError("invalid", f"Cannot listen on {host}:{port}: that is no host name.") from error


def _url(address: Iterable[Any]) -> str:
    host, port, *_ = address
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared with, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
