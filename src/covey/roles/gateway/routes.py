"""The HTTP API: a plain ASGI application that denies by default. What is not in its table does not exist."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from covey.contracts.auth import Identity
from covey.dialects import openai
from covey.errors import CallError
from covey.http.asgi import ClientGone, Receive, Scope, Send
from covey.http.credential import credential
from covey.roles.gateway.admission import Admission, asked_key, check_route
from covey.roles.gateway.chats import Answering
from covey.roles.gateway.exchange import SHOWN_CHARS_MAX, Exchange
from covey.roles.gateway.live import LiveRequests
from covey.roles.gateway.loopback import loopback_credential
from covey.roles.gateway.placement import Fleet
from covey.roles.gateway.voice import OPENAI, Voice
from covey.telemetry.access import note_caller, note_route
from covey.telemetry.logs import set_request_id

log = logging.getLogger(__name__)

Handler = Callable[[Exchange, Identity], Awaitable[None]]
MOUNTS = ("/v1",)
"""Where the application is mounted."""


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


class Api:
    """The application.

    Args:
        admission: knows the keys.
        answering: answers chats and embeddings.
        fleet: knows the models.
        requests: the requests under way.
        loopback_key: for programs of this machine that send none; "" for nobody.
    """

    def __init__(
        self, admission: Admission, answering: Answering, fleet: Fleet, requests: LiveRequests, loopback_key: str = ""
    ) -> None:
        self._admission = admission
        self._fleet = fleet
        self._requests = requests
        self._loopback_key = loopback_key
        chat, embed = answering.chat, answering.embed
        self.routes = (
            Route("/v1/chat/completions", OPENAI, {"POST": partial(chat, parse=openai.parse_chat)}),
            Route("/v1/completions", OPENAI, {"POST": partial(chat, parse=openai.parse_completion)}),
            Route("/v1/embeddings", OPENAI, {"POST": partial(embed, parse=openai.parse_embedding)}),
            Route("/v1/responses", OPENAI, {"POST": partial(chat, parse=openai.parse_response)}),
            Route("/v1/models", OPENAI, _reading(self._models)),
            Route("/v1/models/{id}", OPENAI, _reading(self._model)),
        )
        self._exact = {route.path: route for route in self.routes if not route.path.endswith("/{id}")}
        self._open_ended = tuple(route for route in self.routes if route.path.endswith("/{id}"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request: identify first, then dispatch."""
        exchange = Exchange(scope, receive, send)
        set_request_id(exchange.request_id)
        try:
            route = self._find(exchange)
            key = asked_key(loopback_credential(scope, self._loopback_key) or credential(scope))
            with self._requests.watch(key) as exchange.live:
                identity = await self._admission.identify(key)
                note_caller(identity.key_id, identity.owner)
                handler = self._handler(exchange, route)
                check_route(identity, exchange.route)
                await handler(exchange, identity)
        except ClientGone:
            return
        except CallError as error:
            await exchange.refuse(error)
        except Exception:
            log.exception("The API failed.")
            await exchange.refuse(CallError("internal", "The gateway failed; its log says why."))

    def _find(self, exchange: Exchange) -> Route | None:
        """The route of a path, and from then on its voice: who has no key is told so in the client's own terms."""
        path = exchange.path
        route = self._exact.get(path)
        if route is None:
            for one in self._open_ended:
                prefix = one.path.removesuffix("{id}")
                if path.startswith(prefix):
                    route = one
        if route is not None:
            exchange.voice, exchange.route = route.voice, route.path
            note_route(route.path)
        return route

    def _handler(self, exchange: Exchange, route: Route | None) -> Handler:
        method, path = exchange.scope["method"], exchange.path[:SHOWN_CHARS_MAX]
        if route is None:
            raise CallError("not_found", f"There is no {path} here.", reason="route_not_found")
        if method not in route.handlers:
            exchange.extra.append((b"allow", ", ".join(route.handlers).encode()))
            raise CallError("invalid", f"{path} takes {' or '.join(route.handlers)}.", reason="method_not_allowed")
        return route.handlers[method]

    async def _models(self, exchange: Exchange, identity: Identity) -> None:
        await exchange.answer(200, openai.model_list(await self._fleet.summaries(identity)))

    async def _model(self, exchange: Exchange, identity: Identity) -> None:
        name = exchange.path.removeprefix("/v1/models/")
        for model in await self._fleet.summaries(identity):
            if model.name == name:
                await exchange.answer(200, openai.model_one(model))
                return
        raise CallError(
            "not_found",
            f"The model {name[:SHOWN_CHARS_MAX]!r} does not exist here.",
            reason="model_not_found",
            param="model",
        )


def _reading(handler: Handler) -> dict[str, Handler]:
    return {"GET": handler, "HEAD": handler}
