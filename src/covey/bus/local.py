"""A stream from a handler of this process: a task of the bus's, and the buffer between it and its reader.

Classes, where generators would be shorter: those of `contextlib` cost a short stream as much as the rest of it.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Generic, cast

import trio

from covey.bus.caller import EVERY_PARTY, Caller, check
from covey.bus.replies import CANCEL_SECONDS_MAX, Replies
from covey.bus.serving import Served, run_stream
from covey.contracts.method import Req, Res, Streaming
from covey.errors import CallError
from covey.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class LocalStream(AbstractAsyncContextManager[Replies[Res]], Generic[Req, Res]):
    """Runs a handler while the block does; leaving cancels it and waits for it.

    Args:
        served: whose handler.
        caller: who calls.
        request: what it is asked.
        timeout_seconds: for the whole stream; `None`: for as long as it takes.
        nursery: of the bus; `None`: it is over.
    """

    def __init__(
        self,
        served: Served[Req, Res],
        caller: Caller,
        request: Req,
        timeout_seconds: float | None,
        nursery: trio.Nursery | None,
    ) -> None:
        self._served = served
        self._method = cast("Streaming[Req, Res]", served.method)
        self._caller = caller
        self._request = request
        self._timeout_seconds = timeout_seconds
        self._nursery = nursery
        self._done = trio.Event()

    async def __aenter__(self) -> Replies[Res]:
        """Start the handler.

        Raises:
            CallError: `draining`.
        """
        if self._nursery is None:
            raise stopping()
        self._replies: Replies[Res] = Replies(self._method, self._timeout_seconds)
        self._scope = trio.CancelScope(deadline=self._replies.deadline)
        self._nursery.start_soon(self._produce, name=f"serve {self._method.name}")
        return self._replies

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave."""
        try:
            if not self._done.is_set():  # mostly it is: a stream that was read to its end
                self._scope.cancel()
                with trio.move_on_after(CANCEL_SECONDS_MAX, shield=True) as patience:
                    await self._done.wait()
                if patience.cancelled_caught:
                    log.error("The handler of %s ignores its cancellation.", self._method.name)
        finally:
            self._replies.leave()

    async def _produce(self) -> None:
        # What a reader learns whose handler ended with the bus, unfinished:
        failure: CallError | None = stopping()
        try:
            check(self._method.name, self._caller.stamp, EVERY_PARTY, self._method.access)
            emit = self._replies.put_when_room
            await run_stream(self._served, self._caller, self._request, emit, self._timeout_seconds, self._scope)
            failure = None
        except CallError as error:
            failure = error
        finally:
            self._replies.end(failure)
            self._done.set()


class CountedStream(AbstractAsyncContextManager[Replies[Res]]):
    """Any stream, counted once by how it ended.

    Args:
        method: its name.
        find: opens the way to its handler.
        metrics: where it is counted.
    """

    def __init__(
        self, method: str, find: Callable[[], AbstractAsyncContextManager[Replies[Res]]], metrics: Metrics
    ) -> None:
        self._method = method
        self._find = find
        self._metrics = metrics

    async def __aenter__(self) -> Replies[Res]:
        """Open it."""
        try:
            self._way = self._find()
            return await self._way.__aenter__()
        except BaseException as error:
            self._count(error)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Leave it."""
        try:
            swallowed = await self._way.__aexit__(kind, error, traceback)
        except BaseException as failure:
            self._count(failure)
            raise
        self._count(error)
        return swallowed

    def _count(self, error: BaseException | None) -> None:
        outcome = "ok" if error is None else error.code if isinstance(error, CallError) else "cancelled"
        self._metrics.bus_call(self._method, outcome)


def stopping() -> CallError:
    """The `draining` of a bus that is over."""
    return CallError("draining", "This node is stopping.")
