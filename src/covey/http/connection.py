"""One connection: Hypercorn's HTTP/1.1 on a stream of ours, repaired where a client could hold it, or its shutdown, up.

What was measured on Hypercorn 0.18 and is mended here (docs/adr/0004-http-server.md):

1. A framework may cancel a request's tasks as soon as it sees `http.disconnect`, which Hypercorn emits while still
   inside the final `send`: connections then neither go idle nor close. Every write is shielded, its lock included.
2. Hypercorn shields every write for ever: one client that stops reading makes shutdown hang. Each write has a deadline,
   and `cut` ends them all.
3. Ten unread pieces of a body, and the message that the client has gone waits for ever behind them, in that shielded
   scope. Here it closes the queue instead.
4. An answer before the whole body was read closed the socket over unread bytes: the kernel resets it, and the client
   may never see the answer. A small rest is read first; before a large one the connection is announced to close, and
   what still comes is thrown away for a moment.
5. Sending to a client that has gone did nothing, for ever. Here it raises `ClientGone`.
6. Upgrades to HTTP/2 in plain text and WebSockets came with the protocol. Nothing here speaks them.

It also spares each request two tasks and two locks for the idle timer, and sends head, body and end in one write,
without a deadline and a round of the scheduler where the kernel takes it whole.
"""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Request
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from covey.http.asgi import ASGIApp, Message
from covey.http.exchange import Exchange

log = logging.getLogger(__name__)

HEADER_BYTES_MAX = 32 * 1024
RECEIVE_BYTES = 64 * 1024
WRITES_AT_ONCE = 8
"""How many writes that need not wait follow each other before the other tasks have a turn."""
LINGER_SECONDS = 2.0
"""How long a closing connection throws away what its client still sends."""


@dataclass
class Terms:
    """What all connections of a listener share. Set `closing` and no answer keeps its connection any more."""

    app: ASGIApp
    write_seconds_max: float
    keep_alive_seconds: float
    context: WorkerContext = field(default_factory=lambda: WorkerContext(None))
    config: "_Config" = field(default_factory=lambda: _Config())

    def __post_init__(self) -> None:
        self.config.accesslog = None
        self.config.errorlog = log
        self.config.include_server_header = False
        self.config.keep_alive_max_requests = 1_000_000
        self.config.h11_max_incomplete_size = HEADER_BYTES_MAX

    async def close(self) -> None:
        """From now on every answer is its connection's last."""
        await self.context.terminated.set()


class _Config(Config):
    """Hypercorn's settings; the Date header is made once a second."""

    _made_at = -1
    _made: "list[tuple[bytes, bytes]]"

    def response_headers(self, protocol: str) -> "list[tuple[bytes, bytes]]":
        now = int(time.time())
        if now != self._made_at:
            self._made_at, self._made = now, super().response_headers(protocol)
        return self._made


