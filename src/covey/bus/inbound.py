"""The calls that a session's peer makes here: admission, the handlers' tasks, and their answers."""

import logging
from functools import partial
from typing import Any, cast

import msgspec
import trio

from covey.bus import wire
from covey.bus.bus import Bus
from covey.bus.caller import Caller, check
from covey.bus.carrier import SessionLimits
from covey.bus.credit import Allowance
from covey.bus.outbox import Outbox, OutboxClosed
from covey.bus.replies import CANCEL_SECONDS_MAX
from covey.bus.serving import Served, not_served, run_stream, run_unary
from covey.contracts.method import Party, Unary
from covey.errors import CallError
from covey.telemetry.logs import sane_request_id, set_request_id
from covey.transport.base import PeerId

log = logging.getLogger(__name__)


class LongBody:
    """A request of which only the length is known yet."""

    def __init__(self, body_bytes: int) -> None:
        self._missing_bytes = body_bytes
        self._came = bytearray()  # in one: pieces may be tiny, and each alone would take fifty bytes more
        self._complete = trio.Event()

    def receive(self, piece: bytes) -> None:
        """The next piece; `ProtocolError` where it is none, or more than was announced."""
        if not piece or len(piece) > self._missing_bytes:
            raise wire.ProtocolError(f"A piece of {len(piece)} bytes came where {self._missing_bytes} were missing.")
        self._came += piece
        self._missing_bytes -= len(piece)
        if not self._missing_bytes:
            self._complete.set()

    async def whole(self) -> bytearray:
        """All of it, once it is there; not kept here."""
        await self._complete.wait()
        came, self._came = self._came, bytearray()
        return came


class InboundCall:
    """One call of the peer that runs here, or waits for the rest of its request."""

    def __init__(self, opened: wire.Open, call: int, served: Served[Any, Any], caller: Caller) -> None:
        self.call = call
        self.served = served
        self.caller = caller
        self.seconds_left = opened.seconds_left
        self.body_bytes = opened.body_bytes or len(opened.body)
        self.body = LongBody(opened.body_bytes) if opened.body_bytes else None
        self.scope = trio.CancelScope()
        self.allowance = Allowance()
        self.more = trio.lowlevel.ParkingLot()


