"""One way to call a method, wherever it is served.

`call` and `stream` dispatch to a handler of this process, with the frozen message itself, or over the link to a peer
that serves the method. Same errors, deadlines, cancellation and back-pressure either way; the conformance suite
(`covey.testing.conformance`) holds both to it. No role knows which happened.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar, cast

import trio

from covey.bus.caller import Caller, check
from covey.bus.directory import Directory
from covey.bus.replies import STREAM_ITEMS_MAX, Emit, Replies
from covey.contracts.method import Party, Req, Res, Streaming, Unary
from covey.errors import CallError
from covey.telemetry.logs import current_request_id
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId

log = logging.getLogger(__name__)
T = TypeVar("T")

UnaryHandler = Callable[[Caller, Req], Awaitable[Res]]
StreamHandler = Callable[[Caller, Req, Emit[Res]], Awaitable[None]]

CANCEL_SECONDS_MAX = 5.0
"""How long leaving a stream waits for a handler that ignores its cancellation."""

LOCAL_PARTIES: frozenset[Party] = frozenset({"gateway", "auth", "inference", "web", "member", "operator"})
"""What this process itself may act as. Its roles are kept apart by their stamped handles."""


class Link(Protocol):
    """The way to one peer: a session over a byte stream (`covey.bus.session`)."""

    async def call(self, method: Unary[Req, Res], request: Req, stamp: Party, timeout_seconds: float) -> Res:
        """As `BusHandle.call`."""
        ...

    def stream(
        self, method: Streaming[Req, Res], request: Req, stamp: Party, timeout_seconds: float | None
    ) -> AbstractAsyncContextManager[Replies[Res]]:
        """As `BusHandle.stream`."""
        ...


@dataclass(frozen=True, slots=True)
class Served(Generic[Req, Res]):
    """A contract with its handler."""

    method: Unary[Req, Res] | Streaming[Req, Res]
    handler: Callable[..., Awaitable[Any]]


class Bus:
    """The methods served in this process and the links to others'. Roles hold a `BusHandle` of it, never the bus.

    Args:
        me: this node's peer id.
        metrics: where calls are counted, by method and outcome.
    """

    def __init__(self, me: PeerId, metrics: Metrics) -> None:
        self.me = me
        self.directory = Directory()
        self._metrics = metrics
        self._served: dict[str, Served[Any, Any]] = {}
        self._links: dict[PeerId, Link] = {}
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Self, None]:
        """Run the streams' handlers; leaving cancels those that still run."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield self
            finally:
                nursery.cancel_scope.cancel()
                self._nursery = None

    def stamped(self, stamp: Party) -> "BusHandle":
        """The bus as one role sees it."""
        return BusHandle(self, stamp)

    # What is served here

    def serve(self, method: Unary[Req, Res] | Streaming[Req, Res], handler: Callable[..., Awaitable[Any]]) -> None:
        """Register a handler; `ValueError` where the method has one already."""
        if method.name in self._served:
            raise ValueError(f"{method.name} is served already")
        self._served[method.name] = Served(method, handler)

    def served(self, name: str) -> Served[Any, Any] | None:
        """The handler of a method in this process."""
        return self._served.get(name)

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the methods served here, sorted."""
        return tuple(sorted(self._served))

    # Links to peers

    def attach(self, peer: PeerId, link: Link, methods: tuple[str, ...]) -> None:
        """A link to a peer is up, and the peer serves these methods."""
        self._links[peer] = link
        self.directory.record(peer, methods)

    def detach(self, peer: PeerId, link: Link) -> None:
        """The link is down; a newer one to the same peer stays."""
        if self._links.get(peer) is link:
            del self._links[peer]
            self.directory.forget(peer)

    # Calls

    async def call(
        self, stamp: Party, method: Unary[Req, Res], request: Req, to: PeerId | None, timeout_seconds: float | None
    ) -> Res:
        """See `BusHandle.call`."""
        seconds = method.timeout_seconds if timeout_seconds is None else timeout_seconds
        outcome = "ok"
        try:
            served = self._served.get(method.name) if to is None or to == self.me else None
            if served is None:
                return await self._link(method.name, to).call(method, request, stamp, seconds)
            check(method.name, stamp, LOCAL_PARTIES, method.access)
            caller = Caller(self.me, stamp, current_request_id())
            with trio.move_on_after(seconds):
                return cast(Res, await guard(served.method.name, served.handler(caller, request)))
            raise too_slow(method.name, seconds)
        except CallError as error:
            outcome = error.code
            raise
        except BaseException:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.bus_call(method.name, outcome)

    @asynccontextmanager
    async def stream(
        self, stamp: Party, method: Streaming[Req, Res], request: Req, to: PeerId | None, timeout_seconds: float | None
    ) -> AsyncGenerator[Replies[Res], None]:
        """See `BusHandle.stream`."""
        outcome = "ok"
        try:
            served = self._served.get(method.name) if to is None or to == self.me else None
            if served is None:
                route = self._link(method.name, to).stream(method, request, stamp, timeout_seconds)
            else:
                check(method.name, stamp, LOCAL_PARTIES, method.access)
                route = self._stream_here(served, Caller(self.me, stamp, current_request_id()), request, timeout_seconds)
            async with route as replies:
                yield replies
        except CallError as error:
            outcome = error.code
            raise
        except BaseException:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.bus_call(method.name, outcome)

    @asynccontextmanager
    async def _stream_here(
        self, served: Served[Req, Res], caller: Caller, request: Req, timeout_seconds: float | None
    ) -> AsyncGenerator[Replies[Res], None]:
        if self._nursery is None:
            raise CallError("draining", "This node is stopping.")
        method = cast("Streaming[Req, Res]", served.method)
        send, receive = trio.open_memory_channel[Res](STREAM_ITEMS_MAX)
        replies = Replies(receive, method.name, method.idle_seconds)
        scope, done = trio.CancelScope(), trio.Event()

        async def produce() -> None:
            try:
                with scope, send:
                    try:
                        await run_stream(served, caller, request, send.send, timeout_seconds)
                    except CallError as error:
                        replies.failure = error  # before `send` closes: the reader sees it in order
            finally:
                done.set()

        self._nursery.start_soon(produce, name=f"serve {method.name}")
        try:
            yield replies
        finally:
            scope.cancel()
            with trio.move_on_after(CANCEL_SECONDS_MAX, shield=True) as patience:
                await done.wait()
            if patience.cancelled_caught:
                log.error("The handler of %s ignores its cancellation.", method.name)
            receive.close()

    def _link(self, method: str, to: PeerId | None) -> Link:
        peers = (to,) if to is not None else self.directory.serving(method)
        for peer in peers:
            if link := self._links.get(peer):
                return link
        where = "This node" if to == self.me else "No live node" if to is None else f"The node {to}"
        raise CallError("unreachable", f"{where} serves {method} now.", reason="no_peer")


class BusHandle:
    """The bus, stamped with the role that uses it."""

    def __init__(self, bus: Bus, stamp: Party) -> None:
        self._bus = bus
        self.stamp: Party = stamp

    async def call(
        self,
        method: Unary[Req, Res],
        request: Req,
        *,
        to: PeerId | None = None,
        timeout_seconds: float | None = None,
    ) -> Res:
        """Call a method: here if it is served here, else at a live peer that serves it; `to` overrides.

        Raises:
            CallError: the handler's own; `deadline` after `timeout_seconds` (default: the contract's); `denied`;
                `unreachable`; `peer_lost`; `internal` where the handler has a bug.
        """
        return await self._bus.call(self.stamp, method, request, to, timeout_seconds)

    def stream(
        self,
        method: Streaming[Req, Res],
        request: Req,
        *,
        to: PeerId | None = None,
        timeout_seconds: float | None = None,
    ) -> AbstractAsyncContextManager[Replies[Res]]:
        """Open a stream of replies: `async with bus.stream(CHAT, request) as deltas: async for delta in deltas`.

        Leaving the block cancels the handler and waits for it. Errors surface from the iteration, after the replies
        that came before them. `timeout_seconds` bounds the whole; the contract's `idle_seconds` each wait.
        """
        return self._bus.stream(self.stamp, method, request, to, timeout_seconds)

    def serve(self, method: Unary[Req, Res], handler: UnaryHandler[Req, Res]) -> None:
        """Serve a method of one reply."""
        self._bus.serve(method, handler)

    def serve_stream(self, method: Streaming[Req, Res], handler: StreamHandler[Req, Res]) -> None:
        """Serve a stream: `async def handler(caller, request, emit)`; `emit` waits while the reader is slow."""
        self._bus.serve(method, handler)

    @property
    def me(self) -> PeerId:
        """This node's peer id."""
        return self._bus.me

    def serving(self, method: Unary[Any, Any] | Streaming[Any, Any]) -> tuple[PeerId, ...]:
        """The live peers that serve a method, this node first if it does."""
        here = (self._bus.me,) if self._bus.served(method.name) else ()
        return here + self._bus.directory.serving(method.name)


