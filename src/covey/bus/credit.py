"""How far a stream may run ahead of its reader, seen from both ends. Pure.

A sender may have `STREAM_ITEMS_MAX` replies and `UNREAD_BYTES_MAX` bytes under way that the reader has not
acknowledged. The reader acknowledges (CREDIT) once it has taken half of either.
"""

from collections import deque

from covey.bus.wire import FRAME_BYTES_MAX, ProtocolError

STREAM_ITEMS_MAX = 64
"""How many replies may wait unread: across a link the credits of a call, and as many in the process."""
UNREAD_BYTES_MAX = 4 * FRAME_BYTES_MAX
"""Of one stream. Several frames of the largest size, or else a reader could never acknowledge half of it."""


class Allowance:
    """The sender's view: what it has sent and the reader has not acknowledged."""

    def __init__(self) -> None:
        self._sizes: deque[int] = deque()
        self._bytes = 0

    def spend(self, size: int) -> bool:
        """Count a reply of `size` bytes as sent, if it may be sent now; whether it may."""
        if len(self._sizes) >= STREAM_ITEMS_MAX or self._bytes + size > UNREAD_BYTES_MAX:
            return False
        self._sizes.append(size)
        self._bytes += size
        return True

    def acknowledged(self, count: int) -> None:
        """The reader took `count` replies; `ProtocolError` where it never got that many."""
        if count > len(self._sizes):
            raise ProtocolError(f"The peer took {count} replies of a stream that had {len(self._sizes)} under way.")
        for _ in range(count):
            self._bytes -= self._sizes.popleft()


class Window:
    """The reader's view: what has arrived, what was taken of it, and what of that is not acknowledged yet."""

    def __init__(self) -> None:
        self._unread: deque[int] = deque()
        self._count = 0
        self._bytes = 0
        self._taken = 0
        self._taken_bytes = 0

    def arrived(self, size: int) -> None:
        """A reply arrived; `ProtocolError` where the sender had no allowance for it."""
        self._count += 1
        self._bytes += size
        self._unread.append(size)
        if self._count > STREAM_ITEMS_MAX or self._bytes > UNREAD_BYTES_MAX:
            raise ProtocolError("The peer sent more of a stream than it had credit for.")

    def took(self, count: int) -> int:
        """The reader took `count` replies; says how many to acknowledge now, 0 while it can wait."""
        for _ in range(count):
            self._taken_bytes += self._unread.popleft()
        self._taken += count
        if self._taken * 2 < STREAM_ITEMS_MAX and self._taken_bytes * 2 < UNREAD_BYTES_MAX:
            return 0
        grant = self._taken
        self._count -= grant
        self._bytes -= self._taken_bytes
        self._taken = self._taken_bytes = 0
        return grant
