"""Answers what is asked about the API itself: its models in every dialect, its description, a count of tokens."""

from collections.abc import Callable, Sequence

from covey.contracts.auth import Identity
from covey.contracts.gateway import ModelSummary
from covey.dialects import anthropic, ollama, openai
from covey.dialects.counting import estimated_tokens
from covey.dialects.openapi import Operation, openapi
from covey.errors import CallError
from covey.roles.gateway.chats import Answering
from covey.roles.gateway.exchange import SHOWN_CHARS_MAX, Exchange
from covey.roles.gateway.placement import Fleet
from covey.version import __version__


class Listing:
    """The handlers that the table of routes points to.

    Args:
        fleet: knows the models.
        answering: reads bodies.
    """

    def __init__(self, fleet: Fleet, answering: Answering) -> None:
        self._fleet = fleet
        self._answering = answering

    async def models(
        self, exchange: Exchange, identity: Identity, render: Callable[[Sequence[ModelSummary]], bytes]
    ) -> None:
        """Every model that the key may use."""
        await exchange.answer(200, render(await self._fleet.summaries(identity)))

    async def model(self, exchange: Exchange, identity: Identity) -> None:
        """OpenAI's: one of them, named in the path."""
        name = exchange.path.removeprefix(exchange.route.removesuffix("{id}"))
        await exchange.answer(200, openai.model_one(await self._find(name, identity)))

    async def show(self, exchange: Exchange, identity: Identity) -> None:
        """Ollama's: one of them, named in the body."""
        name = ollama.parse_show(await self._answering.body(exchange))
        await exchange.answer(200, ollama.shown(await self._find(name, identity)))

    async def _find(self, name: str, identity: Identity) -> ModelSummary:
        name = await self._fleet.name_of(name, identity) if name else name
        for model in await self._fleet.summaries(identity):
            if model.name == name:
                return model
        raise CallError(
            "not_found",
            f"The model {name[:SHOWN_CHARS_MAX]!r} was not found here.",
            reason="model_not_found",
            param="model",
        )

    async def version(self, exchange: Exchange, identity: Identity) -> None:
        """Ollama's: of the API."""
        await exchange.answer(200, ollama.version())

    async def count(self, exchange: Exchange, identity: Identity) -> None:
        """Anthropic's: an estimate of a request's tokens."""
        request = anthropic.parse_count(await self._answering.body(exchange))
        await self._find(request.model, identity)
        await exchange.answer(200, anthropic.counted(estimated_tokens(request)))


class Description:
    """`GET /openapi.json`, for anybody: it says nothing of this place. The document is made once."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self._document = b""

    async def serve(self, exchange: Exchange) -> None:
        """The document."""
        self._document = self._document or openapi(self._operations, __version__)
        await exchange.answer(200, self._document)