async def guard(method: str, work: Awaitable[T]) -> T:
    """Run a handler; a bug in it is logged here, where it happened, and becomes the `internal` that callers see."""
    try:
        return await work
    except CallError:
        raise
    except Exception as error:
        if (refusal := _sole_refusal(error)) is not None:
            raise refusal from error
        log.exception("The handler of %s failed.", method)
        raise CallError("internal", f"{method} failed; its node's log says why.") from error


async def run_stream(
    served: Served[Req, Res], caller: Caller, request: Req, emit: Emit[Res], timeout_seconds: float | None
) -> None:
    """Run a streaming handler to its end, within its deadline, near or far."""
    seconds = float("inf") if timeout_seconds is None else timeout_seconds
    with trio.move_on_after(seconds) as scope:
        await guard(served.method.name, served.handler(caller, request, emit))
    if scope.cancelled_caught:
        raise too_slow(served.method.name, seconds)


def too_slow(method: str, seconds: float) -> CallError:
    """The `deadline` that either side raises."""
    return CallError("deadline", f"{method} did not answer within {seconds:g} s.")


def _sole_refusal(error: BaseException) -> CallError | None:
    """The `CallError` that a handler's own nursery wrapped in a group, if there is nothing else in it."""
    while isinstance(error, BaseExceptionGroup):
        inner = cast("BaseExceptionGroup[BaseException]", error).exceptions
        if len(inner) != 1:
            return None
        error = inner[0]
    return error if isinstance(error, CallError) else None