class Connection:
    """One client. `run` returns when it is closed."""

    def __init__(self, terms: Terms, stream: trio.SocketStream) -> None:
        self._terms = terms
        self._stream = stream
        self._sending = trio.Lock()
        self._writing: trio.CancelScope | None = None
        self._held: list[bytes] | None = None
        self._is_cut = False
        self._is_idle = True
        self._is_lingering = False
        self._writes = 0
        self._reading = trio.CancelScope(deadline=trio.current_time() + terms.keep_alive_seconds)

    async def run(self) -> None:
        """Serve until either side closes."""
        try:
            client = self._stream.socket.getpeername()[:2]
            server = self._stream.socket.getsockname()[:2]
            async with trio.open_nursery() as nursery:
                self._protocol = _Protocol(self._terms, _Tasks(nursery, self), client, server, self._protocol_send)
                await self._read()
        except OSError:
            pass  # the client was gone before it was known
        finally:
            self._close()

    def close_if_idle(self) -> None:
        """Close between two requests; during one, its answer is the last."""
        if self._is_idle:
            self._reading.cancel()

    def cut(self) -> None:
        """Give up the write under way, and those to come."""
        self._is_cut = True
        if self._writing is not None:
            self._writing.cancel()

    def hold(self) -> None:
        """Keep what is sent from now on, for one write with what follows."""
        if self._held is None:
            self._held = []

    async def flush(self) -> None:
        """Write what was kept, and keep no more."""
        held, self._held = self._held, None
        if held:
            await self._write(b"".join(held))

    async def _read(self) -> None:
        with self._reading, contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                data = await self._receive()
                if not self._is_lingering:
                    await self._protocol.handle(RawData(data))
                if not data:
                    break
        await self._protocol.handle(Closed())

    async def _receive(self) -> bytes:
        # Clients answer no sooner than they are answered, so that trio's first attempt to read is nearly always one
        # in vain; this waits first.
        while self._stream.socket.fileno() >= 0:
            await trio.lowlevel.wait_readable(self._stream.socket)
            try:
                return os.read(self._stream.socket.fileno(), RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error
        raise trio.ClosedResourceError

    async def _protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            if self._held is not None:
                self._held.append(event.data)
            elif event.data:
                await self._write(event.data)
            return
        await self.flush()
        if isinstance(event, Updated):
            self._is_idle = event.idle
            seconds = self._terms.keep_alive_seconds if event.idle else float("inf")
            self._reading.deadline = trio.current_time() + seconds
        elif isinstance(event, Closed):
            if self._protocol.connection.their_state is h11.DONE:
                self._close()
            else:
                self._is_lingering = True
                self._reading.deadline = trio.current_time() + LINGER_SECONDS
                with contextlib.suppress(OSError):
                    self._stream.socket.shutdown(socket.SHUT_WR)
            await self._protocol.handle(Closed())

    async def _write(self, data: bytes) -> None:
        if not self._is_cut and not self._sending.locked():
            data = self._write_at_once(data)
            if not data:
                # Without a wait, so that an answer costs no round of the scheduler; not so often that one connection,
                # whose application writes and writes, could keep the others waiting.
                self._writes = (self._writes + 1) % WRITES_AT_ONCE
                if not self._writes:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return
        # Shielded, the wait for the lock too: there is no other point in the final send where a cancellation could
        # strike, and leave the connection neither idle nor closed. Bounded by the deadline, and by `cut`.
        deadline = trio.current_time() + self._terms.write_seconds_max
        with trio.CancelScope(shield=True, deadline=deadline) as scope:
            try:
                self._sending.acquire_nowait()  # spares the scheduler a round, nearly always
            except trio.WouldBlock:
                await self._sending.acquire()
            if self._is_cut:
                scope.cancel()
            self._writing = scope
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self._protocol.handle(Closed())
            finally:
                self._writing = None
                self._sending.release()
        if scope.cancelled_caught:
            self._close()
            await self._protocol.handle(Closed())

    def _write_at_once(self, data: bytes) -> bytes:
        """Write what the kernel takes; the rest is returned, and so is all of it where `send_all` will say why not."""
        try:
            return data[os.write(self._stream.socket.fileno(), data) :]
        except OSError:
            return data

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.socket.shutdown(socket.SHUT_WR)
        self._stream.socket.close()


class _Parser(h11.Connection):
    """h11, stricter: what it lets pass as long as it comes in one piece, or leaves to the server."""

    def next_event(self) -> Any:
        """As h11's; `RemoteProtocolError` carries the status."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            if event.http_version not in (b"1.0", b"1.1"):
                raise h11.RemoteProtocolError("only HTTP/1 is spoken here", error_status_hint=505)
            if len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers) > HEADER_BYTES_MAX:
                raise h11.RemoteProtocolError("the header is too large", error_status_hint=431)
            if {b"content-length", b"transfer-encoding"} <= {name for name, _ in event.headers}:
                # RFC 9112, 6.1: two lengths are how requests are smuggled past a proxy.
                raise h11.RemoteProtocolError("Content-Length beside Transfer-Encoding", error_status_hint=400)
        return event


class _Protocol(H11Protocol):
    """Hypercorn's HTTP/1.1, without its upgrades."""

    def __init__(
        self,
        terms: Terms,
        tasks: "_Tasks",
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
        send: Callable[[Event], Awaitable[None]],
    ) -> None:
        super().__init__(
            terms.app,  # type: ignore[arg-type] # passed through to _Tasks
            terms.config,
            terms.context,
            tasks,  # type: ignore[arg-type]
            ConnectionState({}),
            False,  # noqa: FBT003 - ssl
            client,
            server,
            send,
        )
        self.connection = _Parser(h11.SERVER, max_incomplete_event_size=HEADER_BYTES_MAX)

    async def _check_protocol(self, event: h11.Request) -> None:
        pass

    async def _create_stream(self, request: h11.Request) -> None:
        self.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1


class _Tasks:
    """Runs the application for each request; in the shape of Hypercorn's task group."""

    def __init__(self, nursery: trio.Nursery, connection: Connection) -> None:
        self._nursery = nursery
        self._connection = connection

    async def spawn_app(
        self, app: Any, config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Message], Awaitable[None]]:
        """Start it; returns how it is told of the body and of its client's leaving."""
        exchange = Exchange(scope, send, self._connection)
        self._nursery.start_soon(exchange.run, app)
        return exchange.put
