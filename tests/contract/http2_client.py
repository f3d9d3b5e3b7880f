"""An HTTP/2 client that does exactly what it is told to, well or badly: h2's other side, over real TLS."""

import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from certificates import write_pair
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from http_harness import PATIENCE_SECONDS, Served, serving

from covey.http.asgi import ASGIApp


@dataclass
class Answer2:
    """What came on one stream."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    body: bytes = b""
    informed: list[int] = field(default_factory=list[int])
    ended: bool = False
    reset: int | None = None


class Client2:
    """One connection. Nothing is read but within `until`."""

    def __init__(self, stream: "trio.SSLStream[Any]") -> None:
        self.stream = stream
        self.h2 = H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.answers: dict[int, Answer2] = {}
        self.goaway: ConnectionTerminated | None = None
        self.closed = False
        self.gives_window = True
        self._sending = trio.Lock()

    async def flush(self) -> None:
        await self.send(self.h2.data_to_send())

    async def send(self, data: bytes) -> None:
        """Exactly these bytes."""
        async with self._sending:
            await self.stream.send_all(data)

    async def ask(
        self, path: str, method: str = "GET", *, end: bool = True, headers: list[tuple[str, str]] | None = None
    ) -> int:
        """Begin a request; the number of its stream."""
        number = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path)]
        self.h2.send_headers(number, [*fields, *(headers or [])], end_stream=end)
        self.answers[number] = Answer2()
        await self.flush()
        return number

    async def send_body(self, number: int, body: bytes) -> None:
        """All of a request's body, as fast as the windows let it."""
        left = body
        while left:
            await self.until(lambda: self.h2.local_flow_control_window(number) > 0)
            room = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size)
            self.h2.send_data(number, left[:room], end_stream=room >= len(left))
            left = left[room:]
            await self.flush()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Read until something holds, or the server closes."""
        with trio.fail_after(PATIENCE_SECONDS):
            while not holds() and not self.closed:
                try:
                    data = await self.stream.receive_some(65_536)
                except trio.BrokenResourceError:
                    data = b""
                self.closed = not data
                for event in self.h2.receive_data(bytes(data)):
                    self._note(event)
                if not self.closed and self.goaway is None:
                    await self.flush()

    async def answer(self, number: int) -> Answer2:
        """The whole of one."""
        found = self.answers[number]
        await self.until(lambda: found.ended or found.reset is not None)
        return found

    def _note(self, event: Event) -> None:
        found = self.answers.get(getattr(event, "stream_id", None) or 0, Answer2())
        if isinstance(event, ConnectionTerminated):
            self.goaway = event
        elif isinstance(event, InformationalResponseReceived):
            found.informed.append(int(dict(event.headers)[b":status"]))
        elif isinstance(event, ResponseReceived):
            found.headers = dict(event.headers)
            found.status = int(found.headers[b":status"])
        elif isinstance(event, DataReceived):
            found.body += event.data
            if self.gives_window and self.goaway is None:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id or 0)
        elif isinstance(event, StreamEnded):
            found.ended = True
        elif isinstance(event, StreamReset):
            found.reset = int(event.error_code)


@asynccontextmanager
async def serving2(app: ASGIApp, folder: Path, **config: Any) -> AsyncGenerator[Served, None]:
    """A listener with TLS."""
    certificate_file, key_file = write_pair(folder)
    files = {"tls_certificate_file": str(certificate_file), "tls_key_file": str(key_file)}
    async with serving(app, **files, **config) as served:
        yield served


@asynccontextmanager
async def client2(served: Served, folder: Path, *, begin: bool = True) -> AsyncGenerator[Client2, None]:
    """A connection to a listener of `serving2`."""
    async with connected2(served.port, folder, begin=begin) as client:
        yield client


@asynccontextmanager
async def connected2(port: int, folder: Path, *, begin: bool = True) -> AsyncGenerator[Client2, None]:
    """A connection that has chosen HTTP/2, and said hello unless that is left to the caller."""
    context = ssl.create_default_context(cafile=folder / "certificate.pem")
    context.set_alpn_protocols(["h2"])
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    stream = trio.SSLStream(tcp, context, server_hostname="localhost", https_compatible=True)
    client = Client2(stream)
    try:
        await stream.do_handshake()
        if begin:
            client.h2.initiate_connection()
            await client.flush()
        yield client
    finally:
        await trio.aclose_forcefully(stream)
