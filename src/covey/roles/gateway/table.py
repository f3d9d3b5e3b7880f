"""The table of the API's routes: what is not in it does not exist."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from covey.contracts.auth import Identity
from covey.dialects import anthropic, ollama, openai
from covey.roles.gateway.chats import Answering
from covey.roles.gateway.exchange import Exchange
from covey.roles.gateway.listing import Listing
from covey.roles.gateway.voice import ANTHROPIC, OLLAMA, OPENAI, Voice

Handler = Callable[[Exchange, Identity], Awaitable[None]]
ANY_REST = "{id}"


@dataclass(frozen=True, slots=True)
class Route:
    """A path of the API. One that ends in `/{id}` takes any rest, slashes too.

    Args:
        path: as in the metrics, the documentation and what keys may be limited to.
        voice: how its clients are spoken to.
        handlers: by method.
    """

    path: str
    voice: Voice
    handlers: Mapping[str, Handler]


class Table:
    """All of them."""

    def __init__(self, answering: Answering, listing: Listing) -> None:
        chat, embed, models = answering.chat, answering.embed, listing.models
        self.routes = (
            Route("/v1/chat/completions", OPENAI, _post(partial(chat, parse=openai.parse_chat))),
            Route("/v1/completions", OPENAI, _post(partial(chat, parse=openai.parse_completion))),
            Route("/v1/embeddings", OPENAI, _post(partial(embed, parse=openai.parse_embedding))),
            Route("/v1/responses", OPENAI, _post(partial(chat, parse=openai.parse_response))),
            Route("/v1/models", OPENAI, _get(partial(models, render=openai.model_list))),
            Route("/v1/models/{id}", OPENAI, _get(listing.model)),
            Route("/v1/messages", ANTHROPIC, _post(partial(chat, parse=anthropic.parse_messages))),
            Route("/v1/messages/count_tokens", ANTHROPIC, _post(listing.count)),
            Route("/api/chat", OLLAMA, _post(partial(chat, parse=ollama.parse_chat))),
            Route("/api/generate", OLLAMA, _post(partial(chat, parse=ollama.parse_generate))),
            Route("/api/embed", OLLAMA, _post(partial(embed, parse=ollama.parse_embed))),
            Route("/api/embeddings", OLLAMA, _post(partial(embed, parse=ollama.parse_embeddings))),
            Route("/api/tags", OLLAMA, _get(partial(models, render=ollama.tags))),
            Route("/api/ps", OLLAMA, _get(partial(models, render=ollama.running))),
            Route("/api/show", OLLAMA, _post(listing.show)),
            Route("/api/version", OLLAMA, _get(listing.version)),
        )
        self._exact = {route.path: route for route in self.routes if not route.path.endswith(ANY_REST)}
        self._open_ended = {
            route.path.removesuffix(ANY_REST): route for route in self.routes if route.path.endswith(ANY_REST)
        }

    def find(self, path: str) -> Route | None:
        """The route of a path."""
        route = self._exact.get(path)
        if route is None:
            for prefix, one in self._open_ended.items():
                if path.startswith(prefix):
                    return one
        return route


def voice_of(path: str) -> Voice:
    """How whoever asks for a path that there is not is spoken to."""
    return OLLAMA if path.startswith("/api/") else OPENAI


def _get(handler: Handler) -> dict[str, Handler]:
    return {"GET": handler, "HEAD": handler}


def _post(handler: Handler) -> dict[str, Handler]:
    return {"POST": handler}
