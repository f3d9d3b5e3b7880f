"""`/healthz`, `/readyz` and `/metrics`: they belong to the node, whatever its roles."""

from collections.abc import Awaitable, Callable

import msgspec
import trio

from covey.dialects.problems import openai_body
from covey.errors import CallError
from covey.http.asgi import Receive, Scope, Send, header, respond
from covey.http.problems import headers_of, status_of
from covey.telemetry.metrics import Metrics

PATHS = ("/healthz", "/readyz", "/metrics")
Guard = Callable[[Scope], Awaitable[None]]


class HealthApp:
    """An ASGI application for the three paths.

    Args:
        metrics: what `/metrics` shows.
        missing: why the node is not ready, by part; empty when it is.
        guard: raises `CallError` where the caller may not read the metrics (a public listener without an
            administrator's key).
    """

    def __init__(self, metrics: Metrics, missing: Callable[[], dict[str, str]], guard: Guard) -> None:
        self._metrics = metrics
        self._missing = missing
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            if scope["method"] not in ("GET", "HEAD"):
                raise CallError("invalid", "Only GET is served here.", reason="method_not_allowed")
            if scope["path"] == "/healthz":
                await respond(send, 200, b'{"status":"ok"}', "application/json", [])
            elif scope["path"] == "/readyz":
                await self._readyz(send)
            elif scope["path"] == "/metrics":
                await self._guard(scope)
                # Rendering takes 0.3 s at 10,000 series: not on the loop.
                body, content_type = await trio.to_thread.run_sync(self._metrics.render, header(scope, b"accept") or "")
                await respond(send, 200, body, content_type, [])
            else:
                raise CallError("not_found", "Nothing is here.")
        except CallError as error:
            await respond(send, status_of(error), openai_body(error), "application/json", headers_of(error))

    async def _readyz(self, send: Send) -> None:
        missing = self._missing()
        body = msgspec.json.encode({"status": "waiting", "missing": missing} if missing else {"status": "ready"})
        await respond(send, 503 if missing else 200, body, "application/json", [])
