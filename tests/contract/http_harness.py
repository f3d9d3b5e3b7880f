"""A listener on a free port, and a client that sends exactly the bytes it is told to."""

import socket
import struct
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import trio

from covey.http.asgi import ASGIApp
from covey.http.server import HttpConfig, Listener
from covey.telemetry.metrics import Metrics

PATIENCE_SECONDS = 10.0


@dataclass
class Answer:
    """A response as it came: header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class RawClient:
    """One connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def until(self, mark: bytes) -> bytes:
        """What arrives up to and with `mark`."""
        with trio.fail_after(PATIENCE_SECONDS):
            while mark not in self.buffer:
                data = await self.stream.receive_some(65_536)
                if not data:
                    raise EOFError(f"closed before {mark!r}: {self.buffer!r}")
                self.buffer += data
        at = self.buffer.index(mark) + len(mark)
        taken, self.buffer = self.buffer[:at], self.buffer[at:]
        return taken

    async def exactly(self, count: int) -> bytes:
        with trio.fail_after(PATIENCE_SECONDS):
            while len(self.buffer) < count:
                data = await self.stream.receive_some(65_536)
                if not data:
                    raise EOFError(f"closed after {self.buffer!r}")
                self.buffer += data
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    async def rest(self) -> bytes:
        """Everything until the server closes; a reset counts as a close."""
        with trio.fail_after(PATIENCE_SECONDS):
            try:
                while data := await self.stream.receive_some(65_536):
                    self.buffer += data
            except trio.BrokenResourceError:
                pass
        taken, self.buffer = self.buffer, b""
        return taken

    async def head(self) -> tuple[int, dict[str, str]]:
        first, *lines = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        return int(first.split(" ")[1]), headers

    async def answer(self, *, head_only: bool = False) -> Answer:
        """One response with its body, by Content-Length, in chunks or to the end."""
        status, headers = await self.head()
        while status == 100:
            status, headers = await self.head()
        if head_only:
            return Answer(status, headers, b"")
        if "content-length" in headers:
            return Answer(status, headers, await self.exactly(int(headers["content-length"])))
        if headers.get("transfer-encoding") != "chunked":
            return Answer(status, headers, await self.rest())
        pieces = []
        while size := int(await self.until(b"\r\n"), 16):
            pieces.append(await self.exactly(size))
            await self.exactly(2)
        await self.exactly(2)
        return Answer(status, headers, b"".join(pieces))

    def hang_up(self, how: str) -> None:
        """`fin`, `rst`, or `half`: no more requests, but still listening."""
        if how == "half":
            self.stream.socket.shutdown(socket.SHUT_WR)
            return
        if how == "rst":
            self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()


@dataclass
class Served:
    """A running listener."""

    listener: Listener
    metrics: Metrics
    stop: trio.Event
    port: int
    drain_seconds: float
    ended: trio.Event = field(default_factory=trio.Event)

    @asynccontextmanager
    async def client(self, *, receive_buffer_bytes: int | None = None) -> AsyncGenerator[RawClient, None]:
        sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_STREAM)
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        await sock.connect(("127.0.0.1", self.port))
        stream = trio.SocketStream(sock)
        try:
            yield RawClient(stream)
        finally:
            sock.close()

    @property
    def url(self) -> str:
        return self.listener.urls[0]

    async def shut_down(self) -> float:
        """Stop as SIGTERM does; how long it took."""
        began = trio.current_time()
        self.stop.set()
        with trio.fail_after(PATIENCE_SECONDS):
            await self.listener.ended.wait()
        return trio.current_time() - began


@asynccontextmanager
async def serving(
    app: ASGIApp, *, drain_seconds: float = 2.0, metrics: Metrics | None = None, **config: Any
) -> AsyncGenerator[Served, None]:
    """Run a listener as long as the block; it is stopped afterwards, and must stop in time."""
    metrics = metrics or Metrics()
    listener = Listener(HttpConfig(listen="127.0.0.1:0", **config), metrics)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(
            partial(listener.serve, app, stop=stop, drain_until=lambda: trio.current_time() + drain_seconds)
        )
        port = urlsplit(listener.urls[0]).port
        assert port
        try:
            yield Served(listener, metrics, stop, port, drain_seconds)
        finally:
            stop.set()
            with trio.fail_after(drain_seconds + 5, shield=True):
                await listener.ended.wait()


async def eventually(holds: Callable[[], bool], seconds: float = 2.0) -> float:
    """Wait until something holds; how long it took."""
    began = trio.current_time()
    with trio.fail_after(seconds):
        while not holds():  # noqa: ASYNC110 - what is waited for lies on the other side of a socket
            await trio.sleep(0.001)
    return trio.current_time() - began
