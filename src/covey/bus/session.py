"""A bus across one byte stream: `Link` to a peer, and the peer's calls served here. Both ends run the same code.

The frames are those of `covey.bus.wire`; `covey.bus.carrier` moves them.
"""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import msgspec
import trio

from covey.bus import wire
from covey.bus.background import open_background
from covey.bus.bus import Bus
from covey.bus.caller import may_serve
from covey.bus.carrier import Carrier, SessionLimits
from covey.bus.inbound import Inbound
from covey.bus.outbound import OutboundCall, StreamCall, UnaryCall
from covey.bus.outbox import OutboxClosed
from covey.bus.replies import Replies, too_slow
from covey.contracts.method import Party, Req, Res, Streaming, Unary
from covey.errors import CallError
from covey.telemetry.logs import current_request_id
from covey.transport.base import Accept, PeerId

log = logging.getLogger(__name__)


class Session(Carrier):
    """One open session; made by `open_session`. Implements `covey.bus.bus.Link`."""

    def __init__(
        self,
        bus: Bus,
        stream: trio.abc.Stream,
        *,
        peer: PeerId,
        granted: frozenset[Party],
        dialer: bool,
        limits: SessionLimits,
        join: bool = True,
    ) -> None:
        hello = wire.Hello(
            wire.VERSION, wire.VERSION_OLDEST, bus.boot_id, bus.name_of(bus.me)[:200], wire.FEATURES, bus.methods
        )
        super().__init__(stream, peer, hello, limits)
        self._bus = bus
        self._granted = granted
        self._dialer = dialer
        self._joined = join
        self._believed: tuple[str, ...] = ()
        self._inbound = Inbound(bus, peer, granted, self._outbox, limits)
        self._outbound: dict[int, OutboundCall] = {}
        self._last_id = wire.CALL_ID_MAX if dialer else wire.SESSION

    @property
    def name(self) -> str:
        """As the membership calls the peer, else as it calls itself."""
        return self._bus.known_name(self.peer) or super().name

    # Calls made here

    async def call(self, method: Unary[Req, Res], request: Req, stamp: Party, timeout_seconds: float) -> Res:
        """As `BusHandle.call`."""
        if timeout_seconds <= 0:
            raise too_slow(method.name, timeout_seconds)
        call = UnaryCall(method)
        with trio.move_on_after(timeout_seconds):
            number = await self._open(call, method.name, request, stamp, timeout_seconds)
            try:
                return await call.response()
            finally:
                self._leave(number)
        raise too_slow(method.name, timeout_seconds)

    @asynccontextmanager
    async def stream(
        self,
        method: Streaming[Req, Res],
        request: Req,
        stamp: Party,
        timeout_seconds: float | None,
        opening: trio.CancelScope | None = None,
    ) -> AsyncGenerator[Replies[Res], None]:
        """As `BusHandle.stream`."""
        number = wire.SESSION

        def acknowledge(count: int) -> None:
            if number in self._outbound:
                self._put(wire.credit(number, count))

        call = StreamCall(method, timeout_seconds, acknowledge)
        opening = opening or trio.CancelScope()
        opening.deadline = call.replies.deadline
        with opening:
            number = await self._open(call, method.name, request, stamp, timeout_seconds)
        if number == wire.SESSION:
            raise too_slow(method.name, timeout_seconds or 0)
        try:
            yield call.replies
        finally:
            call.leave()
            if not call.ended.is_set():
                self._put(wire.frame(wire.Type.CANCEL, number))
                with trio.move_on_after(self.limits.cancel_seconds, shield=True) as patience:
                    await call.ended.wait()
                if patience.cancelled_caught:
                    log.warning("The node %s did not end %s after its reader had left.", self.name, method.name)
            self._outbound.pop(number, None)

    def announce(self, methods: tuple[str, ...]) -> None:
        """As `Link.announce`."""
        self._own_hello = msgspec.structs.replace(self._own_hello, methods=methods)
        self._put(wire.hello(self._own_hello))

    @property
    def calls_in_flight(self) -> tuple[int, int]:
        """How many calls run: made here, served here."""
        return len(self._outbound), len(self._inbound)

    async def _open(
        self, call: OutboundCall, method: str, request: msgspec.Struct, stamp: Party, seconds_left: float | None
    ) -> int:
        """Send OPEN, once there is room, and what is long about the request; returns the call's id.

        Cancelled while it waits, it sent nothing, or took back what it sent: the handler has not begun.
        """
        body = wire.encode_request(request)
        if self.lost is not None:
            raise self._just_closed()
        number = self._next_id()
        is_long = len(body) > wire.BODY_PIECE_BYTES and wire.LONG_REQUESTS in self.features
        opened = wire.Open(
            method,
            stamp,
            wire.NIL if is_long else msgspec.Raw(body),
            seconds_left,
            current_request_id()[:200],
            len(body) if is_long else 0,
        )
        frame = self._open_frame(number, opened)
        self._outbound[number] = call
        try:
            await self._outbox.put_when_room(frame)
        except OutboxClosed:
            raise self._just_closed() from None
        except BaseException:
            self._outbound.pop(number, None)
            raise
        if is_long:
            await self._send_body(number, body)
        return number

    def _open_frame(self, number: int, opened: wire.Open) -> bytes:
        try:
            return wire.open_call(number, opened)
        except CallError as error:  # the peer is of a release that takes one frame
            message = f"{error.message} The node {self.name} takes longer requests once it is upgraded."
            raise CallError(error.code, message, reason=error.reason) from None

    async def _send_body(self, number: int, body: bytes) -> None:
        """Piece by piece, each waiting for room behind other calls' frames; stops where the peer has refused."""
        try:
            for piece in wire.body_frames(number, body):
                if number not in self._outbound and self.lost is None:
                    return
                await self._outbox.put_when_room(piece)
        except OutboxClosed:
            raise self._just_closed() from None
        except BaseException:
            self._leave(number)
            raise

    def _just_closed(self) -> CallError:
        return CallError("unreachable", f"The link to the node {self.name} has just closed.", reason="no_peer")

    def _leave(self, number: int) -> None:
        """Forget a call; tell the peer if it still works on it."""
        if self._outbound.pop(number, None) is not None:
            self._put(wire.frame(wire.Type.CANCEL, number))

    def _next_id(self) -> int:
        while True:
            self._last_id = (self._last_id + 2) & wire.CALL_ID_MAX
            if self._last_id not in self._outbound and self._last_id != wire.SESSION:
                return self._last_id

    # What the carrier tells

    def join(self) -> None:
        """Become the bus's link to the peer; for a session that was opened with `join=False`."""
        self._joined = True
        if self.lost is None and self.hello is not None:
            self._bus.attach(self.peer, self, self._believed)

    def _on_hello(self, hello: wire.Hello) -> None:
        self._believed = tuple(method for method in hello.methods if may_serve(method, self._granted))
        if self._greeted.is_set():
            self._bus.report(self.peer, self, self._believed)
        elif self._joined:
            self._bus.attach(self.peer, self, self._believed)

    def _on_end(self, error: CallError) -> None:
        self._bus.detach(self.peer, self)
        calls, self._outbound = list(self._outbound.values()), {}
        for call in calls:
            call.fail(CallError("peer_lost", error.message, reason="" if error.code == "peer_lost" else error.code))

    def _on_frame(self, got: wire.Frame, handlers: trio.Nursery) -> None:
        kind = got.type
        if kind is wire.Type.DATA:
            if call := self._outbound.get(got.call):
                call.data(got.payload)
        elif kind is wire.Type.OPEN:
            if got.call % 2 == self._dialer:
                raise wire.ProtocolError(f"The peer opened a call with the id {got.call}, which is not its to use.")
            self._inbound.open(got.call, wire.read_open(got), handlers)
        elif kind is wire.Type.BODY:
            self._inbound.receive(got.call, got.payload)
        elif kind is wire.Type.CANCEL:
            self._inbound.cancel(got.call)
        elif kind is wire.Type.CREDIT:
            self._inbound.acknowledge(got.call, wire.read_credit(got))
        elif (call := self._outbound.get(got.call)) is None:
            pass  # an answer that was under way when this side left the call
        else:
            del self._outbound[got.call]
            if kind is wire.Type.END:
                call.end(got.payload)
            else:
                call.fail(wire.read_error(got))


