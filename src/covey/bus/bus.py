"""One way to call a method, wherever it is served.

`call` and `stream` dispatch to a handler of this process, with the frozen message itself, or over the link to a peer
that serves the method. Same errors, deadlines, cancellation and back-pressure either way; the conformance suite
(`covey.testing.conformance`) holds both to it. No role knows which happened.
"""

import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Protocol, Self, cast

import trio

from covey.bus import wire
from covey.bus.background import open_background
from covey.bus.caller import EVERY_PARTY, Caller, check
from covey.bus.directory import Directory
from covey.bus.local import CountedStream, LocalStream
from covey.bus.replies import Emit, Replies
from covey.bus.serving import Served, not_served, run_unary
from covey.contracts.method import Party, Req, Res, Streaming, Unary
from covey.errors import CallError
from covey.telemetry.logs import current_request_id
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

UnaryHandler = Callable[[Caller, Req], Awaitable[Res]]
StreamHandler = Callable[[Caller, Req, Emit[Res]], Awaitable[None]]


class Link(Protocol):
    """The way to one peer: a session over a byte stream (`covey.bus.session`)."""

    @property
    def name(self) -> str:
        """What the peer is called."""
        ...

    async def call(self, method: Unary[Req, Res], request: Req, stamp: Party, timeout_seconds: float) -> Res:
        """As `BusHandle.call`."""
        ...

    def stream(
        self,
        method: Streaming[Req, Res],
        request: Req,
        stamp: Party,
        timeout_seconds: float | None,
        opening: trio.CancelScope | None,
    ) -> AbstractAsyncContextManager[Replies[Res]]:
        """As `BusHandle.stream`."""
        ...

    def announce(self, methods: tuple[str, ...]) -> None:
        """Tell the peer what is served here now."""
        ...


BASE_FAMILIES = ("cluster.", "feeds.")
"""By which others watch a node, and know what it knows: served while it drains, too."""


def _nobody_knows(_: PeerId) -> str:
    return ""


