"""Requests are read here, within limits, before Quart sees them.

Quart 0.23 collects a body of any length and looks at its limit afterwards; 0.22 has one limit for every page. So the
body is complete, or refused, when Quart is called, and nothing depends on its version.
"""

from covey.errors import CallError
from covey.http.asgi import ASGIApp, ClientGone, Message, Receive, Scope, Send, header, read_body
from covey.roles.web.config import WebConfig
from covey.roles.web.security import FORM_BYTES_MAX

REFUSAL = "covey.refusal"
"""Where a request's scope holds the `CallError` with which it is to be answered."""
CHAT_PATH = "/chat/stream"


class Intake:
    """ASGI middleware: hands on requests whose bodies have arrived.

    Args:
        app: the application behind it.
        config: the limits; conversations are long, forms are short.
    """

    def __init__(self, app: ASGIApp, config: WebConfig) -> None:
        self._app = app
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; one whose client leaves before its end is not served at all."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = b""
        try:
            body = await self._read(scope, receive)
        except CallError as error:
            scope[REFUSAL] = error
        except ClientGone:
            return
        whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replay() -> Message:
            nonlocal whole
            if whole is not None:
                message, whole = whole, None
                return message
            # What is left is the news that the client hung up, or the rest of a body that was refused.
            while (message := await receive())["type"] == "http.request":
                pass
            return message

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        limit = self._config.chat_body_bytes_max if scope["path"] == CHAT_PATH else FORM_BYTES_MAX
        announced = header(scope, b"content-length") or ""
        if announced.isdigit() and int(announced) > limit:
            raise CallError("too_large", f"The request body is larger than {limit} bytes.")
        return await read_body(receive, body_bytes_max=limit, body_seconds_max=self._config.body_seconds_max)
