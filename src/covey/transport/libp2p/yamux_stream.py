"""One stream of a yamux connection, as `trio.abc.Stream`. Cancelling whoever sends or receives here harms nothing:
the connection's own two tasks alone touch the socket, so no frame is ever cut in two.
"""

from typing import TYPE_CHECKING

import trio

from covey.transport.libp2p.yamux_frames import (
    INITIAL_WINDOW_BYTES,
    Flag,
    Kind,
    Received,
    YamuxError,
    data_frame,
    frame,
)

if TYPE_CHECKING:
    from covey.transport.libp2p.yamux import Yamux

PAYLOAD_BYTES_MAX = (1 << 16) - 64
"""Of a DATA frame: with its header within one Noise message."""


class YamuxStream(trio.abc.HalfCloseableStream):
    """Made by `Yamux.open`, or handed to its `on_stream`. One task may send and one receive at a time.

    A stream whose connection broke never looks like one that ended: `receive_some` raises `trio.BrokenResourceError`,
    and returns no bytes only after the peer's FIN.

    Args:
        connection: whose stream it is.
        number: odd for the streams of the connection's dialer.
    """

    def __init__(self, connection: "Yamux", number: int) -> None:
        self.connection = connection
        self.number = number
        self.owns_connection = False
        """Whether closing the stream without waiting (`trio.aclose_forcefully`) cuts the connection as well."""
        self._send_window = INITIAL_WINDOW_BYTES
        """What the peer still takes."""
        self._receive_window = self._window_bytes = INITIAL_WINDOW_BYTES
        """What it may still send, and how much of it would be a full window."""
        self._consumed = 0
        self._buffer = bytearray()
        self._wake_sender = trio.lowlevel.ParkingLot()
        self._wake_receiver = trio.lowlevel.ParkingLot()
        self._sending = self._receiving = False
        self._sent_end = self._received_end = False
        self._closed = False
        self._broken: str | None = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`. Returns when the bytes are queued; waits for the peer's window, and for room."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            position, size = 0, len(data)
            with memoryview(data) as view:
                while True:
                    self._check_sendable()
                    if position == size:
                        return
                    room = min(self._send_window, PAYLOAD_BYTES_MAX, size - position)
                    if room <= 0 or self.connection.full:
                        await self._wait_to_send()
                        continue
                    self.connection.put(data_frame(self.number, view[position : position + room]))
                    self._send_window -= room
                    position += room
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await trio.lowlevel.checkpoint()
        self._check_sendable()
        while self._send_window <= 0 or self.connection.full:
            await self._wait_to_send()
            self._check_sendable()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.ReceiveStream`."""
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            while not self._buffer:
                if self._closed:
                    raise trio.ClosedResourceError("this stream was closed")
                if self._received_end:
                    return b""
                if self._broken is not None:
                    raise trio.BrokenResourceError(self._broken)
                await self._wake_receiver.park()
            return self._take(max_bytes)
        finally:
            self._receiving = False

    async def send_eof(self) -> None:
        """See `trio.abc.HalfCloseableStream`."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        await trio.lowlevel.checkpoint()
        if not self._sent_end:
            self._check_sendable()
            self._send_end()

    async def aclose(self) -> None:
        """End the stream and wait until what was sent is written, at most `close_seconds`.

        Cancelled, or too late: the peer sees the stream break instead, and a connection that is the stream's own is
        cut at once.
        """
        orderly = False
        try:
            self.close()
            with trio.move_on_after(self.connection.limits.close_seconds):
                await self.connection.flush()
                orderly = True
        finally:
            if not orderly and self.owns_connection:
                self.connection.abort("closed without waiting for the peer")

    def close(self) -> None:
        """End the stream at once; what was sent before still leaves, as far as the peer takes it."""
        if self._closed:
            return
        self._closed = True
        if self._broken is None and not self._sent_end:
            self._send_end()
        self._buffer.clear()
        self._wake_all()
        self.connection.forget(self)

    def abort(self) -> None:
        """Break the stream at once, on both sides; with it goes a connection of its own."""
        if self._closed:
            return
        if self._broken is None:
            self.connection.put(frame(Kind.WINDOW, Flag.RST, self.number, 0))
            self._broken = "this stream was reset by this node"
        self.close()
        if self.owns_connection:
            self.connection.abort("this node broke the connection's only stream")

    # What the connection tells

    def received(self, got: Received) -> None:
        """A frame of this stream arrived.

        Raises:
            YamuxError: the peer sends more than it may.
        """
        if got.kind == Kind.WINDOW:
            self._send_window += got.length
            self._wake_sender.unpark_all()
        elif got.length:
            self._receive_window -= got.length
            if self._receive_window < 0:
                raise YamuxError("The peer sends more than the window lets it.")
            self._buffer += got.payload
            self._wake_receiver.unpark()
        if got.flags & Flag.FIN:
            self._received_end = True
            self._wake_receiver.unpark_all()
            if self._sent_end:
                self.connection.forget(self)
        if got.flags & Flag.RST:
            self.connection.forget(self)
            self.breaks("the peer reset the stream")

    def breaks(self, reason: str) -> None:
        """Nothing more passes; what has arrived can still be read."""
        if self._broken is None:
            self._broken = reason
        self._wake_all()

    def room(self) -> None:
        """The connection takes frames again."""
        self._wake_sender.unpark_all()

    def _take(self, max_bytes: int | None) -> bytes:
        buffer = self._buffer
        if max_bytes is None or max_bytes >= len(buffer):
            taken = bytes(buffer)
            buffer.clear()
        else:
            taken = bytes(buffer[:max_bytes])
            del buffer[:max_bytes]
        self._consumed += len(taken)
        # Seldom: every update is a frame, and a frame is a write. Half a window keeps the sender going meanwhile.
        if self._consumed >= self._window_bytes // 2 and not self._received_end and self._broken is None:
            # And a stream that is read gets a larger one, or a distant peer would mostly wait.
            more = min(self._window_bytes, self.connection.limits.window_bytes_max - self._window_bytes)
            self._window_bytes += max(0, more)
            grant, self._consumed = self._consumed + max(0, more), 0
            self._receive_window += grant
            self.connection.put(frame(Kind.WINDOW, 0, self.number, grant))
        return taken

    def _send_end(self) -> None:
        self._sent_end = True
        self.connection.put(frame(Kind.WINDOW, Flag.FIN, self.number, 0))
        if self._received_end:
            self.connection.forget(self)

    def _check_sendable(self) -> None:
        if self._closed or self._sent_end:
            raise trio.ClosedResourceError("this stream was closed")
        if self._broken is not None:
            raise trio.BrokenResourceError(self._broken)

    async def _wait_to_send(self) -> None:
        with self.connection.waiting_for_room(self):
            await self._wake_sender.park()

    def _wake_all(self) -> None:
        self._wake_sender.unpark_all()
        self._wake_receiver.unpark_all()
