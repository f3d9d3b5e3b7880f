"""The writes of one connection: one after the other, each with a deadline, and at once where the kernel takes it."""

from collections.abc import Awaitable, Callable

import trio

from covey.http.wire import BROKEN, Wire

WRITES_AT_ONCE = 8
"""How many writes that need not wait follow each other before the other tasks have a turn."""
WRITE_BYTES = 256 * 1024
"""How much of a long answer each deadline is for: a client on a slow line reads megabytes for longer than that."""


class Writer:
    """Writes to a wire.

    Args:
        wire: the connection's.
        seconds_max: how long one write, of `WRITE_BYTES` at most, may wait for its client.
        failed: called where the client has gone, or did not read in time; the wire is aborted then.
    """

    __slots__ = ("_failed", "_is_cut", "_seconds_max", "_sending", "_wire", "_writes", "_writing")

    def __init__(self, wire: Wire, seconds_max: float, failed: Callable[[], Awaitable[None]]) -> None:
        self._wire = wire
        self._seconds_max = seconds_max
        self._failed = failed
        self._sending = trio.Lock()
        self._writing: trio.CancelScope | None = None
        self._is_cut = False
        self._writes = 0

    def cut(self) -> None:
        """Give up the write under way, and those to come."""
        self._is_cut = True
        if self._writing is not None:
            self._writing.cancel()

    async def write(self, data: bytes) -> None:
        """Write everything, after what others began before. Raises nothing: `failed` is told."""
        if not self._is_cut and not self._sending.locked():
            data = self._wire.write_at_once(data)
            if not data:
                # Without a wait, so that an answer costs no round of the scheduler; not so often that one connection,
                # whose application writes and writes, could keep the others waiting.
                self._writes = (self._writes + 1) % WRITES_AT_ONCE
                if not self._writes:
                    await trio.lowlevel.cancel_shielded_checkpoint()
                return
        # Shielded, the wait for the lock too: there is no other point in the final send where a cancellation could
        # strike, and leave the connection neither idle nor closed. Bounded by the deadline, and by `cut`.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._seconds_max) as scope:
            try:
                self._sending.acquire_nowait()  # spares the scheduler a round, nearly always
            except trio.WouldBlock:
                await self._sending.acquire()
            if self._is_cut:
                scope.cancel()
            self._writing = scope
            try:
                for start in range(0, len(data), WRITE_BYTES):
                    scope.deadline = trio.current_time() + self._seconds_max
                    await self._wire.send_all(data[start : start + WRITE_BYTES])
            except BROKEN:
                await self._failed()
            finally:
                self._writing = None
                self._sending.release()
        if scope.cancelled_caught:
            self._wire.abort()
            await self._failed()