@asynccontextmanager
async def open_session(
    bus: Bus,
    stream: trio.abc.Stream,
    *,
    peer: PeerId,
    granted: frozenset[Party],
    dialer: bool,
    limits: SessionLimits | None = None,
    join: bool = True,
) -> AsyncGenerator[Session, None]:
    """Join a bus to a peer's over a byte stream, which this takes over and closes.

    The session is a link of the bus as long as the block runs. Where it ends before, calls raise `peer_lost`, and
    `session.closed` is set: the block itself is not cancelled.

    Args:
        bus: this side's; the peer may call what it serves.
        stream: to the peer, authenticated by the transport.
        peer: who that is, as the transport has proved.
        granted: what the peer may act as here, and which roles' methods it is believed to serve.
        dialer: whether this side opened the stream; the other side must say the opposite.
        limits: times and sizes; default: `SessionLimits()`.
        join: be the bus's link to the peer at once; else only when `Session.join` says so, where there may be a
            choice between two sessions with one peer.

    Raises:
        CallError: the handshake failed; see `Session.opened`.
    """
    session = Session(
        bus, stream, peer=peer, granted=granted, dialer=dialer, limits=limits or SessionLimits(), join=join
    )
    async with open_background() as nursery:
        nursery.start_soon(session.run, name=f"session with {peer}")
        await session.opened()
        try:
            yield session
        finally:
            await session.close()


def acceptor(bus: Bus, granted: Callable[[PeerId], frozenset[Party]], *, limits: SessionLimits | None = None) -> Accept:
    """What a transport's `serve` needs: gives every inbound stream a session, until the session ends.

    Args:
        bus: whose methods the peers may call.
        granted: what a peer may act as, by its id; asked once for every stream.
        limits: as `open_session`.
    """

    async def accept(peer: PeerId, stream: trio.abc.Stream) -> None:
        try:
            async with open_session(
                bus, stream, peer=peer, granted=granted(peer), dialer=False, limits=limits
            ) as session:
                await session.closed.wait()
            log.debug("The session with %s is over: %s", peer, session.lost)
        except CallError as error:
            log.warning("There is no session with %s: %s", peer, error)

    return accept
