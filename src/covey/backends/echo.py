"""A deterministic back end that says the question again: for tests and benchmarks, never loaded unless configured."""

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import trio

from covey.backends.base import Backend, BackendParts, BackendPlugin, Report
from covey.bus.replies import Emit
from covey.contracts.inference import ChatDelta, ChatRequest, Finish, ModelStatus, Usage
from covey.errors import CallError

_TOKENS = re.compile(r"\s*\S+|\s+$")


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
                context_tokens=self._config.context_tokens,
                slots=self._config.slots,
                in_flight=self.running,
            )
            for name in self._config.models
        )

    async def generate(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        """See `Backend.generate`."""
        if request.model not in self._config.models:
            raise CallError("not_found", f"No model {request.model!r} here.", reason="model_not_found")
        self.running += 1
        try:
            await self._answer(request, emit)
        finally:
            self.running -= 1

    async def _answer(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        prompt_tokens = sum(len(split_tokens(message.content)) for message in request.messages)
        pieces, finish = echoed(request)
        for piece in pieces:
            # `sleep(0)` is a checkpoint too: an answer without pace can still be cancelled between any two tokens.
            await trio.sleep(self._config.token_seconds)
            self.produced += 1
            await emit(ChatDelta(piece, tokens=1))
        await trio.lowlevel.checkpoint()
        await emit(ChatDelta(finish=finish, usage=Usage(prompt_tokens, len(pieces))))

    async def pull(self, model: str, report: Report) -> None:
        """Nothing to fetch."""
        raise CallError("unsupported", f"The echo back end cannot fetch {model!r}.")


def split_tokens(text: str) -> list[str]:
    """Words, each with the space before it; joined they are the text again."""
    return _TOKENS.findall(text)


def echoed(request: ChatRequest) -> tuple[list[str], Finish]:
    """The answer's tokens, and why it ends: a stop sequence never appears in them, nor does half of one."""
    said = next((m.content for m in reversed(request.messages) if m.role == "user"), "")
    cuts = [at for stop in request.stop if stop and (at := said.find(stop)) >= 0]
    pieces = split_tokens(said[: min(cuts)] if cuts else said)
    if request.max_tokens is not None and len(pieces) > request.max_tokens:
        return pieces[: request.max_tokens], "length"
    return pieces, "stop"


@asynccontextmanager
async def open_echo(config: EchoConfig, parts: BackendParts) -> AsyncGenerator[Backend, None]:
    """Open the back end; it needs nothing of `parts`."""
    yield EchoBackend(config)


BACKEND = BackendPlugin("echo", EchoConfig, open_echo)
