"""One request at one back end: counted, timed, and, where that is asked for, told in the log."""

import logging
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

import trio

from covey.contracts.inference import Usage
from covey.errors import CallError
from covey.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class Attempt(AbstractContextManager["Attempt"]):
    """`with Attempt(metrics, backend.name, model) as attempt: ...`; `attempt.answers()` with the first piece.

    Leaving says how it ended: `ok`, `cancelled`, or the error's code. The log's lines carry the request's id.
    """

    def __init__(self, metrics: Metrics, backend: str, model: str) -> None:
        self._metrics = metrics
        self._backend = backend
        self._model = model
        self.waits = True
        """Whether nothing has come yet."""
        self.usage: Usage | None = None
        """What the answer took, once that is known."""

    def __enter__(self) -> Self:
        self._began_at = trio.current_time()
        if log.isEnabledFor(logging.DEBUG):
            log.debug("The back end %s begins to answer with %s.", self._backend, self._model)
        return self

    def answers(self) -> None:
        """The first piece has come."""
        self.waits = False
        self._metrics.backend_began(self._backend, trio.current_time() - self._began_at)

    def embedded(self, tokens: int) -> None:
        """Some inputs have their vectors."""
        if self.waits:
            self.answers()
        self._metrics.embedding_tokens.labels(self._model).inc(tokens)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        outcome = "ok" if error is None else error.code if isinstance(error, CallError) else "cancelled"
        self._metrics.backend_ended(self._backend, outcome)
        if log.isEnabledFor(logging.DEBUG):
            seconds = trio.current_time() - self._began_at
            log.debug(
                "The back end %s has ended (%s) after %.3f s%s.", self._backend, outcome, seconds, self._counted()
            )

    def _counted(self) -> str:
        if self.usage is None:
            return ""
        return (
            f": {self.usage.completion_tokens} tokens, on a prompt of {self.usage.prompt_tokens} of which"
            f" {self.usage.cached_tokens} were cached"
        )
