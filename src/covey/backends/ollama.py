"""Models of an Ollama server, found by itself where one runs; where none does, there is nothing to complain of.

The official client has traps: no timeout of its own, `OLLAMA_API_KEY` sent to any host, streams that leak unless
closed, and six families of exceptions. All of them end here.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from covey.backends.base import Backend, BackendParts, BackendPlugin, Report
from covey.backends.capable import check_capable, no_embeddings
from covey.backends.ollama_answers import LogprobsMissingError, OllamaAnswers
from covey.backends.ollama_client import OllamaConfig, absent, anybody_at, open_ollama_client, server_of, translated
from covey.backends.sse_client import exhausting
from covey.bus.replies import Emit
from covey.contracts.inference import (
    Capability,
    ChatDelta,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    ModelStatus,
    PullProgress,
)
from covey.errors import CallError

if TYPE_CHECKING:
    import ollama

log = logging.getLogger(__name__)

MODELS_MAX = 500
CAPABILITIES: dict[str, tuple[Capability, ...]] = {
    # Formats are forced by grammars, whatever the model; tools, where its template has none, by a format.
    "completion": ("chat", "completion", "json", "logprobs", "tools"),
    "embedding": ("embed",),
    "vision": ("vision",),
}
"""Ollama's words and ours."""
FIRST_SECONDS = 1.0
"""How long a node that starts waits for the models: a server that hangs must not keep it from starting."""
LIST_SECONDS = 7.0
"""The longest that Ollama may take to say which models it has, or what one can do."""
QUIET_SECONDS_MAX = 300.0
"""A server that is not there is asked ever more rarely, down to this."""


@dataclass(frozen=True, slots=True)
class Details:
    """What is known of a model beyond its name.

    `context_tokens` it was trained for; 0: unknown. `tools`: its template has a place for them. `insert`: for a gap.
    """

    capabilities: tuple[Capability, ...] = CAPABILITIES["completion"]
    context_tokens: int = 0
    tools: bool = False
    insert: bool = False


