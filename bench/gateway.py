"""What the gateway adds to a request: a whole node with the echo back end, beside a bare ASGI answer, on one server.

    python -m bench.gateway [--seconds 2]

The server runs in a process of its own, whose CPU time is read from /proc; the client here sends raw bytes over one
connection, so that its own cost is small and the same for both. Both ends of a pair take turns, in one run.
"""

import argparse
import os
import socket
import statistics
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from bench import serving
from bench.figure import Figure, show
from covey.backends.echo import EchoBackend
from covey.bus.replies import Emit
from covey.config import build
from covey.contracts.auth import ADD_USER, Actor, AddUser
from covey.contracts.inference import ChatDelta, ChatRequest, Usage
from covey.http.asgi import Receive, Scope, Send, read_body, respond
from covey.node import open_node

BURST_TOKENS = 100
ROUNDS = 6
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
PROMPT = {"role": "user", "content": "What does one request cost, with its key checked and its limit counted?"}
WHOLE = msgspec.json.encode({"model": "echo", "messages": [PROMPT]})
BURST = {"role": "user", "content": " ".join(["token"] * BURST_TOKENS)}
STREAM = msgspec.json.encode({"model": "echo", "messages": [BURST], "stream": True})


async def burst(self: EchoBackend, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
    """Instead of the echo back end's own pace, which yields at every token: all at once, as after a long wait."""
    said = request.messages[-1].content.split(" ")
    for word in said:
        await emit(ChatDelta(word + " ", tokens=1))
    await emit(ChatDelta(finish="stop", usage=Usage(len(said), len(said))))


@asynccontextmanager
async def open_api(folder: Path) -> AsyncGenerator[tuple[str, str], None]:
    """A node with auth, inference and gateway; yields its address and a key with a limit."""
    EchoBackend.generate = burst  # type: ignore[method-assign]
    tables = {
        "node": {"name": "bench", "roles": ["auth", "inference", "gateway"]},
        "http": {"listen": "127.0.0.1:0"},
        "inference": {"backends": ["echo"], "default_model": "echo"},
        "telemetry": {"log_level": "error"},
    }
    async with open_node(build(tables), data=folder, listen=True) as node:
        await node.bus.call(ADD_USER, AddUser(Actor(), "ada", "correct horse battery staple", "admin"))
        made = await node.client.create_key("ada", requests_per_minute=1_000_000)
        yield node.urls[0], made.key


@asynccontextmanager
async def open_bare(folder: Path) -> AsyncGenerator[tuple[str, str], None]:
    """The same listener, and an application that answers as much to as much."""
    body = b"x" * 420
    chunk = b"data: " + b"x" * 200 + b"\n\n"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        asked = await read_body(receive, body_bytes_max=1 << 20, body_seconds_max=30)
        if b'"stream":true' not in asked:
            await respond(send, 200, body, "application/json", [(b"x-request-id", b"x" * 28)])
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": chunk * BURST_TOKENS, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async with serving.open_bare(app) as opened:
        yield opened


OPENS: serving.Opens = {"api": open_api, "bare": open_bare}


class Server:
    """One connection to a server."""

    def __init__(self, served: serving.Served) -> None:
        self._served = served
        host, _, port = served.url.removeprefix("http://").partition(":")
        self._connection = socket.create_connection((host, int(port)))
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def request(self, body: bytes) -> bytes:
        """A request's bytes."""
        return (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self._served.key}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    def ask(self, request: bytes, end: bytes | None = None) -> None:
        """Send it and take the answer: as long as its Content-Length says, or up to `end`."""
        self._connection.sendall(request)
        data = b""
        while True:
            data += self._connection.recv(262_144)
            if end is not None:
                if data.endswith(end):
                    break
                continue
            head, found, body = data.partition(b"\r\n\r\n")
            if found and len(body) >= int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
                break
        if not data.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(data.decode())

    def measure(self, request: bytes, seconds: float, end: bytes | None = None) -> tuple[float, float]:
        """The median latency and the CPU time of one request, in milliseconds."""
        took: list[float] = []
        before, until = self._served.cpu_seconds(), time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            self.ask(request, end)
            took.append(time.perf_counter() - began)
        return statistics.median(took) * 1000, (self._served.cpu_seconds() - before) / len(took) * 1000


def run(seconds: float) -> Iterable[Figure]:
    """Measure in turns, and keep the median of the rounds."""
    end = b"data: [DONE]\n\n\r\n0\r\n\r\n"
    rounds: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with serving.running("bench.gateway", "api") as one, serving.running("bench.gateway", "bare") as other:
        api, bare = Server(one), Server(other)
        for server in (api, bare):
            server.measure(server.request(WHOLE), 0.5)
            server.measure(server.request(STREAM), 0.5, end)
        for _ in range(ROUNDS):
            for name, server in (("api", api), ("bare", bare)):
                whole = server.measure(server.request(WHOLE), seconds / 2)
                rounds.setdefault((name, "whole"), []).append(whole)
                streamed = server.measure(server.request(STREAM), seconds / 2, end)
                rounds.setdefault((name, "stream"), []).append(streamed)

    def median(server: str, what: str, index: int) -> float:
        return statistics.median(one[index] for one in rounds[server, what])

    bare_ms, bare_cpu = median("bare", "whole", 0), median("bare", "whole", 1)
    api_ms, api_cpu = median("api", "whole", 0), median("api", "whole", 1)
    yield Figure("latency added to a request, p50", api_ms - bare_ms, "ms", goal_max=0.6)
    yield Figure("latency of a request, p50", api_ms, "ms", bare_ms, "bare ASGI")
    yield Figure("CPU of a request", api_cpu, "ms", bare_cpu, "bare ASGI", goal_max=0.5)
    stream_cpu = median("api", "stream", 1)
    yield Figure(
        f"CPU of a stream, {BURST_TOKENS} tokens at once", stream_cpu, "ms", median("bare", "stream", 1), "bare ASGI",
        goal_max=1.0,
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--serve", choices=tuple(OPENS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        trio.run(serving.serve, OPENS, arguments.serve)
    else:
        show("gateway", run(arguments.seconds))
