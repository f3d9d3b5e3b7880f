"""The little of ASGI that Covey's own applications need: types, reading a body, answering.

Source: the ASGI specification 3.0, HTTP sub-specification 2.4.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any

import trio

from covey.bus.background import open_background
from covey.errors import CallError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


ON_GONE = "covey.on_gone"
"""An extension of the scope: a function that takes what to call, once, when the client hangs up."""
REQUEST_ID = "covey.request_id"
"""An extension of the scope: the id that the log already calls this request by."""
RECEIVED = "covey.received"
"""An extension of the scope: a function that gives the next message, if it has come already, else `None`."""
PEER = "covey.peer"
"""An extension of the scope: address and port at the other end of the connection, whatever a proxy says of `client`."""


class ClientGone(Exception):
    """The client hung up; nobody is left to answer."""


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that lower-case name, as latin-1 text; `None` where there is none."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


def header_values(scope: Scope, name: bytes) -> list[str]:
    """Every header of that lower-case name."""
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


class BodyBudget:
    """What the bodies of all requests under way may hold together: each of them alone is bounded, their number is not.

    Args:
        bytes_max: of all of them.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.held_bytes = 0

    def take(self, size: int) -> None:
        """Some more has come. Whoever takes gives it back, whatever happens.

        Raises:
            CallError: `no_capacity`; nothing was taken.
        """
        if self.held_bytes + size > self._bytes_max:
            raise CallError(
                "no_capacity", "Too many large requests are under way here; try again soon.", retry_after_seconds=1.0
            )
        self.held_bytes += size

    def give(self, size: int) -> None:
        """A request is done with its body."""
        self.held_bytes -= size


async def read_body(
    receive: Receive,
    *,
    body_bytes_max: int,
    body_seconds_max: float,
    scope: Scope | None = None,
    take: Callable[[int], None] | None = None,
) -> bytes:
    """The whole request body.

    Args:
        receive: of the request.
        body_bytes_max: its limit.
        body_seconds_max: how long it may take to arrive, from now.
        scope: the request's, so that what has arrived already is taken without a wait (`RECEIVED`).
        take: is told how much each piece brings, and may refuse it (`BodyBudget.take`).

    Raises:
        CallError: what `take` raises; `too_large` as soon as the limit is passed; `deadline` (`reason` `slow_body`)
            for a slow sender.
        ClientGone: the client left before the end.
    """
    received: Callable[[], Message | None] = (scope or {}).get("extensions", {}).get(RECEIVED, _nothing)
    deadline = trio.current_time() + body_seconds_max
    pieces: list[bytes] = []
    size = 0
    while True:
        message = received()
        if message is None:
            with trio.CancelScope(deadline=deadline):
                message = await receive()
        if message is None:
            seconds = body_seconds_max
            raise CallError("deadline", f"The request body did not arrive within {seconds:g} s.", reason="slow_body")
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size > body_bytes_max:
            raise CallError("too_large", f"The request body is larger than {body_bytes_max} bytes.")
        if take is not None:
            take(len(piece))
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


async def until_gone(receive: Receive) -> None:
    """Return once the client has hung up. Call it only after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def leaving_with_client(scope: Scope, receive: Receive) -> AbstractAsyncContextManager[None]:
    """Cancel the block when the client hangs up, silently. Enter it only after the body was read.

    Our listener offers to call back (`ON_GONE`); elsewhere a task waits for `http.disconnect`.
    """
    on_gone: Callable[[Callable[[], None]], None] | None = scope.get("extensions", {}).get(ON_GONE)
    return _watching(receive) if on_gone is None else _Told(on_gone)


class _Told(AbstractAsyncContextManager[None]):
    """A class, and no generator: those cost a request as much as all of this."""

    def __init__(self, on_gone: Callable[[Callable[[], None]], None]) -> None:
        self._on_gone = on_gone
        self._running = trio.CancelScope()

    async def __aenter__(self) -> None:
        self._running.__enter__()
        self._on_gone(self._running.cancel)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._on_gone(_nothing)
        return self._running.__exit__(kind, error, traceback)


@asynccontextmanager
async def _watching(receive: Receive) -> AsyncGenerator[None, None]:
    async def watch() -> None:
        await until_gone(receive)
        nursery.cancel_scope.cancel()

    async with open_background() as nursery:
        nursery.start_soon(watch)
        yield


def _nothing() -> None:
    pass


async def respond(
    send: Send, status: int, body: bytes, content_type: str, headers: Iterable[tuple[bytes, bytes]]
) -> None:
    """A whole answer at once."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", content_type.encode()),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