class OllamaBackend:
    """See `Backend`. Made by `open_ollama`, which closes it."""

    name = "ollama"

    def __init__(self, config: OllamaConfig) -> None:
        self._config = config
        self._client: ollama.AsyncClient | None = None
        self._models: tuple[str, ...] = ()
        self._details: dict[str, Details] = {}
        self._running: dict[str, int] = {}
        self._reachable = False
        self._strange = False
        self._tells_logprobs = True
        """Old versions take no notice of the wish; it shows once somebody has it."""
        self.asked = trio.Event()
        """Set once it was asked for its models, whatever came of it."""

    def models(self) -> tuple[ModelStatus, ...]:
        """See `Backend.models`. An unreachable server has none."""
        return tuple(self._status(name) for name in self._models)

    def _status(self, name: str) -> ModelStatus:
        return ModelStatus(
            name,
            self.name,
            "remote",
            capabilities=self._capabilities(name),
            context_tokens=self._details.get(name, Details()).context_tokens,
            slots=self._config.slots,
            in_flight=self._running.get(name, 0),
        )

    @property
    def is_up(self) -> bool:
        """Whether it answered when it was last asked."""
        return self._reachable

    async def generate(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        """See `Backend.generate`."""
        if request.model not in self._models:
            raise CallError("not_found", f"Ollama has no model {request.model!r}.", reason="model_not_found")
        check_capable(request, self._capabilities(request.model))
        async with self._counted(request.model):
            details = self._details.get(request.model, Details())
            answers = OllamaAnswers(self._found(), self._config, tools=details.tools, insert=details.insert)
            try:
                await answers.generate(request, emit)
            except LogprobsMissingError as error:
                self._tells_logprobs = False
                raise CallError(
                    "unsupported", "This Ollama tells no probabilities; leave logprobs out.", param="logprobs"
                ) from error

    async def embed(self, request: EmbedRequest, emit: Emit[Embeddings]) -> None:
        """See `Backend.embed`."""
        if request.model not in self._models:
            raise CallError("not_found", f"Ollama has no model {request.model[:200]!r}.", reason="model_not_found")
        if "embed" not in self._capabilities(request.model):
            raise no_embeddings(request.model)
        async with self._counted(request.model):
            await OllamaAnswers(self._found(), self._config).embed(request, emit)

    @asynccontextmanager
    async def _counted(self, model: str) -> AsyncGenerator[None, None]:
        self._running[model] = self._running.get(model, 0) + 1
        try:
            yield
        finally:
            self._running[model] -= 1

    def _capabilities(self, name: str) -> tuple[Capability, ...]:
        known = self._details.get(name, Details()).capabilities
        return known if self._tells_logprobs else tuple(one for one in known if one != "logprobs")

    async def pull(self, model: str, report: Report) -> None:
        """See `Backend.pull`: Ollama fetches from its own registry."""
        if not self._reachable:
            raise CallError(
                "unsupported", f"There is no Ollama at {self._config.url} that could fetch {model[:200]!r}."
            )
        with translated():
            stream = await self._found().pull(model, stream=True)
        async with exhausting(stream) as parts:
            while True:
                with translated():
                    part = await anext(parts, None)
                if part is None:
                    break
                await report(PullProgress(model, "fetching", part.completed or 0, part.total or 0))
        await self.refresh()
        await report(PullProgress(model, "done"))

    async def remove(self, model: str) -> int:
        """See `Remover.remove`, as `ollama rm`."""
        with translated():
            await self._found().delete(model)
        await self.refresh()
        return 0

    async def refresh(self) -> None:
        """Ask for its models, quietly: an absent Ollama is no error."""
        if self._client is None:
            # The client's import takes a quarter of a second and 15 MB, which a machine without Ollama never needs.
            if not await anybody_at(self._config.url, self._config.connect_seconds):
                return
            self._client = await trio.to_thread.run_sync(open_ollama_client, self._config)
        try:
            with trio.fail_after(LIST_SECONDS), translated():
                listed = await self._found().list()
        except (CallError, trio.TooSlowError) as error:
            self._lose(error)
            return
        if not self._reachable:
            log.info("Found Ollama at %s with %d models.", self._config.url, len(listed.models))
        self._reachable, self._strange = True, False
        self._models = tuple(sorted({model.model for model in listed.models if model.model})[:MODELS_MAX])
        self._details = {
            name: self._details[name] if name in self._details else await self._look_up(name) for name in self._models
        }

    def _lose(self, error: Exception) -> None:
        why = error.message if isinstance(error, CallError) else "it does not answer"
        if self._reachable:
            log.warning("Ollama at %s is gone (%s); looking for it quietly.", self._config.url, why)
        elif not self._strange and not (isinstance(error, CallError) and error.reason == "unreachable"):
            self._strange = True
            log.warning(
                "What listens at %s is no Ollama, or not well (%s); looking for it quietly.", self._config.url, why
            )
        self._reachable, self._models, self._tells_logprobs = False, (), True

    async def _look_up(self, name: str) -> "Details":
        """What Ollama says of a model; what any model is like, where it does not say."""
        try:
            with trio.fail_after(LIST_SECONDS), translated():
                shown = await self._found().show(name)
        except (CallError, trio.TooSlowError):
            return Details()
        theirs = shown.capabilities or ["completion"]  # versions before 0.6.4 say nothing
        ours: set[Capability] = {one for word in theirs for one in CAPABILITIES.get(word, ())}
        lengths = [value for key, value in (shown.modelinfo or {}).items() if key.endswith(".context_length")]
        trained = lengths[0] if lengths and isinstance(lengths[0], int) else 0
        return Details(tuple(sorted(ours)), trained, "tools" in theirs, "insert" in theirs)

    def _found(self) -> "ollama.AsyncClient":
        if self._client is None:
            raise absent()
        return self._client

    async def close(self) -> None:
        """Close what is open."""
        if self._client is not None:
            await self._client.close()  # type: ignore[no-untyped-call]

    async def keep_fresh(self) -> None:
        """Refresh for ever; ever more rarely while nobody is there."""
        pause = self._config.refresh_seconds
        while True:
            await self.refresh()
            self.asked.set()
            await trio.sleep(pause)
            pause = self._config.refresh_seconds if self._reachable else min(pause * 1.5, QUIET_SECONDS_MAX)


@asynccontextmanager
async def open_ollama(config: OllamaConfig, parts: BackendParts) -> AsyncGenerator[Backend, None]:
    """Open the back end; it is asked once before, if it answers soon, and then again and again.

    Raises:
        CallError: `invalid`: its address is none.
    """
    server = "{}:{}".format(*server_of(config.url))
    backend = OllamaBackend(config)
    parts.metrics.upstream_up.labels(backend.name, server).set_function(lambda: float(backend.is_up))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.keep_fresh)
            with trio.move_on_after(FIRST_SECONDS):
                await backend.asked.wait()
            yield backend
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await backend.close()


BACKEND = BackendPlugin("ollama", OllamaConfig, open_ollama)
