"""Around everything that a listener serves: the request's id, the counter, and the line in the access log."""

from collections.abc import Collection

import trio

from covey.http.asgi import REQUEST_ID, ASGIApp, ClientGone, Message, Receive, Scope, Send, header
from covey.telemetry import access
from covey.telemetry.logs import new_request_id, sane_request_id, set_request_id
from covey.telemetry.metrics import Metrics

GONE = 499
"""The status, nginx's, of a request whose client left before the answer's head: the log says something, too."""
FAILED = 500


class AccessLog:
    """An ASGI application around another.

    Args:
        app: serves the requests.
        metrics: where they are counted, by route, method and class of status.
        routes: paths that are routes as they are, whose applications say nothing about it.
        writes: whether each request gets its line in the log.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, routes: Collection[str], writes: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = frozenset(routes)
        self._writes = writes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Its id is the client's own, where that is one, and every line of the log has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = sane_request_id(header(scope, b"x-request-id") or "") or new_request_id()
        set_request_id(request_id)
        scope["extensions"] = {**scope.get("extensions", {}), REQUEST_ID: request_id}
        path: str = scope["path"]
        note = access.Note(scope["method"], path, route=path if path in self._routes else "")
        access.begin(note)
        began_at = trio.current_time()

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                note.status = message["status"]
            elif message["type"] == "http.response.body":
                note.sent_bytes += len(message.get("body", b""))
            await send(message)

        unanswered = FAILED
        try:
            await self._app(scope, receive, watched)
            unanswered = GONE  # only then may an application end without an answer
        except (ClientGone, trio.Cancelled):
            unanswered = GONE
            raise
        finally:
            note.status = note.status or unanswered
            note.seconds = trio.current_time() - began_at
            self._metrics.http_request(note.route, note.method, note.status)
            if self._writes:
                note.client = _address(scope)
                access.write(note)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""
