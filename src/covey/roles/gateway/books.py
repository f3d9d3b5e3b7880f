"""What becomes of a request, written down once, where it ends: limits, metrics, the overview's figures, the usage."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

import trio

from covey.contracts.auth import Identity
from covey.contracts.inference import Usage
from covey.contracts.usage import UsageRecord
from covey.errors import CallError, leaves
from covey.http.asgi import ClientGone
from covey.roles.base import Clock, Lifecycle
from covey.roles.gateway.limiting import Charge
from covey.roles.gateway.live import Live
from covey.roles.gateway.stats import Tally
from covey.telemetry.access import note_use
from covey.telemetry.logs import current_request_id
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId

NOTHING_USED = Usage(0, 0)
UNKNOWN = "unknown"
"""The label of a request that no model was found for."""


@dataclass(eq=False)
class Asked:
    """One request, and what became of it.

    Args:
        identity: who pays.
        route: the API path, or the bus's method.
        live: what ends it where its key is revoked.
        started_at: when it came in, on trio's clock, as `first_token_at` and `last_token_at`.
        charge: what its limits say.
        model: its name here, once there is one.
        node: who worked on it.
        outcome: `ok`, `cancelled`, or the error's code.
        usage: what it is billed.
        tokens: of the answer, delivered.
    """

    identity: Identity
    route: str
    live: Live
    started_at: float
    charge: Charge | None = None
    model: str = ""
    node: PeerId | None = None
    outcome: str = "ok"
    usage: Usage = NOTHING_USED
    tokens: int = 0
    first_token_at: float | None = None
    last_token_at: float = 0.0


class Books:
    """Of one gateway.

    Args:
        name_of: what a node is called.
        record: takes each request's line for the usage.
        in_flight_max: then `no_capacity`.
    """

    def __init__(
        self,
        tally: Tally,
        metrics: Metrics,
        clock: Clock,
        lifecycle: Lifecycle,
        name_of: Callable[[PeerId], str],
        record: Callable[[UsageRecord], None],
        *,
        in_flight_max: int,
    ) -> None:
        self.tally = tally
        self._metrics = metrics
        self._clock = clock
        self._lifecycle = lifecycle
        self._name_of = name_of
        self._record = record
        self._in_flight_max = in_flight_max
        metrics.in_flight.set_function(lambda: tally.in_flight)

    def entry(self, asked: Asked) -> "Entry":
        """The block in which a request runs.

        Raises:
            CallError: on entering: `draining`, `no_capacity`.
        """
        return Entry(self, asked)

    def begin(self) -> None:
        """One more is under way."""
        if self._lifecycle.draining:
            raise CallError("draining", "This node is stopping; ask another.", retry_after_seconds=1.0)
        if self.tally.in_flight >= self._in_flight_max:
            raise CallError("no_capacity", "The gateway is busy; try again soon.", retry_after_seconds=1.0)
        self.tally.in_flight += 1

    def end(self, asked: Asked) -> None:
        """It has ended."""
        self.tally.in_flight -= 1
        usage, model, now = asked.usage, asked.model or UNKNOWN, trio.current_time()
        if asked.charge is not None:
            asked.charge.settle(usage.prompt_tokens + usage.completion_tokens)
        first_token_seconds = None if asked.first_token_at is None else asked.first_token_at - asked.started_at
        self._count(asked, model, now, first_token_seconds)
        self.tally.record(
            now,
            failed=asked.outcome not in ("ok", "cancelled"),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            first_token_seconds=first_token_seconds,
            request_seconds=now - asked.started_at,
        )
        record = UsageRecord(
            ended_at=self._clock.now(),
            request_id=current_request_id(),
            key_id=asked.identity.key_id,
            owner=asked.identity.owner,
            model=asked.model,
            node="" if asked.node is None else self._name_of(asked.node),
            route=asked.route,
            outcome=asked.outcome,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            seconds=now - asked.started_at,
            first_token_seconds=first_token_seconds,
        )

        note_use(
            key_id=record.key_id,
            owner=record.owner,
            model=record.model,
            node=record.node,
            outcome=record.outcome,
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
        )
        self._record(record)

    def _count(self, asked: Asked, model: str, now: float, first_token_seconds: float | None) -> None:
        self._metrics.request_ended(asked.route, model, asked.outcome)
        if asked.charge is not None and asked.charge.refusal is not None:
            self._metrics.limited.labels(asked.charge.refusal.reason).inc()
        if not asked.model:
            return
        of_model = self._metrics.of_model(model)
        of_model.request_seconds.observe(now - asked.started_at)
        of_model.prompt_tokens.inc(asked.usage.prompt_tokens)
        of_model.generation_tokens.inc(asked.usage.completion_tokens)
        if first_token_seconds is not None:
            of_model.first_token_seconds.observe(first_token_seconds)
            if asked.tokens > 1:
                span = asked.last_token_at - asked.started_at - first_token_seconds
                of_model.token_seconds.observe(span / (asked.tokens - 1))


class Entry(AbstractContextManager[None]):
    """Made by `Books.entry`. No generator: those cost a request as much as all of this."""

    def __init__(self, books: Books, asked: Asked) -> None:
        self._books = books
        self._asked = asked

    def __enter__(self) -> None:
        self._books.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(error)

    def close(self, error: BaseException | None) -> None:
        """The request has ended so; for who cannot use a block."""
        if error is not None:
            self._asked.outcome = _outcome_of(error)
        self._books.end(self._asked)


def _outcome_of(error: BaseException) -> str:
    """A failure in the usage's word: whoever asked may have left at any point, and a bug is neither that nor theirs."""
    for one in leaves(error):
        if isinstance(one, CallError):
            return one.code
        if isinstance(one, Exception) and not isinstance(one, ClientGone | trio.BrokenResourceError):
            return "internal"
    return "cancelled"