class Inbound:
    """Everything that one peer runs here, bounded in number and size. Its methods, but for the tasks, never wait.

    Args:
        bus: whose handlers are called.
        peer: who calls, as the transport has proved.
        granted: what the peer may act as.
        outbox: where answers go.
        limits: how many calls run at once, and the sum of their requests' bytes, then `no_capacity`; how long a long
            request may take to come.
    """

    def __init__(
        self, bus: Bus, peer: PeerId, granted: frozenset[Party], outbox: Outbox, limits: SessionLimits
    ) -> None:
        self._bus = bus
        self._peer = peer
        self._granted = granted
        self._outbox = outbox
        self._limits = limits
        self._bytes = 0
        self._calls: dict[int, InboundCall] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def open(self, call: int, opened: wire.Open, nursery: trio.Nursery) -> None:
        """Start what an OPEN frame asks for, or answer why not; `ProtocolError` where the id is in use."""
        if call in self._calls:
            raise wire.ProtocolError(f"The call id {call} was opened twice.")
        try:
            served = self._admit(opened)
            request = None if opened.body_bytes else _decode(served, opened.body)
        except CallError as error:
            self._outbox.put(wire.error(call, error))
            return
        caller = Caller(self._peer, cast(Party, opened.stamp), sane_request_id(opened.request_id))
        inbound = self._calls[call] = InboundCall(opened, call, served, caller)
        self._bytes += inbound.body_bytes
        nursery.start_soon(self._run, inbound, request, name=f"serve {opened.method}")

    def receive(self, call: int, piece: bytes) -> None:
        """A piece of a long request; `ProtocolError` where it is too much. One of a call that is over is no fault."""
        if inbound := self._calls.get(call):
            if inbound.body is None:
                raise wire.ProtocolError(f"A piece of the call {call} came, whose request was complete.")
            inbound.body.receive(piece)

    def cancel(self, call: int) -> None:
        """The caller has left. A call that has just ended is nobody's fault."""
        if inbound := self._calls.get(call):
            inbound.scope.cancel()

    def acknowledge(self, call: int, count: int) -> None:
        """The caller has read some replies; `ProtocolError` where it never got that many."""
        if inbound := self._calls.get(call):
            inbound.allowance.acknowledged(count)
            inbound.more.unpark_all()

    def _admit(self, opened: wire.Open) -> Served[Any, Any]:
        served = self._bus.served(opened.method)
        if served is None:
            raise not_served(opened.method, f"The node {self._bus.name or self._bus.me}")
        check(opened.method, opened.stamp, self._granted, served.method.access)
        if opened.body_bytes > wire.REQUEST_BYTES_MAX:
            raise wire.too_long(opened.body_bytes)
        body_bytes = opened.body_bytes or len(opened.body)
        if (
            len(self._calls) >= self._limits.inbound_calls_max
            or self._bytes + body_bytes > self._limits.inbound_bytes_max
        ):
            raise CallError(
                "no_capacity",
                f"The node {self._bus.name or self._bus.me} works on {len(self._calls)} calls of this node already.",
                reason="calls",
                retry_after_seconds=1.0,
            )
        return served

    async def _run(self, inbound: InboundCall, request: Any) -> None:
        set_request_id(inbound.caller.request_id)
        try:
            with inbound.scope:
                await self._answer(inbound, request)
            if inbound.scope.cancelled_caught:  # its caller has left, and waits to hear that the handler has ended
                self._outbox.put(wire.frame(wire.Type.END, inbound.call))
        except OutboxClosed:
            log.debug("The caller of %s was gone before the answer.", inbound.served.method.name)
        finally:
            self._bytes -= inbound.body_bytes
            del self._calls[inbound.call]

    async def _answer(self, inbound: InboundCall, request: Any) -> None:
        call, served, seconds = inbound.call, inbound.served, inbound.seconds_left
        try:
            if inbound.body is not None:
                request, seconds = await self._whole(inbound, inbound.body)
            if isinstance(served.method, Unary):
                left = served.method.timeout_seconds if seconds is None else seconds
                response = await run_unary(served, inbound.caller, request, left)
                answer = wire.frame(wire.Type.END, call, msgspec.msgpack.encode(response))
            else:
                await run_stream(served, inbound.caller, request, partial(self._emit, inbound), seconds)
                answer = wire.frame(wire.Type.END, call)
        except CallError as error:
            answer = wire.error(call, error)
        await self._outbox.put_when_room(answer)

    async def _whole(self, inbound: InboundCall, body: LongBody) -> tuple[Any, float | None]:
        """A long request, once all of it is there, and the seconds that are left then."""
        began, left = trio.current_time(), inbound.seconds_left
        patience = self._limits.body_seconds if left is None else min(left, self._limits.body_seconds)
        raw: bytearray | None = None
        with trio.move_on_after(patience):
            raw = await body.whole()
        if raw is None:
            method = inbound.served.method.name
            raise CallError(
                "deadline", f"The request of {method} did not come within {patience:g} s.", reason="slow_body"
            )
        return _decode(inbound.served, raw), None if left is None else left - (trio.current_time() - began)

    async def _emit(self, inbound: InboundCall, item: msgspec.Struct) -> None:
        payload = msgspec.msgpack.encode(item)
        frame = wire.frame(wire.Type.DATA, inbound.call, payload)
        await trio.lowlevel.checkpoint_if_cancelled()
        while not inbound.allowance.spend(len(payload)):  # at once: other tasks of the handler may be emitting, too
            await inbound.more.park()
        try:
            if not self._outbox.put_at_once(frame):
                await self._outbox.put_when_room(frame)
        except OutboxClosed:
            # The session has just ended, and the handler's cancellation is on its way: no bug, and none of its faults.
            await trio.sleep(CANCEL_SECONDS_MAX)
            raise CallError("peer_lost", "The caller has gone.") from None  # it shields itself


def _decode(served: Served[Any, Any], body: bytes | bytearray | msgspec.Raw) -> Any:
    try:
        return msgspec.msgpack.decode(body, type=served.method.request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CallError("invalid", f"The request of {served.method.name} is malformed: {error}.") from error
