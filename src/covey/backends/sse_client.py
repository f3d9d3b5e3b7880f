"""Server-sent events over httpx, read under trio so that leaving early leaves nothing behind.

Source of the format: https://html.spec.whatwg.org/multipage/server-sent-events.html (only `data` matters to us).
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import httpx
import trio
from httpx._client import UseClientDefault as UseDefault

from covey.errors import CallError
from covey.telemetry.logs import current_request_id, sane_request_id

EVENT_BYTES_MAX = 4 * 1024 * 1024
ANSWER_BYTES_MAX = 8 * 1024 * 1024
ERROR_BODY_BYTES_MAX = 64 * 1024
Item = TypeVar("Item")
OnEvent = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait: for a connection, for the first event (a long prompt is evaluated first), for each next one."""

    connect_seconds: float = 5.0
    first_seconds: float = 300.0
    idle_seconds: float = 60.0


class SilentUpstreamError(Exception):
    """The request failed before a byte of the answer arrived: sending it once more cannot repeat anything."""


class RefusedError(Exception):
    """The server answered with a status other than 200: `status`, the start of its `body`, its `headers`."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body
        self.headers = headers


class EventReader:
    """The pure part: bytes in, the payloads of complete events out. Lines end in LF or CRLF."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def receive(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes; comments and fields other than `data` are dropped.

        Raises:
            CallError: `upstream` where one event exceeds `EVENT_BYTES_MAX`.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) + sum(map(len, self._data)) + len(self._data) > EVENT_BYTES_MAX:
            raise CallError("upstream", "The model server sent an event of unreasonable size.")
        events: list[bytes] = []
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
        return events


async def post_events(client: httpx.AsyncClient, path: str, body: bytes, on_event: OnEvent, patience: Patience) -> None:
    """Send a JSON body and hand over each event's payload; returns at the clean end of the answer.

    Raises:
        SilentUpstreamError: nothing came back.
        RefusedError: another status than 200.
        CallError: `upstream`: cut off, silent for too long, or not an event stream.
    """
    reader = EventReader()
    deadline = trio.current_time() + patience.first_seconds
    async with _response(client, path, body, patience) as response:
        if response.status_code != 200:
            raise RefusedError(response.status_code, await _start_of(response), response.headers)
        kind = response.headers.get("content-type", "")
        if not kind.lower().startswith("text/event-stream"):
            raise CallError("upstream", f"The model server answered with {kind or 'no type'} instead of a stream.")
        async with exhausting(response.aiter_bytes()) as chunks:
            while True:
                # Measured between events, not bytes: a server that only pings is as silent as a dead one.
                chunk: bytes | None = b""
                with trio.move_on_at(deadline) as waiting:
                    chunk = await anext(chunks, None)
                if waiting.cancelled_caught:
                    raise CallError("upstream", "The model server fell silent.", reason="silent")
                if chunk is None:
                    return
                for event in reader.receive(chunk):
                    await on_event(event)
                    deadline = trio.current_time() + patience.idle_seconds


@asynccontextmanager
async def _response(
    client: httpx.AsyncClient, path: str, body: bytes, patience: Patience
) -> AsyncGenerator[httpx.Response, None]:
    """The response's head, with httpx's errors told apart by whether anything had arrived."""
    timeout = httpx.Timeout(
        connect=patience.connect_seconds, read=patience.first_seconds, write=30.0, pool=patience.connect_seconds
    )
    headers = {"Content-Type": "application/json"}
    if request_id := sane_request_id(current_request_id()):
        headers["X-Request-Id"] = request_id  # so that the server's log can be read beside ours
    arrived = False
    try:
        async with client.stream("POST", path, content=body, headers=headers, timeout=timeout) as response:
            arrived = True
            yield response
    except (httpx.ReadTimeout, httpx.PoolTimeout, httpx.WriteTimeout) as error:
        raise CallError("upstream", "The model server did not answer in time.", reason="silent") from error
    except (httpx.TransportError, httpx.DecodingError) as error:
        if not arrived:
            raise SilentUpstreamError(describe(error)) from error
        raise CallError("upstream", f"The model server broke off its answer ({describe(error)}).") from error


@asynccontextmanager
async def exhausting(stream: AsyncIterator[Item]) -> AsyncGenerator[AsyncIterator[Item], None]:
    """Iterate over a body of httpx and finish its generators on the way out, whatever the way.

    httpx and httpcore nest five async generators; `aclose` reaches the outermost alone, and trio complains about the
    garbage. A cancelled read passes through all of them and ends each.
    """
    try:
        yield stream
    finally:
        # Whatever the body still says or suffers is of no interest any more.
        with trio.CancelScope() as at_once, suppress(Exception):
            at_once.cancel()
            while True:  # what is already buffered comes without a checkpoint; it is little
                await anext(stream)


async def get_json(client: httpx.AsyncClient, path: str) -> bytes:
    """The body of a small answer.

    Raises:
        SilentUpstreamError, RefusedError: as `post_events`.
        CallError: `upstream` where it is larger than `ANSWER_BYTES_MAX`.
    """
    return await _whole(client, "GET", path, None, httpx.USE_CLIENT_DEFAULT)


async def post_json(client: httpx.AsyncClient, path: str, body: bytes) -> bytes:
    """The body of an answer that is no stream; for as long as the caller waits. Errors as `get_json`."""
    return await _whole(client, "POST", path, body, httpx.Timeout(None, connect=client.timeout.connect))


async def _whole(
    client: httpx.AsyncClient, method: str, path: str, content: bytes | None, timeout: "httpx.Timeout | UseDefault"
) -> bytes:
    headers = {"Content-Type": "application/json"} if content is not None else {}
    try:
        async with client.stream(method, path, content=content, headers=headers, timeout=timeout) as response:
            if response.status_code != 200:
                raise RefusedError(response.status_code, await _start_of(response), response.headers)
            body = bytearray()
            async with exhausting(response.aiter_bytes()) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) > ANSWER_BYTES_MAX:
                        raise CallError("upstream", "The model server sent an answer of unreasonable size.")
            return bytes(body)
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise SilentUpstreamError(describe(error)) from error


async def _start_of(response: httpx.Response) -> bytes:
    body = bytearray()
    with trio.move_on_after(5):
        async with exhausting(response.aiter_bytes()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) >= ERROR_BODY_BYTES_MAX:
                    break
    return bytes(body[:ERROR_BODY_BYTES_MAX])


def describe(error: BaseException) -> str:
    """An error of the network in a few words, without addresses or header values."""
    return type(error).__name__ if isinstance(error, httpx.ProtocolError) else str(error)[:120] or type(error).__name__
