"""A deterministic back end that says the question again: for tests and benchmarks, never loaded unless configured.

What it does with the rest of a request is in `covey.backends.echoing`. It honours every field but `sampling`, which
would change nothing, and the suffix of a prompt.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import trio

from covey.backends.base import Backend, BackendParts, BackendPlugin, Report
from covey.backends.echoing import DIMENSIONS, echo, embedding, prompt_tokens, split_tokens
from covey.backends.refusals import context_exceeded
from covey.bus.replies import Emit
from covey.contracts.inference import (
    Capability,
    ChatDelta,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    ModelStatus,
    Usage,
)
from covey.errors import CallError

CAPABILITIES: tuple[Capability, ...] = ("chat", "completion", "embed", "json", "logprobs", "tools", "vision")
VECTORS_EACH = 64


class EchoConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[backends.echo]`. `token_seconds`: the pace. `slots`: how many answers at once."""

    models: tuple[str, ...] = ("echo",)
    token_seconds: float = 0.0
    slots: int = 64
    context_tokens: int = 8_192


class EchoBackend:
    """Answers with the words of the last user message, each a token, once; open for everyone to look at.

    `produced` counts tokens made, `running` answers under way: a test sees in them that an engine has stopped.
    """

    name = "echo"

    def __init__(self, config: EchoConfig) -> None:
        self._config = config
        self.produced = 0
        self.running = 0

    def models(self) -> tuple[ModelStatus, ...]:
        """Every configured name, loaded."""
        return tuple(
            ModelStatus(
                name,
                self.name,
                "loaded",
                CAPABILITIES,
                context_tokens=self._config.context_tokens,
                slots=self._config.slots,
                in_flight=self.running,
            )
            for name in self._config.models
        )

    async def generate(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        """See `Backend.generate`."""
        self._check(request.model)
        if request.prompt is not None and request.prompt.suffix:
            raise CallError("unsupported", "The echo cannot fill gaps; leave suffix out.", param="suffix")
        self.running += 1
        try:
            await self._answer(request, emit)
        finally:
            self.running -= 1

    async def _answer(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        asked_tokens = prompt_tokens(request)
        if asked_tokens >= self._config.context_tokens:
            raise context_exceeded(self._config.context_tokens, asked_tokens)
        answer, began_at = echo(request), trio.current_time()
        for place, piece in enumerate(answer.pieces, start=1):
            # An engine keeps its pace, whatever else this machine does. What is late is a checkpoint still: an answer
            # without pace can be cancelled between any two tokens.
            due_at = began_at + place * self._config.token_seconds
            if due_at > trio.current_time():
                await trio.sleep_until(due_at)
            else:
                await trio.lowlevel.checkpoint()
            self.produced += 1
            await emit(piece)
        await trio.lowlevel.checkpoint()
        usage = Usage(asked_tokens, len(answer.pieces))
        await emit(ChatDelta(finish=answer.finish, usage=usage, stopped_by=answer.stopped_by))

    async def embed(self, request: EmbedRequest, emit: Emit[Embeddings]) -> None:
        """See `Backend.embed`: vectors of `DIMENSIONS`, or of as many of them as are asked for."""
        self._check(request.model)
        dimensions = DIMENSIONS if request.dimensions is None else request.dimensions
        if not 1 <= dimensions <= DIMENSIONS:
            raise CallError("invalid", f"The echo has 1 to {DIMENSIONS} dimensions.", param="dimensions")
        self.running += 1
        try:
            for start in range(0, len(request.inputs), VECTORS_EACH):
                some = request.inputs[start : start + VECTORS_EACH]
                await trio.sleep(self._config.token_seconds)
                counted = sum(len(split_tokens(one)) if isinstance(one, str) else len(one) for one in some)
                await emit(Embeddings(tuple(embedding(one, dimensions) for one in some), counted))
        finally:
            self.running -= 1

    def _check(self, model: str) -> None:
        if model not in self._config.models:
            raise CallError("not_found", f"No model {model[:200]!r} here.", reason="model_not_found")

    async def pull(self, model: str, report: Report) -> None:
        """Nothing to fetch."""
        raise CallError("unsupported", f"The echo back end cannot fetch {model!r}.")


@asynccontextmanager
async def open_echo(config: EchoConfig, parts: BackendParts) -> AsyncGenerator[Backend, None]:
    """Open the back end; it needs nothing of `parts`."""
    yield EchoBackend(config)


BACKEND = BackendPlugin("echo", EchoConfig, open_echo)
