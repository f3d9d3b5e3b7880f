"""One request at one back end: counted, timed, and, where that is asked for, told in the log."""

import logging
from collections.abc import Awaitable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Generic

import trio

from covey.bus.replies import Emit, Item
from covey.contracts.inference import ChatDelta, Embeddings
from covey.errors import CallError
from covey.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class Attempt(AbstractContextManager[Emit[Item]], Generic[Item]):
    """`with Attempt(metrics, backend.name, model, emit) as emit: await backend.generate(request, emit)`.

    Leaving says how it ended: `ok`, `cancelled`, or the error's code. The log's lines carry the request's id.
    """

    def __init__(self, metrics: Metrics, backend: str, model: str, emit: Emit[Item]) -> None:
        self._metrics = metrics
        self._backend = backend
        self._model = model
        self._emit = emit
        self._last: Item | None = None

    def __enter__(self) -> Emit[Item]:
        self._began_at = trio.current_time()
        log.debug("The back end %s begins to answer with %s.", self._backend, self._model)
        return self._watched

    def _watched(self, item: Item) -> Awaitable[None]:  # no coroutine of its own: it is called for every token
        if self._last is None:
            seconds = trio.current_time() - self._began_at
            self._metrics.backend_seconds.labels(self._backend).observe(seconds)
        self._last = item
        if isinstance(item, Embeddings):
            self._metrics.embedding_tokens.labels(self._model).inc(item.prompt_tokens)
        return self._emit(item)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        outcome = "ok" if error is None else error.code if isinstance(error, CallError) else "cancelled"
        self._metrics.backend_requests.labels(self._backend, outcome).inc()
        if log.isEnabledFor(logging.DEBUG):
            seconds = trio.current_time() - self._began_at
            log.debug(
                "The back end %s has ended (%s) after %.3f s%s.", self._backend, outcome, seconds, self._counted()
            )

    def _counted(self) -> str:
        usage = self._last.usage if isinstance(self._last, ChatDelta) else None
        if usage is None:
            return ""
        return (
            f": {usage.completion_tokens} tokens, on a prompt of {usage.prompt_tokens} of which"
            f" {usage.cached_tokens} were cached"
        )
