"""One chat from admission to its last token, for HTTP and the bus alike; usage is recorded once, where it ended."""

import logging
import math
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio
from msgspec.structs import replace

from covey.bus.bus import BusHandle
from covey.bus.replies import Replies
from covey.contracts.auth import Identity
from covey.contracts.inference import CHAT, ChatDelta, ChatRequest, Finish, Usage
from covey.errors import CallError, Code
from covey.roles.gateway.admission import check_model
from covey.roles.gateway.live import Live
from covey.roles.gateway.placement import Fleet
from covey.roles.gateway.stats import Tally
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId

log = logging.getLogger(__name__)


RETRIES_MAX = 2
RETRY_SHARE = 0.2
"""Of the requests in flight, beyond the first few: a cluster that fails all over is not asked everything thrice."""
RETRYABLE: frozenset[Code] = frozenset({"unreachable", "peer_lost", "draining", "no_capacity", "loading", "upstream"})
"""What another node may do better. Only before the first token: what was delivered cannot be taken back."""


class Route:
    """The way of one request to a node that has its model, and to another one while nothing was delivered.

    `first`: the node to try first, as placed.
    """

    def __init__(
        self,
        bus: BusHandle,
        fleet: Fleet,
        tally: Tally,
        request: ChatRequest,
        *,
        first: PeerId | None,
        seconds_max: float,
    ) -> None:
        self._bus = bus
        self._fleet = fleet
        self._tally = tally
        self._request = request
        self._deadline = trio.current_time() + seconds_max
        self._first = first
        self._tried: set[PeerId] = set()
        self._failure: CallError | None = None
        self._peer: PeerId | None = None
        self._replies: Replies[ChatDelta] | None = None
        self._stream: AbstractAsyncContextManager[Replies[ChatDelta]] | None = None
        self._delivered = False

    async def batch(self, until: float = math.inf) -> list[ChatDelta] | None:
        """The next deltas, all that wait; [] at the end; `None` where none has come `until` then, on trio's clock.

        Raises:
            CallError: the last node's, where no other is left to try.
        """
        while True:
            if self._replies is None:
                if until == math.inf:
                    await self._reach()
                    continue
                with trio.CancelScope(deadline=until) as waiting:
                    await self._reach()
                if waiting.cancelled_caught:
                    return None
                continue
            try:
                deltas = await self._replies.batch(until)
            except CallError as error:
                if self._delivered or error.code not in RETRYABLE or len(self._tried) > RETRIES_MAX:
                    raise
                self._failure = error
                await self.leave()
                continue
            self._delivered = self._delivered or bool(deltas)
            return deltas

    async def _reach(self) -> None:
        peer, self._first = self._first, None
        if peer is None:
            peer = await self._fleet.place(self._request.model, self._tried)
        if self._failure is not None:
            if peer is None or not self._tally.may_retry(RETRY_SHARE):
                raise self._failure
            log.info("Trying another node: %s", self._failure.message)
        if peer is None:
            raise CallError("no_capacity", "No node can take the request now.", retry_after_seconds=1.0)
        self._tried.add(peer)
        seconds = max(self._deadline - trio.current_time(), 0)
        try:
            stream = self._bus.stream(CHAT, self._request, to=peer, timeout_seconds=seconds)
            replies = await stream.__aenter__()  # `leave` leaves it
        except CallError as error:
            if error.code not in RETRYABLE or len(self._tried) > RETRIES_MAX:
                raise
            self._failure = error
            return
        self._fleet.started(peer, self._request.model)
        self._peer, self._stream, self._replies = peer, stream, replies

    async def leave(self) -> None:
        """Stop the node that works on it, if one does."""
        if self._peer is not None:
            self._fleet.ended(self._peer, self._request.model)
        stream, self._stream = self._stream, None
        self._peer = self._replies = None
        if stream is not None:
            await stream.__aexit__(None, None, None)


