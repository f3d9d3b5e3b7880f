"""HTTP connections of the back ends: one for each request, kept for another only if the request ended well.

httpcore's own pool forgets the connection of a request that is cancelled before it is sent: it stays open, counts, and
is never used again (https://github.com/encode/httpcore/issues/1093, open in 1.0.9). People who leave cancel all the
time: after a few hundred of them an engine's eight connections were gone, it seemed to be deaf, and was killed.
"""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import httpx
import trio

from covey.backends.tls import trusted_certificates

CLOSE_SECONDS_MAX = 1.0
Open = Callable[[], httpx.AsyncBaseTransport]


class Connections(httpx.AsyncBaseTransport):
    """A transport over transports that each serve one request at a time. Closed by its client.

    Args:
        open_one: makes one, without opening a connection yet.
        idle_max: how many are kept for later requests; how many are in use is for the caller to bound.
    """

    def __init__(self, open_one: Open, *, idle_max: int) -> None:
        self._open_one = open_one
        self._idle_max = idle_max
        self._idle: list[httpx.AsyncBaseTransport] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """See `httpx.AsyncBaseTransport`."""
        transport = self._idle.pop() if self._idle else self._open_one()
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            await _close(transport)
            raise

        async def release(*, good: bool) -> None:
            if good and len(self._idle) < self._idle_max:
                self._idle.append(transport)
            else:
                await _close(transport)

        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Body(response.stream, release)
        return response

    async def aclose(self) -> None:
        """Close those that are idle; the others close with their answers."""
        self._idle_max = 0
        while self._idle:
            await _close(self._idle.pop())


def unix_connections(path: str) -> Connections:
    """To a Unix socket; none is kept."""
    return _connections(uds=path, context=_no_tls(), idle_max=0)


def tcp_connections(*, tls: bool, idle_max: int = 0) -> Connections:
    """To a server, through no proxy. Blocks for 20 ms with `tls`."""
    return _connections(context=trusted_certificates() if tls else _no_tls(), idle_max=idle_max)


def _connections(*, context: ssl.SSLContext, idle_max: int, uds: str | None = None) -> Connections:
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1 if idle_max else 0)
    return Connections(partial(httpx.AsyncHTTPTransport, uds=uds, verify=context, limits=limits), idle_max=idle_max)


def _no_tls() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # asked for, never used; httpx's own takes 20 ms to make


class _Body(httpx.AsyncByteStream):
    """An answer's body that gives its connection back when it is closed."""

    def __init__(self, inner: httpx.AsyncByteStream, release: Callable[..., Awaitable[None]]) -> None:
        self._inner = inner
        self._release = release

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._inner.__aiter__()

    async def aclose(self) -> None:
        good = False
        try:
            await self._inner.aclose()
            good = True
        finally:
            await self._release(good=good)


async def _close(transport: httpx.AsyncBaseTransport) -> None:
    # Also where the request was cancelled: a connection that stays open keeps the engine busy.
    with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
        await transport.aclose()
