"""One yamux connection: two tasks own the channel, and every stream talks to them.

libp2p's own `Yamux` cannot stand here. It believes a peer's windows and lengths, so that one peer fills the memory; its
reader waits for its writer, so that two busy ends stop each other for good; whoever is cancelled within a read or write
breaks the whole connection; a sender whose peer is slow for 5 s fails. This one speaks the same protocol.
"""

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Generator

import trio

from covey.transport.libp2p.channel import NOISE_PAYLOAD_BYTES_MAX, Channel, ChannelError
from covey.transport.libp2p.limits import HostLimits
from covey.transport.libp2p.yamux_frames import (
    NORMAL_END,
    PROTOCOL_ERROR,
    Decoder,
    Flag,
    Kind,
    Received,
    YamuxError,
    frame,
)  # fmt: skip
from covey.transport.libp2p.yamux_stream import YamuxStream

STREAM_NUMBER_MAX = (1 << 32) - 1
UNASKED_BYTES_MAX = 1 << 16
"""Queued above `queue_bytes`: answers that a peer makes this side give and does not read."""


class Yamux:
    """Many streams over one channel. `run` owns the channel and must be running in a task.

    Args:
        channel: authenticated and agreed to carry yamux.
        dialer: whether this side opened the connection; its streams are odd.
        on_stream: given every stream that the peer opens; must not wait.
        limits: times and sizes.
        streams_max: that the peer may have open at once.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        dialer: bool,
        on_stream: Callable[[YamuxStream], None],
        limits: HostLimits,
        streams_max: int,
    ) -> None:
        self.limits = limits
        self.lost: str | None = None
        """Why the connection ended."""
        self.ended = trio.Event()
        """Set when nothing of the connection runs any more."""
        self._channel = channel
        self._parity = 1 if dialer else 0
        self._next_number = 1 if dialer else 2
        self._last_inbound = 0
        self._on_stream = on_stream
        self._streams_max = streams_max
        self._streams: dict[int, YamuxStream] = {}
        self._frames: deque[bytes] = deque()
        self._queued_bytes = 0
        self._writing = False
        self._finishing = False
        self._said_goodbye = False
        self._wake_writer = trio.lowlevel.ParkingLot()
        self._flushed = trio.lowlevel.ParkingLot()
        self._changed = trio.lowlevel.ParkingLot()
        self._over = trio.Event()
        self._waiting: dict[YamuxStream, None] = {}
        self._held = False

    @property
    def full(self) -> bool:
        """Whether senders should wait."""
        return self._queued_bytes >= self.limits.queue_bytes

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._streams)

    def open(self) -> YamuxStream:
        """A new stream to the peer; the caller closes it.

        Raises:
            trio.BrokenResourceError: the connection is over.
        """
        if self.lost is not None or self._finishing or self._next_number > STREAM_NUMBER_MAX:
            raise trio.BrokenResourceError(self.lost or "the connection is ending")
        stream = self._add(self._next_number)
        self._next_number += 2
        self.put(frame(Kind.WINDOW, Flag.SYN, stream.number, 0))
        return stream

    async def run(self) -> None:
        """Move the bytes until the connection ends; whatever a peer does ends up in `lost`, and raises nothing."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._own, self._read)
                nursery.start_soon(self._own, self._write)
                nursery.start_soon(self._watch)
                await self._over.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.abort("the host was closed")
            self.ended.set()

    def finish(self) -> None:
        """Open no more; write what is queued, and end once the other side has ended, too, or `close_seconds` passed."""
        if not self._finishing:
            self._finishing = True
            self._changed.unpark_all()
            self._wake_writer.unpark_all()

    def abort(self, reason: str) -> None:
        """Cut the connection at once. Its streams break."""
        self._end(reason)
        self._channel.abort()

    def hold(self) -> None:
        """Keep the connection though it has no stream, and notice when the peer is gone."""
        self._held = True
        self._changed.unpark_all()

    async def flush(self) -> None:
        """Wait until what is queued is written, or the connection is over."""
        await trio.lowlevel.checkpoint()
        while (self._frames or self._writing) and self.lost is None:
            await self._flushed.park()

    # What streams need

    def put(self, data: bytes) -> None:
        """Queue a frame. Payloads wait for room before; frames of 12 bytes need none."""
        if self.lost is not None:
            return
        self._frames.append(data)
        self._queued_bytes += len(data)
        self._wake_writer.unpark()
        if self._queued_bytes > self.limits.queue_bytes + UNASKED_BYTES_MAX + NOISE_PAYLOAD_BYTES_MAX:
            self.abort("the peer does not read what it asks for")

    def forget(self, stream: YamuxStream) -> None:
        """A stream is over, both ways or by a reset."""
        if self._streams.get(stream.number) is stream:
            del self._streams[stream.number]
            if stream.owns_connection:
                self.finish()
            self._changed.unpark_all()

    @contextlib.contextmanager
    def waiting_for_room(self, stream: YamuxStream) -> Generator[None, None, None]:
        """Tell the stream's `room` when there is room."""
        self._waiting[stream] = None
        try:
            yield
        finally:
            self._waiting.pop(stream, None)

    # The owners

    async def _own(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except YamuxError as error:
            await self._say_protocol_error()
            self.abort(f"the peer broke yamux's rules: {error}")
        except ChannelError as error:
            self.abort(str(error))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            self.abort("the connection broke")

    async def _read(self) -> None:
        decoder = Decoder()
        while data := await self._channel.receive():
            for got in decoder.receive(data):
                self._take(got)
        self._end("the peer closed the connection")
        self._channel.close()

    async def _write(self) -> None:
        while True:
            self._writing = False
            while not self._frames:
                self._flushed.unpark_all()
                if self._finishing:
                    await self._say_goodbye()
                    return
                await self._wake_writer.park()
            batch = [self._frames.popleft()]
            size = len(batch[0])
            while self._frames and size + len(self._frames[0]) <= NOISE_PAYLOAD_BYTES_MAX:
                batch.append(self._frames.popleft())
                size += len(batch[-1])
            self._queued_bytes -= size
            self._writing = True
            if self._waiting and not self.full:
                for stream in self._waiting:
                    stream.room()
            await self._channel.send_all(batch[0] if len(batch) == 1 else b"".join(batch))

    async def _say_goodbye(self) -> None:
        """All is written: end this direction, and give the peer time to end the other."""
        self._said_goodbye = True
        await self._channel.send_all(frame(Kind.GO_AWAY, 0, 0, NORMAL_END))
        await self._channel.send_eof()
        await trio.sleep(self.limits.close_seconds)
        self._end("this node closed the connection")
        self._channel.close()

    async def _say_protocol_error(self) -> None:
        if not self._writing and not self._said_goodbye:
            with trio.move_on_after(0.1):
                await self._channel.send_all(frame(Kind.GO_AWAY, 0, 0, PROTOCOL_ERROR))

    async def _watch(self) -> None:
        """Finish a connection that nobody uses, unless it is held: that is pinged."""
        while not self._finishing and not self._held:
            seconds = self.limits.idle_seconds if not self._streams else float("inf")
            with trio.move_on_after(seconds) as patience:
                await self._changed.park()
            if patience.cancelled_caught and not self._streams:
                self.finish()
        while self._held:
            if trio.current_time() - self._channel.heard_at > 3 * self.limits.ping_seconds:
                self.abort("the peer is silent")
            self.put(frame(Kind.PING, Flag.SYN, 0, 0))
            await trio.sleep(self.limits.ping_seconds)

    def _end(self, reason: str) -> None:
        if self.lost is not None:
            return
        self.lost = reason
        self._frames.clear()
        self._queued_bytes = 0
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.breaks(reason)
        for lot in (self._flushed, self._wake_writer, self._changed):
            lot.unpark_all()
        self._over.set()

    # What the peer says

    def _take(self, got: Received) -> None:
        if got.kind == Kind.PING:
            if got.flags & Flag.SYN:
                self.put(frame(Kind.PING, Flag.ACK, 0, got.length))
        elif got.kind == Kind.GO_AWAY:
            self._finishing = True  # the peer's end of the connection follows
            self._changed.unpark_all()
            self._wake_writer.unpark_all()
        else:
            stream = self._accept(got) if got.flags & Flag.SYN else self._streams.get(got.stream)
            if stream is not None:
                stream.received(got)
            elif got.kind == Kind.DATA and got.length and not got.flags & (Flag.SYN | Flag.RST):
                # Nobody reads that any more: a sender that waits for a window should know.
                self.put(frame(Kind.WINDOW, Flag.RST, got.stream, 0))

    def _accept(self, got: Received) -> YamuxStream | None:
        if got.stream % 2 == self._parity or got.stream <= self._last_inbound:
            raise YamuxError(f"The peer opened a stream with the number {got.stream}.")
        self._last_inbound = got.stream
        if len(self._streams) >= self._streams_max or self._finishing:
            self.put(frame(Kind.WINDOW, Flag.RST, got.stream, 0))
            return None
        stream = self._add(got.stream)
        self.put(frame(Kind.WINDOW, Flag.ACK, stream.number, 0))
        self._changed.unpark_all()
        self._on_stream(stream)
        return stream

    def _add(self, number: int) -> YamuxStream:
        self._streams[number] = stream = YamuxStream(self, number)
        return stream
