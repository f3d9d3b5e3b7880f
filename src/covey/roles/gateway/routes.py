"""The HTTP API: a plain ASGI application that denies by default. OpenAI's paths, errors, headers and streams."""

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable

import trio

from covey.contracts.auth import Identity
from covey.dialects import openai
from covey.errors import CallError
from covey.http import sse
from covey.http.asgi import ClientGone, Headers, Receive, Scope, Send, header, leaving_with_client, read_body, respond
from covey.http.credential import credential
from covey.http.problems import headers_of, openai_body, status_of
from covey.roles.gateway.admission import Admission, asked_key, refusal
from covey.roles.gateway.completions import Completion, Completions
from covey.roles.gateway.limits import headers as limit_headers
from covey.roles.gateway.live import Live, LiveRequests
from covey.roles.gateway.placement import Fleet
from covey.telemetry.logs import set_request_id

log = logging.getLogger(__name__)
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_JSON = "application/json"
SHOWN_CHARS_MAX = 200
"""How much of what a client sent is shown back in an error."""


class Exchange:
    """One request and its answer: what every answer's headers need, and whether it has begun."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.started_at = trio.current_time()
        self.begun = False
        self.extra: Headers = []
        self.live = Live()
        sent = header(scope, b"x-request-id") or ""
        self.request_id = sent if _SANE_REQUEST_ID.fullmatch(sent) else f"req_{secrets.token_hex(12)}"
        self._send = send

    def headers(self) -> Headers:
        """On success and failure alike."""
        milliseconds = (trio.current_time() - self.started_at) * 1000
        return [
            (b"x-request-id", self.request_id.encode()),
            (b"openai-processing-ms", str(int(milliseconds)).encode()),
            *self.extra,
        ]

    async def answer(self, status: int, body: bytes, content_type: str = _JSON, headers: Headers | None = None) -> None:
        """A whole answer."""
        self.begun = True
        await respond(self._send, status, body, content_type, [*self.headers(), *(headers or [])])

    async def begin_stream(self) -> None:
        """The head of a stream of events."""
        self.begun = True
        await self._send({"type": "http.response.start", "status": 200, "headers": [*sse.HEADERS, *self.headers()]})

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """A piece of the stream."""
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})


Handler = Callable[[Exchange, Identity], Awaitable[None]]


class Api:
    """The application that the gateway mounts at `/v1`.

    Args:
        body_bytes_max, body_seconds_max: limits of a request's body.
        ping_seconds: how long a stream may be silent before a comment line keeps it open.
    """

    def __init__(
        self,
        admission: Admission,
        completions: Completions,
        fleet: Fleet,
        requests: LiveRequests,
        *,
        body_bytes_max: int,
        body_seconds_max: float,
        ping_seconds: float,
    ) -> None:
        self._admission = admission
        self._completions = completions
        self._fleet = fleet
        self._requests = requests
        self._body_bytes_max = body_bytes_max
        self._body_seconds_max = body_seconds_max
        self._ping_seconds = ping_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request: identify first, then dispatch; what is not in the table does not exist."""
        exchange = Exchange(scope, receive, send)
        set_request_id(exchange.request_id)
        try:
            key = asked_key(credential(scope))
            with self._requests.watch(key) as exchange.live:
                identity = await self._admission.identify(key)
                handler = self._route(exchange)
                await handler(exchange, identity)
        except ClientGone:
            return
        except CallError as error:
            await self._refuse(exchange, error)
        except Exception:
            log.exception("The API failed.")
            await self._refuse(exchange, CallError("internal", "The gateway failed; its log says why."))

    def _route(self, exchange: Exchange) -> Handler:
        method, path = exchange.scope["method"], exchange.scope["path"]
        routes: dict[str, Handler]
        if path == "/v1/chat/completions":
            routes = {"POST": self._chat}
        elif path == "/v1/models":
            routes = {"GET": self._models, "HEAD": self._models}
        elif path.startswith("/v1/models/"):
            routes = {"GET": self._model, "HEAD": self._model}
        else:
            raise CallError("not_found", f"There is no {path[:SHOWN_CHARS_MAX]} here.", reason="route_not_found")
        if method not in routes:
            exchange.extra.append((b"allow", ", ".join(routes).encode()))
            raise CallError("invalid", f"{path} takes {' or '.join(routes)}.", reason="method_not_allowed")
        return routes[method]

    async def _refuse(self, exchange: Exchange, error: CallError) -> None:
        if exchange.begun:
            # Never `[DONE]` after a failure: the client must not take half an answer for a whole one.
            await exchange.write(sse.event(openai_body(error), "error"), last=True)
            return
        await exchange.answer(status_of(error), openai_body(error), headers=headers_of(error))

    def _admit(self, exchange: Exchange, identity: Identity) -> None:
        decision = self._admission.admit(identity)
        exchange.extra = limit_headers(decision)
        if decision is not None and not decision.allowed:
            raise refusal(decision)

    async def _models(self, exchange: Exchange, identity: Identity) -> None:
        models = [one for one in await self._fleet.summaries() if not identity.models or one.name in identity.models]
        await exchange.answer(200, openai.model_list(models))

    async def _model(self, exchange: Exchange, identity: Identity) -> None:
        name = exchange.scope["path"].removeprefix("/v1/models/")
        for model in await self._fleet.summaries():
            if model.name == name and (not identity.models or name in identity.models):
                await exchange.answer(200, openai.model_one(model))
                return
        raise CallError(
            "not_found",
            f"The model {name[:SHOWN_CHARS_MAX]!r} does not exist here.",
            reason="model_not_found",
            param="model",
        )

    async def _chat(self, exchange: Exchange, identity: Identity) -> None:
        self._admit(exchange, identity)
        content_type = (header(exchange.scope, b"content-type") or _JSON).partition(";")[0].strip().lower()
        if content_type != _JSON:
            raise CallError("invalid", f"Send the body as {_JSON}, not {content_type}.", reason="content_type")
        body = await read_body(
            exchange.receive,
            body_bytes_max=self._body_bytes_max,
            body_seconds_max=self._body_seconds_max,
            scope=exchange.scope,
        )
        call = openai.parse_chat(body)
        last = b""
        async with (
            leaving_with_client(exchange.scope, exchange.receive),
            self._completions.open(
                identity, call.chat, exchange.live, route="/v1/chat/completions", started_at=exchange.started_at
            ) as completion,
        ):
            if call.stream:
                last = await self._stream(exchange, completion, include_usage=call.include_usage)
            else:
                last = await self._whole(completion)
        # Only now: the books are closed, and the end of this very answer cannot pass for the client's leaving.
        if not last:
            return  # the client has left
        if call.stream:
            await exchange.write(last, last=True)
        else:
            await exchange.answer(200, last)

    async def _whole(self, completion: Completion) -> bytes:
        """Wait for the whole answer; returns its body."""
        pieces: list[str] = []
        while deltas := await completion.batch():
            pieces.extend(delta.text for delta in deltas)
        return openai.completion(
            _completion_id(),
            completion.model,
            int(time.time()),
            "".join(pieces),
            completion.finish or "stop",
            completion.billed,
        )

    async def _stream(self, exchange: Exchange, completion: Completion, *, include_usage: bool) -> bytes:
        """Send the answer as it comes; returns what is left to send once it is complete."""
        chunks = openai.Chunks(_completion_id(), completion.model, int(time.time()), include_usage=include_usage)
        ahead = chunks.role()
        while True:
            deltas = await completion.batch(trio.current_time() + self._ping_seconds)
            if not exchange.begun:  # only now: a refusal before the first token still has its own status
                await exchange.begin_stream()
            if deltas is None:
                await exchange.write(ahead + sse.PING)
            elif deltas:
                # Tokens that wait already go out in one write: a fifth of the CPU, and no later.
                texts = [delta.text for delta in deltas if delta.text]
                if ahead or texts:
                    await exchange.write(ahead + chunks.texts(texts) if texts else ahead)
            else:
                break
            ahead = b""
        tail = chunks.finish(completion.finish or "stop")
        if include_usage:
            tail += chunks.usage(completion.billed)
        return ahead + tail + sse.DONE


def _completion_id() -> str:
    return f"chatcmpl-{secrets.token_hex(12)}"
