"""What a stream yields, near or far."""

from collections.abc import Awaitable, Callable
from typing import Generic, Self, TypeVar

import trio

from covey.errors import CallError

Item = TypeVar("Item")
Emit = Callable[[Item], Awaitable[None]]
"""Hand one reply to the reader; waits while `STREAM_ITEMS_MAX` of them are unread."""

STREAM_ITEMS_MAX = 64
"""How many replies may wait unread, in the process and across a link alike (there: the credits of a call)."""


class Replies(Generic[Item]):
    """An asynchronous iterator over replies; a failure surfaces here, in order.

    Args:
        channel: where the replies arrive; closed by whoever opened the stream.
        method: for messages.
        idle_seconds: the longest wait for the next reply, then `deadline`.
        taken: told how many replies the reader has taken, so that a link can grant new credits.
    """

    def __init__(
        self,
        channel: trio.MemoryReceiveChannel[Item],
        method: str,
        idle_seconds: float,
        taken: Callable[[int], None] | None = None,
    ) -> None:
        self._channel = channel
        self._method = method
        self._idle_seconds = idle_seconds
        self._taken = taken
        self.failure: CallError | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        with trio.move_on_after(self._idle_seconds):
            try:
                item = await self._channel.receive()
            except trio.EndOfChannel:
                if self.failure is not None:
                    raise self.failure from None
                raise StopAsyncIteration from None
            if self._taken is not None:
                self._taken(1)
            return item
        raise CallError("deadline", f"{self._method} sent nothing for {self._idle_seconds:g} s.", reason="idle")

    async def batch(self) -> list[Item]:
        """The next reply and all that wait behind it, so that a writer can send them in one write; [] at the end.

        Raises:
            CallError: the stream's failure, once every reply before it was handed out.
        """
        try:
            items = [await anext(self)]
        except StopAsyncIteration:
            return []
        while True:
            try:
                items.append(self._channel.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                break
        if self._taken is not None and len(items) > 1:
            self._taken(len(items) - 1)
        return items