class Bus:
    """The methods served in this process and the links to others'. Roles hold a `BusHandle` of it, never the bus.

    Args:
        me: this node's peer id.
        metrics: where calls are counted, by method and outcome.
        name: this node's name, for messages.
    """

    def __init__(self, me: PeerId, metrics: Metrics, *, name: str = "") -> None:
        self.me = me
        self.name = name
        self.boot_id = secrets.token_hex(16)
        """New in every process: tells an honest restart from a copied identity."""
        self.directory = Directory()
        self.known_name: Callable[[PeerId], str] = _nobody_knows
        """What the network's membership calls a node; "" where it does not know it."""
        self._metrics = metrics
        self._served: dict[str, Served[Any, Any]] = {}
        self._links: dict[PeerId, Link] = {}
        self._draining = False
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Self, None]:
        """Run the streams' handlers; leaving cancels those that still run."""
        async with open_background() as nursery:
            self._nursery = nursery
            try:
                yield self
            finally:
                self._nursery = None

    def stamped(self, stamp: Party) -> "BusHandle":
        """The bus as one role sees it."""
        return BusHandle(self, stamp)

    # What is served here

    def serve(
        self, method: Unary[Req, Res] | Streaming[Req, Res], handler: Callable[..., Any], *, waits: bool = True
    ) -> None:
        """Register a handler; `ValueError` where the method has one already."""
        if method.name in self._served:
            raise ValueError(f"{method.name} is served already")
        self._served[method.name] = Served(method, handler, waits)
        for link in self._links.values():
            link.announce(self.methods)

    def served(self, name: str) -> Served[Any, Any] | None:
        """The handler of a method in this process."""
        return self._served.get(name)

    def all_served(self) -> tuple[Served[Any, Any], ...]:
        """Every handler of this process."""
        return tuple(self._served.values())

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the methods served to others, sorted; while draining, only those of the base."""
        return tuple(sorted(name for name in self._served if not self._draining or name.startswith(BASE_FAMILIES)))

    def drain(self) -> None:
        """Tell every peer to send its calls elsewhere from now on; what runs goes on, and this process still calls."""
        self._set_draining(draining=True)

    def resume(self) -> None:
        """Take calls again, after `drain`."""
        self._set_draining(draining=False)

    def _set_draining(self, *, draining: bool) -> None:
        if draining != self._draining:
            self._draining = draining
            for link in self._links.values():
                link.announce(self.methods)

    # Links to peers

    def attach(self, peer: PeerId, link: Link, methods: tuple[str, ...]) -> None:
        """A link to a peer is up, and the peer serves these methods."""
        self._links[peer] = link
        self.directory.record(peer, methods)

    def name_of(self, peer: PeerId) -> str:
        """What a node is called: as the membership says, else as it says itself; else its id."""
        if known := self.known_name(peer):
            return known
        if peer == self.me:
            return self.name or str(peer)
        link = self._links.get(peer)
        return str(peer) if link is None else link.name

    def report(self, peer: PeerId, link: Link, methods: tuple[str, ...]) -> None:
        """The peer now serves other methods; heeded from its present link alone."""
        if self._links.get(peer) is link:
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
                return await self._call_far(method, request, stamp, to, seconds)
            wire.check_size(request)
            check(method.name, stamp, EVERY_PARTY, method.access)
            return cast(Res, await run_unary(served, Caller(self.me, stamp, current_request_id()), request, seconds))
        except CallError as error:
            outcome = error.code
            raise
        except BaseException:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.bus_call(method.name, outcome)

    def counted(
        self, method: str, find: Callable[[], AbstractAsyncContextManager[Replies[Res]]]
    ) -> AbstractAsyncContextManager[Replies[Res]]:
        """A stream, counted once by how it ended. `find`: `find_stream` with its arguments."""
        return CountedStream(method, find, self._metrics)

    def find_stream(
        self,
        stamp: Party,
        method: Streaming[Req, Res],
        request: Req,
        to: PeerId | None,
        timeout_seconds: float | None,
        opening: trio.CancelScope | None,
    ) -> AbstractAsyncContextManager[Replies[Res]]:
        """See `BusHandle.stream`."""
        served = self._served.get(method.name) if to is None or to == self.me else None
        if served is None:
            return self._routes(method.name, to)[0].stream(method, request, stamp, timeout_seconds, opening)
        wire.check_size(request)
        caller = Caller(self.me, stamp, current_request_id())
        return LocalStream(served, caller, request, timeout_seconds, self._nursery)

    async def _call_far(
        self, method: Unary[Req, Res], request: Req, stamp: Party, to: PeerId | None, timeout_seconds: float
    ) -> Res:
        deadline = trio.current_time() + timeout_seconds
        routes = self._routes(method.name, to)
        for link in routes[:-1]:
            try:
                return await link.call(method, request, stamp, deadline - trio.current_time())
            except CallError as error:
                # `unreachable`: the link died before it took the call. `peer_lost`: the handler may have run.
                if error.code != "unreachable" and not (error.code == "peer_lost" and method.idempotent):
                    raise
        return await routes[-1].call(method, request, stamp, deadline - trio.current_time())

    def _routes(self, method: str, to: PeerId | None) -> list[Link]:
        """The links that a call may take, best first, at least one; or `unreachable`."""
        if to is None:
            if links := [self._links[peer] for peer in self.directory.serving(method) if peer in self._links]:
                return links
            raise CallError("unreachable", f"No live node serves {method}.", reason="no_peer")
        if to == self.me:
            raise not_served(method, "This node")
        if link := self._links.get(to):
            return [link]
        raise CallError("unreachable", f"There is no link to the node {to} now.", reason="no_peer")


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
        opening: trio.CancelScope | None = None,
    ) -> AbstractAsyncContextManager[Replies[Res]]:
        """Open a stream of replies: `async with bus.stream(CHAT, request) as deltas: async for delta in deltas`.

        Leaving the block cancels the handler and waits for it. Errors surface from the iteration, after the replies
        that came before them. `timeout_seconds` bounds the whole; the contract's `idle_seconds` each wait.

        Opening may wait for the link to a peer: in the scope `opening`, for who may cancel that alone (`deadline`).
        """
        find = partial(self._bus.find_stream, self.stamp, method, request, to, timeout_seconds, opening)
        return self._bus.counted(method.name, find)

    def serve(self, method: Unary[Req, Res], handler: UnaryHandler[Req, Res]) -> None:
        """Serve a method of one reply."""
        self._bus.serve(method, handler)

    def serve_at_once(self, method: Unary[Req, Res], handler: Callable[[Caller, Req], Res]) -> None:
        """Serve a method of one reply by a function that does not wait, for anything, ever: the loop stands still
        while it runs. Such a call costs half of another.
        """
        self._bus.serve(method, handler, waits=False)

    def serve_stream(self, method: Streaming[Req, Res], handler: StreamHandler[Req, Res]) -> None:
        """Serve a stream: `async def handler(caller, request, emit)`; `emit` waits while the reader is slow."""
        self._bus.serve(method, handler)

    @property
    def me(self) -> PeerId:
        """This node's peer id."""
        return self._bus.me

    def name_of(self, peer: PeerId) -> str:
        """What a node is called: this one, or one with a live link; else its id."""
        return self._bus.name_of(peer)

    def serving(self, method: Unary[Any, Any] | Streaming[Any, Any]) -> tuple[PeerId, ...]:
        """The live peers that serve a method, this node first if it does; while it drains, only if no other does."""
        others = self._bus.directory.serving(method.name)
        if self._bus.served(method.name) is None or (others and method.name not in self._bus.methods):
            return others
        return (self._bus.me, *others)
