"""What owns a session's stream: the handshake, one reader, one writer, a heartbeat, and the end.

No caller's cancel scope ever crosses the stream, for one cancelled write would put it out of step for good.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import trio

from covey.bus import wire
from covey.bus.outbox import Outbox, OutboxClosed, OutboxFull
from covey.bus.replies import CANCEL_SECONDS_MAX
from covey.errors import CallError
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

READ_BYTES = 1 << 16


class SessionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long a session waits, and how much it holds."""

    hello_seconds: float = 5.0
    """For the peer's first frame."""
    ping_seconds: float = 5.0
    """Between PINGs."""
    dead_seconds: float = 15.0
    """Of silence, after which the peer counts as lost."""
    cancel_seconds: float = CANCEL_SECONDS_MAX
    """How long leaving a stream waits for the peer's handler to end."""
    close_seconds: float = 1.0
    """How long `close` tries to write what is queued."""
    inbound_calls_max: int = 1_024
    """Calls of the peer that run here at once; further ones get `no_capacity`."""
    inbound_bytes_max: int = 32 << 20
    """The sum of their requests' sizes, of long ones from their first frame on."""
    body_seconds: float = 120.0
    """In which a long request must have come, whole."""
    outgoing_bytes_soft: int = 1 << 18
    """Queued to be written, above which calls and replies wait."""
    outgoing_bytes_hard: int = 1 << 22
    """Queued in spite of that (answers that cannot wait), above which the peer counts as broken."""


