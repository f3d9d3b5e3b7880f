"""What a stream yields, near or far."""

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Self, TypeVar

import msgspec
import trio

from covey.bus.credit import STREAM_ITEMS_MAX
from covey.contracts.method import Streaming
from covey.errors import CallError

Item = TypeVar("Item", bound=msgspec.Struct)
Emit = Callable[[Item], Awaitable[None]]
"""Hand one reply to the reader; waits while `credit.STREAM_ITEMS_MAX` of them are unread."""

CANCEL_SECONDS_MAX = 5.0
"""How long leaving a stream waits for a handler that ignores its cancellation."""


class Replies(Generic[Item]):
    """An asynchronous iterator over replies; a failure surfaces here, in order.

    Whoever opened the stream fills it: `put`, or `put_when_room`, and at last `end`. A channel of trio's would do the
    same at thrice the price, and a reader could not take all that waits at once.

    Args:
        method: whose `idle_seconds` is the longest wait for the next reply, then `deadline`.
        timeout_seconds: for the whole stream, from now; `None`: for as long as it takes.
        taken: told how many replies the reader has taken, so that a link can grant new credits.
    """

    def __init__(
        self,
        method: Streaming[Any, Item],
        timeout_seconds: float | None = None,
        taken: Callable[[int], None] | None = None,
    ) -> None:
        self._method = method
        self._timeout_seconds = timeout_seconds
        self.deadline = math.inf if timeout_seconds is None else trio.current_time() + max(timeout_seconds, 0)
        """Of the whole stream, on trio's clock."""
        self._taken = taken
        self._waiting_since: float | None = None
        self._items: deque[Item] = deque()
        self._ended = self._left = False
        self._arrival = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()
        self._is_awaited = self._is_crowded = False  # whether somebody may be parked in either: cheaper to ask
        self.failure: CallError | None = None
        """How the stream ended; `None`: well."""

    # The reader's side

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        # Replies that wait are handed out without a trip through the scheduler. A reader cannot hog it: its
        # producer gets no turn meanwhile, so that only so many are waiting.
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._items:
            await self._wait(math.inf)
            if not self._items:
                raise StopAsyncIteration
        item = self._items.popleft()
        self._took(1)
        return item

    async def batch(self, until: float = math.inf) -> list[Item] | None:
        """The next reply and all that wait behind it, so that a writer can send them in one write; [] at the end.

        Args:
            until: when to stop waiting, on trio's clock; there is `None` then. A scope around this would do the same,
                at the price of one more for every reply.

        Raises:
            CallError: the stream's failure, once every reply before it was handed out.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._items:
            await self._wait(until)
            if not self._items:
                return [] if self._ended else None
        items = list(self._items)
        self._items.clear()
        self._took(len(items))
        return items

    async def _wait(self, until: float) -> None:
        """Until there is a reply, or the stream has ended well, or it is too late."""
        if not self._ended:
            if self._waiting_since is None:
                self._waiting_since = trio.current_time()
            # From the first wait: a reader that gives up now and then, to say it is still there, starts no new one.
            latest = self._waiting_since + self._method.idle_seconds
            with trio.CancelScope(deadline=min(latest, self.deadline, until)):
                while not self._items and not self._ended:
                    self._is_awaited = True
                    await self._arrival.park()
            if not self._items and not self._ended and until > min(latest, self.deadline):
                if self._timeout_seconds is not None and self.deadline <= latest:
                    raise too_slow(self._method.name, self._timeout_seconds)
                seconds = self._method.idle_seconds
                raise CallError("deadline", f"{self._method.name} sent nothing for {seconds:g} s.", reason="idle")
        if not self._items and self.failure is not None:
            raise self.failure

    def _took(self, count: int) -> None:
        self._waiting_since = None
        if self._is_crowded:
            self._is_crowded = False
            self._room.unpark_all()
        if self._taken is not None:
            self._taken(count)

    # The side of whoever opened the stream

    def put(self, item: Item) -> None:
        """Hand over a reply."""
        self._items.append(item)
        if self._is_awaited:
            self._is_awaited = False
            self._arrival.unpark_all()

    async def put_when_room(self, item: Item) -> None:
        """Hand over a reply once fewer than `STREAM_ITEMS_MAX` are unread. Cancelled, it handed over nothing.

        A checkpoint only where it waits: one for every token would cost as much as handing it over, and whoever emits
        without ever waiting comes to one here soon enough.

        Raises:
            trio.BrokenResourceError: the reader has left.
        """
        while len(self._items) >= STREAM_ITEMS_MAX and not self._left:
            self._is_crowded = True
            await self._room.park()
        if self._left:
            # Who was busy for longer than a reader waits for its cancellation is cancelled still, and no bug.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise trio.BrokenResourceError
        self.put(item)

    def end(self, failure: CallError | None = None) -> None:
        """No more replies, and why: what the reader learns behind the last one. Only the first end counts."""
        if not self._ended:
            self._ended = True
            self.failure = failure
            if self._is_awaited:
                self._arrival.unpark_all()

    def leave(self) -> None:
        """The reader is gone."""
        self._left = True
        self._items.clear()
        if self._is_crowded:
            self._room.unpark_all()


def too_slow(method: str, seconds: float) -> CallError:
    """The `deadline` that either side raises."""
    return CallError("deadline", f"{method} did not answer within {seconds:g} s.")
