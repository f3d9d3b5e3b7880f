"""One HTTP request and its answer: what every answer's headers need, and whether it has begun."""

from collections.abc import Callable

import trio

from covey.errors import CallError
from covey.http.asgi import REQUEST_ID, BodyBudget, Headers, Receive, Scope, Send, header, read_body, respond
from covey.http.problems import headers_of, status_of
from covey.roles.gateway.books import Asked
from covey.roles.gateway.live import Live
from covey.roles.gateway.voice import OPENAI, Voice
from covey.telemetry.logs import new_request_id, sane_request_id, set_request_id

JSON = "application/json"
SHOWN_CHARS_MAX = 200
"""How much of what a client sent is shown back in an error."""


class Exchange:
    """Made by the API for each request. `asked` is there once it is known who asks for what."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.started_at = trio.current_time()
        self.begun = False
        self.extra: Headers = []
        self.live = Live()
        self.voice: Voice = OPENAI
        self.route = ""
        self.asked: Asked | None = None
        self.failed: Callable[[CallError], bytes] = self.voice.error_body
        """What ends a stream that has begun and fails."""
        known: str = scope.get("extensions", {}).get(REQUEST_ID, "")
        self.request_id = known or sane_request_id(header(scope, b"x-request-id") or "") or new_request_id()
        if not known:
            set_request_id(self.request_id)
        self._send = send
        self._budget: BodyBudget | None = None
        self._held_bytes = 0

    @property
    def path(self) -> str:
        """As the server decoded it."""
        path: str = self.scope["path"]
        return path

    def headers(self) -> Headers:
        """On success and failure alike."""
        milliseconds = (trio.current_time() - self.started_at) * 1000
        headers = [
            (b"x-request-id", self.request_id.encode()),
            (b"openai-processing-ms", str(int(milliseconds)).encode()),
            *self.extra,
        ]
        if self.voice.id_header:
            headers.append((self.voice.id_header, self.request_id.encode()))
        if self.asked is not None and self.asked.charge is not None:
            headers += self.asked.charge.headers()
        return headers

    async def body(self, budget: BodyBudget, *, body_bytes_max: int, body_seconds_max: float) -> bytes:
        """The request's whole body; what it takes of the budget is given back with `release`.

        Raises:
            CallError: `invalid` (`content_type`), and as `read_body`.
            ClientGone: as `read_body`.
        """
        if not self.voice.any_content_type:
            content_type = (header(self.scope, b"content-type") or JSON).partition(";")[0].strip().lower()
            if content_type != JSON:
                said = content_type[:SHOWN_CHARS_MAX]
                raise CallError("invalid", f"Send the body as {JSON}, not {said}.", reason="content_type")
        self._budget = budget

        def take(size: int) -> None:
            budget.take(size)
            self._held_bytes += size

        return await read_body(
            self.receive, body_bytes_max=body_bytes_max, body_seconds_max=body_seconds_max, scope=self.scope, take=take
        )

    def release(self) -> None:
        """The request has ended: give back what its body took of the budget."""
        if self._budget is not None:
            self._budget.give(self._held_bytes)
            self._held_bytes = 0

    async def answer(self, status: int, body: bytes, content_type: str = JSON, headers: Headers | None = None) -> None:
        """A whole answer."""
        self.begun = True
        await respond(self._send, status, body, content_type, [*self.headers(), *(headers or [])])

    async def refuse(self, error: CallError) -> None:
        """An error: the answer, or the end of a stream that has begun.

        Never the end of an answer after a failure: the client must not take half of it for the whole.
        """
        if self.begun:
            await self.write(self.failed(error), last=True)
            return
        await self.answer(status_of(error), self.voice.error_body(error), headers=headers_of(error))

    async def begin_stream(self) -> None:
        """The head of a stream."""
        self.begun = True
        headers = [*self.voice.stream_headers, *self.headers()]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """A piece of the stream."""
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})
