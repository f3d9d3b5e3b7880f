"""The back end: a model that says the words of the question in reverse order."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import trio

from covey import Backend, BackendParts, BackendPlugin, CallError
from covey.backends.base import Report
from covey.backends.capable import check_capable, no_embeddings
from covey.bus.replies import Emit
from covey.contracts.inference import ChatDelta, ChatRequest, Embeddings, EmbedRequest, Finish, ModelStatus, Usage

MODEL = "reverse"


class ReverseConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[backends.reverse]`. `token_seconds`: the pace."""

    token_seconds: float = 0.0


class ReverseBackend:
    """See `covey.Backend`. It never blocks the loop: what computes for long belongs into a thread or a process."""

    name = "reverse"

    def __init__(self, config: ReverseConfig) -> None:
        self._config = config

    def models(self) -> tuple[ModelStatus, ...]:
        """One model, always loaded. Its `capabilities` are what it can do beyond: here, nothing but converse."""
        return (ModelStatus(MODEL, self.name, "loaded", slots=8),)

    async def generate(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        """Emit word by word; the last delta says why it ends and what it cost."""
        if request.model != MODEL:
            raise CallError("not_found", f"No model {request.model!r} here.", reason="model_not_found")
        check_capable(request, ("chat",))  # what a request needs beyond is refused, never ignored
        question = request.messages[-1].content.split()
        words = question[::-1][: request.max_tokens]
        for place, word in enumerate(words):
            await trio.sleep(self._config.token_seconds)  # where a real one waits for its engine; cancelling ends it
            await emit(ChatDelta(word if place == 0 else f" {word}", tokens=1))
        finish: Finish = "stop" if len(words) == len(question) else "length"
        await emit(ChatDelta(finish=finish, usage=Usage(len(question), len(words))))

    async def embed(self, request: EmbedRequest, emit: Emit[Embeddings]) -> None:
        """One that can emits vectors, a few at a time, in the inputs' order."""
        raise no_embeddings(request.model)

    async def pull(self, model: str, report: Report) -> None:
        """There is nothing to fetch."""
        raise CallError("unsupported", f"The back end reverse cannot fetch {model!r}.")


@asynccontextmanager
async def open_reverse(config: ReverseConfig, parts: BackendParts) -> AsyncGenerator[Backend, None]:
    """A real one starts its engine before, and ends it after."""
    yield ReverseBackend(config)


BACKEND = BackendPlugin("reverse", ReverseConfig, open_reverse)
