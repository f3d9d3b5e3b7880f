"""The HTTP API: a plain ASGI application that denies by default. What is not in its table does not exist."""

import logging

from covey.dialects.openapi import OPENAPI_PATH
from covey.errors import CallError
from covey.http.asgi import ClientGone, Receive, Scope, Send
from covey.http.credential import credential
from covey.roles.gateway.admission import Admission, asked_key, check_route
from covey.roles.gateway.exchange import SHOWN_CHARS_MAX, Exchange
from covey.roles.gateway.listing import Description
from covey.roles.gateway.live import LiveRequests
from covey.roles.gateway.loopback import loopback_credential
from covey.roles.gateway.table import Handler, Route, Table, voice_of
from covey.telemetry.access import note_caller, note_route

log = logging.getLogger(__name__)

MOUNTS = ("/v1", "/api", OPENAPI_PATH)
"""Where the application is mounted."""


class Api:
    """The application.

    Args:
        admission: knows the keys.
        table: of its routes.
        description: of all of it.
        requests: the requests under way.
        loopback_key: for programs of this machine that send none; "" for nobody.
    """

    def __init__(
        self,
        admission: Admission,
        table: Table,
        description: Description,
        requests: LiveRequests,
        loopback_key: str = "",
    ) -> None:
        self._admission = admission
        self._table = table
        self._description = description
        self._requests = requests
        self._loopback_key = loopback_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request: identify first, then dispatch."""
        exchange = Exchange(scope, receive, send)
        try:
            route = self._find(exchange)
            if exchange.path == OPENAPI_PATH:
                await self._describe(exchange)
                return
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
        finally:
            exchange.release()

    def _find(self, exchange: Exchange) -> Route | None:
        """The route of a path, and from then on its voice: who has no key is told so in the client's own terms."""
        route = self._table.find(exchange.path)
        if route is None:
            exchange.voice = voice_of(exchange.path)
        else:
            exchange.voice, exchange.route = route.voice, route.path
            note_route(route.path)
        return route

    async def _describe(self, exchange: Exchange) -> None:
        note_route(OPENAPI_PATH)
        if exchange.scope["method"] not in ("GET", "HEAD"):
            exchange.extra.append((b"allow", b"GET, HEAD"))
            raise CallError("invalid", f"{OPENAPI_PATH} takes GET or HEAD.", reason="method_not_allowed")
        await self._description.serve(exchange)

    def _handler(self, exchange: Exchange, route: Route | None) -> Handler:
        method, path = exchange.scope["method"], exchange.path[:SHOWN_CHARS_MAX]
        if route is None:
            raise CallError("not_found", f"There is no {path} here.", reason="route_not_found")
        if method not in route.handlers:
            exchange.extra.append((b"allow", ", ".join(route.handlers).encode()))
            raise CallError("invalid", f"{path} takes {' or '.join(route.handlers)}.", reason="method_not_allowed")
        return route.handlers[method]
