"""What waits to be written to a session's stream: bounded, in order, and handed over in as few pieces as possible."""

from collections import deque

import trio

WRITE_BYTES = 1 << 16
"""About how much goes into one write: fewer, larger writes are what a link is fast with."""


class OutboxClosed(Exception):
    """The session is over; nothing can be sent any more."""


class OutboxFull(Exception):
    """The peer makes this side answer and does not read the answers."""


class Outbox:
    """Frames in the order in which they were put. Any task puts; the session's writer alone takes.

    Args:
        soft_bytes: `put_when_room` waits while this much is queued.
        hard_bytes: `put`, for the few frames that cannot wait, raises `OutboxFull` above it.
    """

    def __init__(self, soft_bytes: int, hard_bytes: int) -> None:
        self._soft_bytes = soft_bytes
        self._hard_bytes = hard_bytes
        self._frames: deque[bytes] = deque()
        self._writing = False
        self._closed = False
        self._sealed = False
        self._wake_writer = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._flushed = trio.lowlevel.ParkingLot()
        self._writer_waits = False
        self._waiting = 0
        """For room: parked, or let in and not here yet."""
        self.queued_bytes = 0

    def put(self, frame: bytes) -> None:
        """Queue a small frame at once: what a `finally` block, or the reader, has to say.

        Raises:
            OutboxClosed: the session is over.
            OutboxFull: the peer does not read.
        """
        if self._sealed:
            raise OutboxClosed
        self._frames.append(frame)
        self.queued_bytes += len(frame)
        if self._writer_waits:
            self._writer_waits = False
            self._wake_writer.unpark()
        if self.queued_bytes > self._hard_bytes:
            raise OutboxFull

    def put_at_once(self, frame: bytes) -> bool:
        """Queue a frame if there is room and nobody else waits for that; whether it was queued.

        Raises:
            OutboxClosed: the session is over.
        """
        if self._waiting or self.queued_bytes >= self._soft_bytes:
            return False
        self.put(frame)
        return True

    async def put_when_room(self, frame: bytes) -> None:
        """Queue a frame once there is room; first come, first served. Cancelled while it waits, it queued nothing.

        Raises:
            OutboxClosed: the session is over.
        """
        if self.queued_bytes < self._soft_bytes and not self._waiting:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._waiting += 1
            try:
                await self._room.park()
                while self.queued_bytes >= self._soft_bytes and not self._sealed:
                    await self._room.park()
            finally:
                self._waiting -= 1
        self.put(frame)
        self._let_in()

    async def take(self) -> bytes:
        """What to write next, once there is something; calling again says that it has been written.

        Raises:
            OutboxClosed: the session is over.
        """
        self._writing = False
        while not self._frames:
            self._flushed.unpark_all()
            if self._sealed:
                raise OutboxClosed
            self._writer_waits = True
            await self._wake_writer.park()
        if self._closed:
            raise OutboxClosed
        if self.queued_bytes <= WRITE_BYTES:
            pieces, size = list(self._frames), self.queued_bytes
            self._frames.clear()
        else:
            pieces = [self._frames.popleft()]
            size = len(pieces[0])
            while self._frames and size + len(self._frames[0]) <= WRITE_BYTES:
                pieces.append(self._frames.popleft())
                size += len(pieces[-1])
        self.queued_bytes -= size
        self._writing = True
        self._let_in()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def flush(self) -> None:
        """Wait until everything has been written, or the outbox is closed."""
        while (self._frames or self._writing) and not self._closed:
            await self._flushed.park()

    def seal(self, last: bytes) -> None:
        """Queue a last frame; what is queued is still written."""
        self.put(last)
        self._sealed = True
        self._room.unpark_all()

    def close(self) -> None:
        """Drop what is queued and wake everybody who waits."""
        self._sealed = self._closed = True
        self._frames.clear()
        self.queued_bytes = 0
        for lot in (self._wake_writer, self._room, self._flushed):
            lot.unpark_all()

    def _let_in(self) -> None:
        # One at a time: the one let in lets in the next. Waking all at once would be for nothing, but for a few.
        if self._waiting and self.queued_bytes < self._soft_bytes:
            self._room.unpark()