class Completion:
    """A running answer: take `batch()` until `finish` is set."""

    def __init__(self, route: Route, model: str, started_at: float, live: Live) -> None:
        self.model = model
        self._live = live
        self.finish: Finish | None = None
        self.usage: Usage | None = None
        self.tokens = 0
        self.started_at = started_at
        self.first_token_at: float | None = None
        self.last_token_at = started_at
        self._route = route

    async def batch(self, until: float = math.inf) -> list[ChatDelta] | None:
        """The next deltas, all that wait; [] at the end; `None` where none has come `until` then, on trio's clock.

        Raises:
            CallError: the back end's; `upstream` where it ended without saying how; `unauthenticated` where what the
                request was let in with counts no more.
        """
        deltas: list[ChatDelta] | None = []
        self._live.check()
        with trio.CancelScope() as self._live.waiting:
            deltas = await self._route.batch(until)
        self._live.check()
        if not deltas:
            if deltas is not None and self.finish is None:
                raise CallError("upstream", f"The model {self.model!r} broke off in the middle of its answer.")
            return deltas
        now = trio.current_time()
        for delta in deltas:
            if delta.text:
                self.tokens += delta.tokens or 1
                if self.first_token_at is None:
                    self.first_token_at = now
                self.last_token_at = now
            if delta.finish is not None:
                self.finish = delta.finish
            if delta.usage is not None:
                self.usage = delta.usage
        return deltas

    @property
    def billed(self) -> Usage:
        """What the engine counted, or, where it was cut short, what was delivered."""
        return self.usage or Usage(prompt_tokens=0, completion_tokens=self.tokens)


class Completions:
    """Opens completions, and keeps the books."""

    def __init__(
        self,
        bus: BusHandle,
        fleet: Fleet,
        tally: Tally,
        metrics: Metrics,
        *,
        in_flight_max: int,
        request_seconds_max: float,
    ) -> None:
        self._bus = bus
        self._fleet = fleet
        self._tally = tally
        self._metrics = metrics
        self._in_flight_max = in_flight_max
        self._request_seconds_max = request_seconds_max
        metrics.in_flight.set_function(lambda: tally.in_flight)

    @asynccontextmanager
    async def open(
        self, identity: Identity, chat: ChatRequest, live: Live, *, route: str, started_at: float
    ) -> AsyncGenerator[Completion, None]:
        """Place a chat and stream its answer; leaving cancels the engine and writes the usage down.

        Args:
            identity: who pays; already admitted.
            chat: its `model` "" is the first that can answer.
            live: the request, which may be ended by a denial.
            route: for the metrics.
            started_at: `trio.current_time()` when the request came in.

        Raises:
            CallError: `forbidden`, `not_found`, `no_capacity`, and whatever the node says.
        """
        if self._tally.in_flight >= self._in_flight_max:
            raise CallError("no_capacity", "The gateway is busy; try again soon.", retry_after_seconds=1.0)
        outcome, label, completion = "ok", "unknown", None
        self._tally.in_flight += 1
        try:
            model = chat.model or await self._fleet.default_model(identity.models)
            check_model(identity, model)
            request = replace(chat, model=model, tenant=identity.key_id)
            first = await self._fleet.place(model)  # a model that nobody has is refused here, before it is a label
            label = model
            seconds_max = self._request_seconds_max
            way = Route(self._bus, self._fleet, self._tally, request, first=first, seconds_max=seconds_max)
            completion = Completion(way, model, started_at, live)
            try:
                yield completion
            finally:
                await way.leave()
            if completion.finish is None:
                outcome = "cancelled"
        except CallError as error:
            outcome = error.code
            raise
        except BaseException:
            outcome = "cancelled"
            raise
        finally:
            self._tally.in_flight -= 1
            self._record(label, route, outcome, completion, started_at)

    def _record(self, label: str, route: str, outcome: str, completion: Completion | None, started_at: float) -> None:
        now = trio.current_time()
        metrics = self._metrics.of_model(label)
        self._metrics.request_ended(route, label, outcome)
        usage = completion.billed if completion else Usage(0, 0)
        first_token_seconds: float | None = None
        if completion is not None:
            metrics.request_seconds.observe(now - started_at)
            metrics.prompt_tokens.inc(usage.prompt_tokens)
            metrics.generation_tokens.inc(usage.completion_tokens)
            if completion.first_token_at is not None:
                first_token_seconds = completion.first_token_at - started_at
                metrics.first_token_seconds.observe(first_token_seconds)
                if completion.tokens > 1:
                    span = completion.last_token_at - completion.first_token_at
                    metrics.token_seconds.observe(span / (completion.tokens - 1))
        self._tally.record(
            now,
            failed=outcome not in ("ok", "cancelled"),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            first_token_seconds=first_token_seconds,
            request_seconds=now - started_at,
        )
