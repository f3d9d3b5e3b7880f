"""The calls that a session's peer makes here: admission, the handlers' tasks, and their answers."""

import logging
from functools import partial
from typing import Any, cast

import msgspec
import trio

from covey.bus import wire
from covey.bus.bus import Bus
from covey.bus.caller import Caller, check
from covey.bus.credit import Allowance
from covey.bus.outbox import Outbox, OutboxClosed
from covey.bus.replies import CANCEL_SECONDS_MAX
from covey.bus.serving import Served, not_served, run_stream, run_unary
from covey.contracts.method import Party, Unary
from covey.errors import CallError
from covey.telemetry.logs import sane_request_id, set_request_id
from covey.transport.base import PeerId

log = logging.getLogger(__name__)


class InboundCall:
    """One call of the peer that runs here."""

    def __init__(self, call: int, body_bytes: int) -> None:
        self.call = call
        self.body_bytes = body_bytes
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
        calls_max, bytes_max: calls at once, and the sum of their requests' bytes; then `no_capacity`.
    """

    def __init__(
        self, bus: Bus, peer: PeerId, granted: frozenset[Party], outbox: Outbox, *, calls_max: int, bytes_max: int
    ) -> None:
        self._bus = bus
        self._peer = peer
        self._granted = granted
        self._outbox = outbox
        self._calls_max = calls_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._calls: dict[int, InboundCall] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def open(self, call: int, opened: wire.Open, nursery: trio.Nursery) -> None:
        """Start what an OPEN frame asks for, or answer why not; `ProtocolError` where the id is in use."""
        if call in self._calls:
            raise wire.ProtocolError(f"The call id {call} was opened twice.")
        try:
            served, request = self._admit(opened)
        except CallError as error:
            self._outbox.put(wire.error(call, error))
            return
        caller = Caller(self._peer, cast(Party, opened.stamp), sane_request_id(opened.request_id))
        inbound = self._calls[call] = InboundCall(call, len(opened.body))
        self._bytes += inbound.body_bytes
        run = partial(self._run, inbound, served, caller, request, opened.seconds_left)
        nursery.start_soon(run, name=f"serve {opened.method}")

    def cancel(self, call: int) -> None:
        """The caller has left. A call that has just ended is nobody's fault."""
        if inbound := self._calls.get(call):
            inbound.scope.cancel()

    def acknowledge(self, call: int, count: int) -> None:
        """The caller has read some replies; `ProtocolError` where it never got that many."""
        if inbound := self._calls.get(call):
            inbound.allowance.acknowledged(count)
            inbound.more.unpark_all()

    def _admit(self, opened: wire.Open) -> tuple[Served[Any, Any], Any]:
        served = self._bus.served(opened.method)
        if served is None:
            raise not_served(opened.method, f"The node {self._bus.name or self._bus.me}")
        check(opened.method, opened.stamp, self._granted, served.method.access)
        if len(self._calls) >= self._calls_max or self._bytes + len(opened.body) > self._bytes_max:
            raise CallError(
                "no_capacity",
                f"The node {self._bus.name or self._bus.me} works on {len(self._calls)} calls of this node already.",
                reason="calls",
                retry_after_seconds=1.0,
            )
        try:
            return served, msgspec.msgpack.decode(opened.body, type=served.method.request)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise CallError("invalid", f"The request of {opened.method} is malformed: {error}.") from error

    async def _run(
        self, inbound: InboundCall, served: Served[Any, Any], caller: Caller, request: Any, seconds: float | None
    ) -> None:
        set_request_id(caller.request_id)
        try:
            with inbound.scope:
                await self._answer(inbound, served, caller, request, seconds)
            if inbound.scope.cancelled_caught:  # its caller has left, and waits to hear that the handler has ended
                self._outbox.put(wire.frame(wire.Type.END, inbound.call))
        except OutboxClosed:
            log.debug("The caller of %s was gone before the answer.", served.method.name)
        finally:
            self._bytes -= inbound.body_bytes
            del self._calls[inbound.call]

    async def _answer(
        self, inbound: InboundCall, served: Served[Any, Any], caller: Caller, request: Any, seconds: float | None
    ) -> None:
        call = inbound.call
        try:
            if isinstance(served.method, Unary):
                left = served.method.timeout_seconds if seconds is None else seconds
                response = await run_unary(served, caller, request, left)
                answer = wire.frame(wire.Type.END, call, msgspec.msgpack.encode(response))
            else:
                await run_stream(served, caller, request, partial(self._emit, inbound), seconds)
                answer = wire.frame(wire.Type.END, call)
        except CallError as error:
            answer = wire.error(call, error)
        await self._outbox.put_when_room(answer)

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
