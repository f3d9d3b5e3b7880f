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
6. Upgrades to HTTP/2 in plain text and WebSockets came with the protocol. Nothing here speaks them; HTTP/2 comes in
   by TLS alone (`covey.http.http2`).
7. A head could take as long as an idle connection may live. It has a limit of its own, and is answered 408 then.
8. While it answered a request behind which more had come, it did not read, and did not see its client leave
   (`covey.http.pipelining`).

It also spares each request two tasks and two locks for the idle timer, and sends head, body and end in one write,
without a deadline and a round of the scheduler where the kernel takes it whole.
"""

import contextlib
import logging
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

from covey.http.asgi import Message
from covey.http.exchange import Exchange
from covey.http.parser import StrictParser, is_absolute, split_absolute
from covey.http.pipelining import ReadAhead
from covey.http.terms import Terms
from covey.http.wire import BROKEN, Wire
from covey.http.writing import Writer

log = logging.getLogger(__name__)

LINGER_SECONDS = 2.0
"""How long a closing connection throws away what its client still sends."""


@dataclass
class Http1Terms(Terms):
    """With what Hypercorn wants to know."""

    context: WorkerContext = field(default_factory=lambda: WorkerContext(None))
    config: "_Config" = field(default_factory=lambda: _Config())

    def __post_init__(self) -> None:
        self.config.accesslog = None
        self.config.errorlog = log
        self.config.keep_alive_max_requests = 1_000_000
        self.config.own_headers = self.own_headers

    async def close(self) -> None:
        """From now on every answer is its connection's last."""
        self.closing = True
        await self.context.terminated.set()


class _Config(Config):
    """Hypercorn's settings."""

    own_headers: "Callable[[], list[tuple[bytes, bytes]]]"

    def response_headers(self, protocol: str) -> "list[tuple[bytes, bytes]]":
        return self.own_headers()


class Connection:
    """One client. `run` returns when it is closed."""

    def __init__(self, terms: Http1Terms, wire: Wire) -> None:
        self._terms = terms
        self._wire = wire
        self._writer = Writer(wire, terms.write_seconds_max, self._failed)
        self._held: list[bytes] | None = None
        self._is_idle = True
        self._is_within_head = False
        self._is_lingering = False
        self._is_leaving = False
        self._reading = trio.CancelScope()

    async def run(self) -> None:
        """Serve until either side closes."""
        self._terms.is_idle(self)
        try:
            client = self._wire.socket.getpeername()[:2]
            server = self._wire.socket.getsockname()[:2]
            async with trio.open_nursery() as nursery:
                tasks = _Tasks(nursery, self, self._terms)
                is_tls = self._wire.scheme == "https"
                self._protocol = _Protocol(self._terms, tasks, is_tls, client, server, self._protocol_send)
                # Hypercorn's protocol of events names `__init__`, too, which nobody calls any more.
                ahead = ReadAhead(self._wire, self._protocol.keep)
                self._protocol.can_read = ahead  # pyright: ignore[reportAttributeAccessIssue]
                await self._read()
        except OSError:
            pass  # the client was gone before it was known
        finally:
            self._terms.is_busy(self)
            await self._wire.close()

    def close_if_idle(self) -> None:
        """Close between two requests; during one, its answer is the last."""
        if self._is_idle:
            self._is_leaving = True
            self._reading.cancel()

    def expire(self) -> None:
        """Close: it has been idle for too long, or waits for the rest of a head."""
        self._reading.cancel()

    def cut(self) -> None:
        """Give up the write under way, and those to come."""
        self._writer.cut()

    def hold(self) -> None:
        """Keep what is sent from now on, for one write with what follows."""
        if self._held is None:
            self._held = []

    async def flush(self) -> None:
        """Write what was kept, and keep no more."""
        held, self._held = self._held, None
        if held:
            await self._writer.write(b"".join(held))

    async def _failed(self) -> None:
        await self._protocol.handle(Closed())

    async def _read(self) -> None:
        with self._reading, contextlib.suppress(*BROKEN):
            while True:
                data = await self._wire.receive()
                if not self._is_lingering:
                    await self._protocol.handle(RawData(data))
                    if self._is_idle:
                        self._note_head()
                if not data:
                    break
        if self._reading.cancelled_caught and self._is_within_head and not self._is_leaving:
            await self._protocol.refuse(408)
        await self._protocol.handle(Closed())

    def _note_head(self) -> None:
        """A head that has begun to come has to end in time, however many pieces it comes in."""
        if not self._is_within_head and self._protocol.is_within_head:
            self._is_within_head = True
            self._reading.deadline = trio.current_time() + self._terms.head_seconds_max

    async def _protocol_send(self, event: Event) -> None:
        if isinstance(event, RawData):
            if self._held is not None:
                self._held.append(event.data)
            elif event.data:
                await self._writer.write(event.data)
            return
        await self.flush()
        if isinstance(event, Updated):
            self._is_idle = event.idle
            if self._is_within_head:  # its deadline, no more
                self._is_within_head = False
                self._reading.deadline = float("inf")
            if event.idle:
                self._terms.is_idle(self)
            else:
                self._terms.is_busy(self)
        elif isinstance(event, Closed):
            if self._protocol.connection.their_state is h11.DONE:
                await self._wire.close()
            else:
                self._is_lingering = True
                self._reading.deadline = trio.current_time() + LINGER_SECONDS
                self._wire.end_writing()
            await self._protocol.handle(Closed())


class _Protocol(H11Protocol):
    """Hypercorn's HTTP/1.1, without its upgrades."""

    def __init__(
        self,
        terms: Http1Terms,
        tasks: "_Tasks",
        is_tls: bool,  # noqa: FBT001 - one of Hypercorn's nine
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
            is_tls,
            client,
            server,
            send,
        )
        self.connection = StrictParser()

    @property
    def is_within_head(self) -> bool:
        """Whether a request has begun to come, and its head is not complete."""
        return isinstance(self.connection, StrictParser) and self.connection.is_within_head

    def keep(self, data: bytes) -> int:
        """What comes while a request is answered; returns how much of it waits."""
        self.connection.receive_data(data)
        return len(self.connection.trailing_data[0])

    async def refuse(self, status: int) -> None:
        """Answer a request that never came whole, if nothing was answered yet."""
        if self.connection.our_state is h11.IDLE:
            await self._send_error_response(status)

    async def _check_protocol(self, event: h11.Request) -> None:
        pass

    async def _create_stream(self, request: h11.Request) -> None:
        headers, target = list(request.headers), request.target
        if is_absolute(target):
            host, target = split_absolute(target)
            headers = [(b"host", host), *(pair for pair in headers if pair[0] != b"host")]
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
                headers=headers,
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii").upper(),
                raw_path=target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1


class _Tasks:
    """Runs the application for each request; in the shape of Hypercorn's task group."""

    def __init__(self, nursery: trio.Nursery, connection: Connection, terms: Terms) -> None:
        self._nursery = nursery
        self._connection = connection
        self._terms = terms

    async def spawn_app(
        self, app: Any, config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Message], Awaitable[None]]:
        """Start it; returns how it is told of the body and of its client's leaving."""
        self._terms.settle(scope)
        exchange = Exchange(scope, send, self._connection)
        self._nursery.start_soon(exchange.run, app)
        return exchange.put
