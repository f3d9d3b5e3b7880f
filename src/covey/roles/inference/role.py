"""The inference role: serves CHAT, EMBED, MODELS and PULL_MODEL from the node's back ends."""

import logging
from collections.abc import AsyncGenerator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import msgspec
import trio

from covey.backends.base import Backend, BackendParts
from covey.backends.catalogue import DEFAULT_MODEL
from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.contracts.inference import (
    CHAT,
    EMBED,
    MODELS,
    PULL_MODEL,
    REMOVE_MODEL,
    ChatDelta,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    Models,
    ModelStatus,
    PullModel,
    PullProgress,
    RemovedModel,
    RemoveModel,
)
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.roles.base import LeaseDoor, Parts, Role
from covey.roles.inference.attempt import Attempt
from covey.roles.inference.lanes import Lanes
from covey.roles.inference.models import ModelTable
from covey.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

READINESS_SECONDS = 0.25
MISSING = "model"


class InferenceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[inference]`.

    Args:
        backends: names of back ends to open; each has a table `[backends.<name>]`. The first that has a model answers.
        default_model: the node is not ready before this one is, if a back end offers it.
        queue_length_max: requests that may wait for one model.
        queue_seconds_max: the longest that one may wait; who would wait longer is refused at once.
        slots_default: requests at once for a model whose server does not say how many it can do.
    """

    backends: tuple[str, ...] = ("embedded", "embedder", "ollama")
    default_model: str = DEFAULT_MODEL
    queue_length_max: int = 64
    queue_seconds_max: float = 60.0
    slots_default: int = 16


class Inference:
    """The role's handlers."""

    def __init__(self, table: ModelTable, lanes: Lanes, metrics: Metrics, lease: LeaseDoor) -> None:
        self._table = table
        self._lanes = lanes
        self._metrics = metrics
        self._lease = lease

    async def chat(self, caller: Caller, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        """Serves CHAT, to gateways that may vouch for whoever asks."""
        await self._lease.check_gateway(caller.peer)
        backend, status = self._table.find(request.model)
        if status.name != request.model:
            request = msgspec.structs.replace(request, model=status.name)
        async with self._lanes.turn(status, request.tenant):
            with Attempt(self._metrics, backend.name, request.model) as attempt:
                await answer(backend, request, emit, attempt)

    async def embed(self, caller: Caller, request: EmbedRequest, emit: Emit[Embeddings]) -> None:
        """Serves EMBED, on the same terms and through the same queue."""
        await self._lease.check_gateway(caller.peer)
        backend, status = self._table.find(request.model)
        if status.name != request.model:
            request = msgspec.structs.replace(request, model=status.name)
        async with self._lanes.turn(status, request.tenant):
            with Attempt(self._metrics, backend.name, request.model) as attempt:
                await embed_all(backend, request, emit, attempt)

    async def models(self, caller: Caller, request: Nothing) -> Models:
        """Serves MODELS."""
        return Models(tuple(map(self._with_load, self._table.statuses())))

    def _with_load(self, status: ModelStatus) -> ModelStatus:
        """In flight are those that wait here, too: whoever places requests wants to know."""
        return msgspec.structs.replace(status, in_flight=max(status.in_flight, self._lanes.load(status.name)))

    async def pull_model(self, caller: Caller, request: PullModel, emit: Emit[PullProgress]) -> None:
        """Serves PULL_MODEL."""
        await self._table.pull(request.model, emit)

    async def remove_model(self, caller: Caller, request: RemoveModel) -> RemovedModel:
        """Serves REMOVE_MODEL."""
        return await self._table.remove(request.model)


async def answer(backend: Backend, request: ChatRequest, emit: Emit[ChatDelta], attempt: Attempt) -> None:
    """Let a back end answer, and make sure that an answer which only stops is not taken for one that ended.

    Raises:
        CallError: the back end's; `upstream` where it returned without a `finish`.
    """
    finished = False

    def watched(delta: ChatDelta) -> Awaitable[None]:  # no coroutine of its own: it is called for every token
        nonlocal finished
        if finished:
            raise CallError("upstream", f"The back end {backend.name} went on after the end of its answer.")
        if attempt.waits:
            attempt.answers()
        if delta.finish is not None:
            finished, attempt.usage = True, delta.usage
        return emit(delta)

    await backend.generate(request, watched)
    if not finished:
        raise CallError("upstream", f"The back end {backend.name} stopped in the middle of its answer.")


async def embed_all(backend: Backend, request: EmbedRequest, emit: Emit[Embeddings], attempt: Attempt) -> None:
    """Let a back end embed, and make sure that every input has one vector.

    Raises:
        CallError: the back end's; `upstream` where it returned another number of them.
    """
    missing = len(request.inputs)

    async def watched(some: Embeddings) -> None:
        nonlocal missing
        missing -= len(some.vectors)
        if missing < 0:
            raise CallError("upstream", f"The back end {backend.name} embedded more than it was given.")
        attempt.embedded(some.prompt_tokens)
        await emit(some)

    await backend.embed(request, watched)
    if missing:
        raise CallError("upstream", f"The back end {backend.name} stopped in the middle of its embeddings.")


async def watch_readiness(table: ModelTable, default_model: str, missing: dict[str, str]) -> None:
    """Keep `missing` telling why the node cannot answer yet; for ever."""
    while True:
        if why := table.missing(default_model):
            missing[MISSING] = why
        else:
            missing.pop(MISSING, None)
        await trio.sleep(READINESS_SECONDS)


@asynccontextmanager
async def open_inference(config: InferenceConfig, parts: Parts) -> AsyncGenerator[None, None]:
    """Open the back ends and serve their models. Ready at once: a model that is still loading says so itself.

    On the way out the back ends are closed; the node lets streams that run come to their end before.
    """
    async with AsyncExitStack() as stack:
        backend_parts = BackendParts(parts.folder / "models", parts.metrics)
        backends = [
            await stack.enter_async_context(plugged.plugin.open(plugged.config, backend_parts))
            for plugged in parts.backends
        ]
        table = ModelTable(backends)
        lanes = Lanes(
            length_max=config.queue_length_max,
            wait_seconds_max=config.queue_seconds_max,
            slots_default=config.slots_default,
            metrics=parts.metrics,
        )
        parts.metrics.models.read = partial(trio.from_thread.run_sync, table.counts)
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(watch_readiness, table, config.default_model, parts.lifecycle.missing)
        inference = Inference(table, lanes, parts.metrics, parts.cluster.lease)
        parts.bus.serve_stream(CHAT, inference.chat)
        parts.bus.serve_stream(EMBED, inference.embed)
        parts.bus.serve(MODELS, inference.models)
        parts.bus.serve_stream(PULL_MODEL, inference.pull_model)
        parts.bus.serve(REMOVE_MODEL, inference.remove_model)
        try:
            yield
        finally:
            parts.metrics.models.read = dict[tuple[str, str], int]
            parts.lifecycle.missing.pop(MISSING, None)
            nursery.cancel_scope.cancel()


ROLE = Role("inference", InferenceConfig, open_inference)