class Carrier(ABC):
    """A stream between two nodes with a HELLO each way, frames, a heartbeat and one reason for its end.

    Args:
        stream: authenticated by the transport; closed by `run`.
        peer: whose it is.
        hello: what this side says of itself.
        limits: times and sizes.
    """

    def __init__(self, stream: trio.abc.Stream, peer: PeerId, hello: wire.Hello, limits: SessionLimits) -> None:
        self.peer = peer
        self.limits = limits
        self.closed = trio.Event()
        """Set when the session is over and nothing of it runs any more; `lost` says why."""
        self.lost: CallError | None = None
        self.hello: wire.Hello | None = None
        """What the peer said of itself."""
        self.version = 0
        self.features: frozenset[str] = frozenset()
        """What both sides can do beyond the version."""
        self.round_trip_seconds: float | None = None
        self.received_bytes = 0
        self.sent_bytes = 0
        self._stream = stream
        self._own_hello = hello
        self._outbox = Outbox(limits.outgoing_bytes_soft, limits.outgoing_bytes_hard)
        self._greeted = trio.Event()
        self._over = trio.Event()
        self._orderly = True
        self._writer = trio.CancelScope(shield=True)  # `run` alone ends it, after the last word has been written
        self._heard_at = trio.current_time()
        self._heard = trio.Event()
        self._ping = 0
        self._ping_at = -math.inf

    @abstractmethod
    def _on_hello(self, hello: wire.Hello) -> None:
        """The peer has said HELLO, and the versions agree; again whenever it serves other methods."""

    @abstractmethod
    def _on_frame(self, got: wire.Frame, handlers: trio.Nursery) -> None:
        """A frame of a call arrived. Must not wait: the reader feeds every call of the session."""

    @abstractmethod
    def _on_end(self, error: CallError) -> None:
        """The session is over."""

    @property
    def name(self) -> str:
        """The peer's name, or its id where it did not say."""
        name = self.hello.name if self.hello else ""
        return name if name and name.isprintable() else self.peer

    async def opened(self) -> None:
        """Wait until both sides have said HELLO.

        Raises:
            CallError: `protocol` (`version`: upgrade the older node), `deadline`, `peer_lost`; or why the peer refused.
        """
        await self._greeted.wait()
        if self.hello is None and self.lost is not None:
            raise self.lost

    async def run(self) -> None:
        """Own the stream until it ends, and close it. Nothing that a peer does raises here: `lost` has it."""
        self._put(wire.hello(self._own_hello))
        try:
            async with trio.open_nursery() as handlers:
                try:
                    await self._run_owners(handlers)
                finally:
                    # A stream that still works is closed in order, any other at once: it may never answer.
                    seconds = self.limits.close_seconds if self._orderly else 0
                    with trio.move_on_after(seconds, shield=True):
                        await self._stream.aclose()
                    handlers.cancel_scope.cancel()
        finally:
            self.closed.set()

    async def close(self) -> None:
        """Say goodbye, write what is queued, and wait until nothing of the session runs; open calls get `peer_lost`."""
        self._end(self._lost("was closed by this node"), goodbye=wire.frame(wire.Type.END, wire.SESSION))
        with trio.CancelScope(shield=True):  # bounded: by `close_seconds`, and by the handlers' own cleaning up
            await self.closed.wait()

    async def answers(self, within_seconds: float) -> bool:
        """Whether the peer says anything within that time when it is asked."""
        self._heard = trio.Event()
        self._put(wire.frame(wire.Type.PING, wire.SESSION))
        with trio.move_on_after(within_seconds):
            await self._heard.wait()
        return self._heard.is_set() and self.lost is None

    def refuse(self, error: CallError) -> None:
        """End the session and tell the peer why: a copied identity, a member that was removed."""
        self._end(error, goodbye=wire.error(wire.SESSION, error))

    async def _run_owners(self, handlers: trio.Nursery) -> None:
        async with trio.open_nursery() as owners:
            try:
                owners.start_soon(self._own, self._write)
                owners.start_soon(self._own, partial(self._read, handlers))
                owners.start_soon(self._own, self._beat)
                with trio.move_on_after(self.limits.hello_seconds):
                    await self._greeted.wait()
                if not self._greeted.is_set():
                    seconds = self.limits.hello_seconds
                    self._end(CallError("deadline", f"The node {self.name} said no HELLO within {seconds:g} s."))
                await self._over.wait()
            finally:
                self._end(self._lost("was closed by this node"), goodbye=wire.frame(wire.Type.END, wire.SESSION))
                handlers.cancel_scope.cancel()
                with trio.move_on_after(self.limits.close_seconds, shield=True):
                    await self._outbox.flush()
                self._outbox.close()
                self._writer.cancel()
                owners.cancel_scope.cancel()

    def _end(self, error: CallError, *, goodbye: bytes | None = None) -> None:
        """The session is over; only the first reason counts. With a `goodbye`, what is queued is still written."""
        if self.lost is not None:
            return
        self.lost = error
        try:
            if goodbye is None:
                raise OutboxClosed
            self._outbox.seal(goodbye)
        except (OutboxClosed, OutboxFull):
            self._orderly = False
            self._outbox.close()
        self._on_end(error)
        self._greeted.set()
        self._over.set()

    async def _own(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run one of the stream's owners; its end is the session's."""
        try:
            await work()
        except CallError as error:
            self._end(error, goodbye=wire.error(wire.SESSION, error) if error.code == "protocol" else None)
        except OutboxFull:
            self._end(self._lost("was given up: it does not read what it is sent"))
        except OutboxClosed:
            pass  # ended already
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            self._end(self._lost(f"broke ({error})" if str(error) else "broke"))
            self._outbox.close()
        except Exception:
            log.exception("The link to the node %s failed.", self.name)
            self._end(self._lost("failed; this node's log says why"))

    async def _write(self) -> None:
        with self._writer:
            while True:
                data = await self._outbox.take()
                await self._stream.send_all(data)
                self.sent_bytes += len(data)

    async def _beat(self) -> None:
        while True:
            self._ping = (self._ping + 1) & wire.CALL_ID_MAX
            self._ping_at = trio.current_time()
            self._outbox.put(wire.frame(wire.Type.PING, self._ping))
            await trio.sleep_until(min(self._ping_at + self.limits.ping_seconds, self._dead_at))
            if trio.current_time() >= self._dead_at:
                raise self._lost(f"is silent: nothing came for {self.limits.dead_seconds:g} s")

    @property
    def _dead_at(self) -> float:
        return self._heard_at + self.limits.dead_seconds

    async def _read(self, handlers: trio.Nursery) -> None:
        decoder = wire.Decoder()
        while not self._over.is_set():
            data = await self._stream.receive_some(READ_BYTES)
            if not data:
                raise self._lost("ended without a word")
            self._heard_at = trio.current_time()
            self._heard.set()
            self.received_bytes += len(data)
            for got in decoder.receive(data):
                if self.lost is not None:
                    return
                if got.type is wire.Type.DATA and got.call != wire.SESSION and self.hello is not None:
                    self._on_frame(got, handlers)  # most by far: one for every token
                else:
                    self._take(got, handlers)

    def _take(self, got: wire.Frame, handlers: trio.Nursery) -> None:
        if self.hello is None:
            hello = wire.read_hello(got)
            self.version = wire.agree(self._own_hello, hello)
            self.features = frozenset(hello.features) & frozenset(self._own_hello.features)
            self.hello = hello
            self._on_hello(hello)
            self._greeted.set()
        elif got.type is wire.Type.PING:
            self._outbox.put(wire.frame(wire.Type.PONG, got.call))
        elif got.type is wire.Type.PONG:
            if got.call == self._ping:
                self.round_trip_seconds = trio.current_time() - self._ping_at
        elif got.type is wire.Type.HELLO:
            hello = wire.read_hello(got)
            if hello.boot_id != self.hello.boot_id:
                raise wire.ProtocolError("The peer changed its identity within a session.")
            self.hello = hello
            self._on_hello(hello)
        elif got.call != wire.SESSION:
            self._on_frame(got, handlers)
        elif got.type is wire.Type.END:
            self._end(self._lost("was closed by it"))
        elif got.type is wire.Type.ERROR:
            self._end(wire.read_error(got))
        else:
            raise wire.ProtocolError(f"A {got.type.name} frame without a call arrived.")

    def _put(self, frame: bytes) -> None:
        """Queue a small frame from any task; a session that is over has nobody to tell."""
        try:
            self._outbox.put(frame)
        except OutboxClosed:
            pass
        except OutboxFull:
            self._end(self._lost("was given up: it does not read what it is sent"))

    def _lost(self, what: str) -> CallError:
        return CallError("peer_lost", f"The link to the node {self.name} {what}.")
