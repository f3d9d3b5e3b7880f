"""What a stream yields, near or far."""

from collections.abc import Awaitable, Callable
from typing import Any, Generic, Self, TypeVar

import msgspec
import trio

from covey.contracts.method import Streaming
from covey.errors import CallError

Item = TypeVar("Item", bound=msgspec.Struct)
Emit = Callable[[Item], Awaitable[None]]
"""Hand one reply to the reader; waits while `credit.STREAM_ITEMS_MAX` of them are unread."""

CANCEL_SECONDS_MAX = 5.0
"""How long leaving a stream waits for a handler that ignores its cancellation."""


class Replies(Generic[Item]):
    """An asynchronous iterator over replies; a failure surfaces here, in order.

    Args:
        channel: where the replies arrive; closed by whoever opened the stream.
        method: whose `idle_seconds` is the longest wait for the next reply, then `deadline`.
        timeout_seconds: for the whole stream, from now; `None`: for as long as it takes.
        taken: told how many replies the reader has taken, so that a link can grant new credits.
    """

    def __init__(
        self,
        channel: trio.MemoryReceiveChannel[Item],
        method: Streaming[Any, Item],
        timeout_seconds: float | None = None,
        taken: Callable[[int], None] | None = None,
    ) -> None:
        self._channel = channel
        self._method = method
        self._timeout_seconds = timeout_seconds
        self._deadline = float("inf") if timeout_seconds is None else trio.current_time() + timeout_seconds
        self._taken = taken
        self._waiting_since: float | None = None
        self.failure: CallError | None = None
        """How the stream ended, set before its channel is closed; `None`: well."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        try:
            # Replies that wait are handed out without a trip through the scheduler. A reader cannot hog it: its
            # producer gets no turn meanwhile, so that only so many are waiting.
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                item = self._channel.receive_nowait()
            except trio.WouldBlock:
                item = await self._wait()
        except trio.EndOfChannel:
            if self.failure is not None:
                raise self.failure from None
            raise StopAsyncIteration from None
        self._waiting_since = None
        if self._taken is not None:
            self._taken(1)
        return item

    async def _wait(self) -> Item:
        if self._waiting_since is None:
            self._waiting_since = trio.current_time()
        # From the first wait: a reader that gives up now and then, to say it is still there, does not start it anew.
        latest = self._waiting_since + self._method.idle_seconds
        with trio.CancelScope(deadline=min(latest, self._deadline)):
            return await self._channel.receive()
        if self._timeout_seconds is not None and self._deadline <= latest:
            raise too_slow(self._method.name, self._timeout_seconds)
        seconds = self._method.idle_seconds
        raise CallError("deadline", f"{self._method.name} sent nothing for {seconds:g} s.", reason="idle")

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


def too_slow(method: str, seconds: float) -> CallError:
    """The `deadline` that either side raises."""
    return CallError("deadline", f"{method} did not answer within {seconds:g} s.")
