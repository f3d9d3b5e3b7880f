"""Which pages of other origins may ask the API from a browser: none, unless they are configured.

Source: Fetch standard, "CORS protocol". No credentials are ever allowed: keys go in a header that the page sets
itself, and the dashboard's cookies are no business of other pages.
"""

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from covey.http.asgi import ASGIApp, Headers, Message, Receive, Scope, Send, header

API_PATHS = ("/v1", "/api")
EVERY_ORIGIN = "*"
MAX_AGE_SECONDS = 600
"""How long a browser may keep an answer to its preflight."""
_METHODS = b"GET, POST, DELETE, OPTIONS"
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]+(?: *, *[A-Za-z0-9-]+){0,99}")
_EXPOSED = (
    b"x-request-id, request-id, openai-processing-ms, retry-after, retry-after-ms, x-should-retry,"
    b" x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests,"
    b" x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)


def check_origin(origin: str) -> None:
    """`ValueError` for what is neither `*` nor an origin as browsers send it, like `https://app.example.org`."""
    parts = urlsplit(origin)
    is_origin = parts.scheme and parts.netloc and origin == f"{parts.scheme}://{parts.netloc}" == origin.lower()
    if origin != EVERY_ORIGIN and not is_origin:
        raise ValueError(f"{origin!r} is no origin; write e.g. https://app.example.org, or *")


class Cors:
    """An ASGI application around another: answers preflights for the API's paths, and marks their answers."""

    def __init__(self, app: ASGIApp, origins: Iterable[str]) -> None:
        self._app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not _is_api(scope["path"]):
            await self._app(scope, receive, send)
            return
        origin = header(scope, b"origin")
        added = self._headers(origin)
        if scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") is not None:
            await send({"type": "http.response.start", "status": 204, "headers": _preflight(scope, added)})
            await send({"type": "http.response.body", "body": b""})
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *added]}
            await send(message)

        await self._app(scope, receive, marked)

    def _headers(self, origin: str | None) -> Headers:
        """What an answer carries; a cache has to know that it depends on the origin, allowed or not."""
        if EVERY_ORIGIN in self._origins:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _EXPOSED)]
        vary = (b"vary", b"Origin")
        if origin is None or origin not in self._origins:
            return [vary]
        return [
            vary,
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", _EXPOSED),
        ]


def _is_api(path: str) -> bool:
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in API_PATHS)


def _preflight(scope: Scope, added: Headers) -> Headers:
    """To an origin that is allowed: whatever headers it wants to send. They are read as any client's, or not at all."""
    if not any(name == b"access-control-allow-origin" for name, _ in added):
        return added
    wanted = header(scope, b"access-control-request-headers") or ""
    return [
        (b"vary", b"Access-Control-Request-Headers"),
        *(pair for pair in added if pair[0] != b"access-control-expose-headers"),
        (b"access-control-allow-methods", _METHODS),
        *([(b"access-control-allow-headers", wanted.encode())] if _HEADER_NAMES.fullmatch(wanted) else []),
        (b"access-control-max-age", str(MAX_AGE_SECONDS).encode()),
    ]
