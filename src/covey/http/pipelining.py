"""What a client sends while its request is answered: read ahead, so that its leaving is seen behind it."""

import contextlib
from collections.abc import Callable

import trio

from covey.http.wire import BROKEN, Wire

AHEAD_BYTES_MAX = 64 * 1024
"""How much is read ahead, roughly; who has sent more is only read again once the answer is there."""


class ReadAhead:
    """In the shape of the event that Hypercorn's HTTP/1.1 waits for while more has come than the request it answers.

    Waiting for that alone, a connection does not see its client leave: behind two bytes that some send after a body,
    the engine would go on for nobody.

    Args:
        wire: of the connection, whose reader is the one that waits.
        keep: takes what has come; returns how much of it waits by now.
    """

    def __init__(self, wire: Wire, keep: Callable[[bytes], int]) -> None:
        self._wire = wire
        self._keep = keep
        self._answered = trio.Event()

    async def clear(self) -> None:
        """A request is being answered."""
        self._answered = trio.Event()

    async def set(self) -> None:
        """It has been answered, or its connection is at its end."""
        self._answered.set()

    def is_set(self) -> bool:
        """Whether it has."""
        return self._answered.is_set()

    async def wait(self) -> None:
        """Until it has. Raises `BrokenResourceError` where the client leaves before."""
        has_left = False

        async def stop_reading() -> None:
            await self._answered.wait()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_reading)
            has_left = not await self._read()
            if has_left:
                nursery.cancel_scope.cancel()
        if has_left:
            raise trio.BrokenResourceError("the client has left")

    async def _read(self) -> bool:
        """Read until there is enough; false at the client's end."""
        with contextlib.suppress(*BROKEN):
            while data := await self._wire.receive():
                if self._keep(data) > AHEAD_BYTES_MAX:
                    return True
        return False
