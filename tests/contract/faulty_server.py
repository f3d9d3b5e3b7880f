"""An HTTP server on loopback that answers by script, to play what no real server can be made to do at will."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import trio

Script = Callable[[trio.SocketStream, str, dict[str, str]], Awaitable[None]]
"""Gets the stream, the request's path and its headers (lower case); the connection closes when it returns."""


@dataclass
class Scripted:
    url: str
    script: Script
    models: bytes = b'{"data": [{"id": "m", "max_model_len": 99}]}'
    shown: bytes = b"{}"
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    """Path, headers and body of every request but those for the models."""


def reply(status: int, body: bytes, kind: str = "application/json", *headers: str) -> bytes:
    head = [
        f"HTTP/1.1 {status} X",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def stream_head(kind: str = "text/event-stream") -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


def chunked(*pieces: bytes, end: bool = True) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + (b"0\r\n\r\n" if end else b"")


@asynccontextmanager
async def scripted(script: Script) -> AsyncGenerator[Scripted, None]:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server = Scripted(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}", script)

        async def handle(stream: trio.SocketStream) -> None:
            async with stream:
                path, headers, body = await read_request(stream)
                if path in {"/v1/models", "/api/tags"}:
                    await stream.send_all(reply(200, server.models))
                    return
                if path == "/api/show":
                    await stream.send_all(reply(200, server.shown))
                    return
                server.requests.append((path, headers, body))
                with suppress(trio.BrokenResourceError):  # the client may leave
                    await server.script(stream, path, headers)

        nursery.start_soon(trio.serve_listeners, handle, listeners)
        yield server
        nursery.cancel_scope.cancel()


async def read_request(stream: trio.SocketStream) -> tuple[str, dict[str, str], bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive_some()
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += await stream.receive_some()
    return first.split()[1], headers, body
