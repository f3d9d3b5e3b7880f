"""A hundred streams at 5 ms a token through the gateway: how much of what the engine gives arrives.

    python -m bench.streams

The node runs in a process of its own, with the key checked, its limits counted, usage and metrics on. The baseline is a
bare application on the same listener that sends as many pieces at the same pace. Ideal is the engine's own pace.
"""

import argparse
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import trio

from bench import serving
from bench.figure import Figure, show
from covey.config import build
from covey.contracts.auth import ADD_USER, Actor, AddUser
from covey.http.asgi import Receive, Scope, Send, read_body
from covey.node import open_node

STREAMS = 100
TOKENS = 400
TOKEN_SECONDS = 0.005
GOAL_SHARE = 0.85
END = b"data: [DONE]\n\n\r\n0\r\n\r\n"
BODY = msgspec.json.encode(
    {"model": "echo", "stream": True, "messages": [{"role": "user", "content": " ".join(["token"] * TOKENS)}]}
)


@asynccontextmanager
async def open_api(folder: Path) -> AsyncGenerator[tuple[str, str], None]:
    """A node with auth, inference and gateway; yields its address and a key with limits."""
    tables = {
        "node": {"name": "bench", "roles": ["auth", "inference", "gateway"]},
        "http": {"listen": "127.0.0.1:0"},
        "inference": {"backends": ["echo"], "default_model": "echo"},
        "backends": {"echo": {"token_seconds": TOKEN_SECONDS, "slots": STREAMS}},
        "telemetry": {"log_level": "error"},
    }
    async with open_node(build(tables), data=folder, listen=True) as node:
        await node.bus.call(ADD_USER, AddUser(Actor(), "ada", "correct horse battery staple", "admin"))
        made = await node.client.create_key("ada", requests_per_minute=1_000_000)
        yield node.urls[0], made.key


@asynccontextmanager
async def open_bare(folder: Path) -> AsyncGenerator[tuple[str, str], None]:
    """The same listener, and an application that only keeps the pace."""
    chunk = b"data: " + b"x" * 200 + b"\n\n"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive, body_bytes_max=1 << 20, body_seconds_max=30)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        began = trio.current_time()
        for place in range(TOKENS):
            await trio.sleep_until(began + place * TOKEN_SECONDS)
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async with serving.open_bare(app) as opened:
        yield opened


OPENS: serving.Opens = {"api": open_api, "bare": open_bare}


async def all_streams(url: str, key: str) -> float:
    """Tokens a second over all streams, from the first request to the last byte."""
    address = urlsplit(url)
    request = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {key}\r\nContent-Length: {len(BODY)}\r\n\r\n"
    ).encode() + BODY

    async def one() -> None:
        connection = await trio.open_tcp_stream(address.hostname or "", address.port or 0)
        async with connection:
            await connection.send_all(request)
            tail = b""
            while not tail.endswith(END):
                data = await connection.receive_some(65_536)
                if not data:
                    raise RuntimeError(f"cut off after {tail!r}")
                tail = (tail + data)[-len(END) :]

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(one)
    return STREAMS * TOKENS / (trio.current_time() - began)


def run(seconds: float) -> Iterable[Figure]:
    """One round of either, after one to warm up; `seconds` is not used."""
    ideal = STREAMS / TOKEN_SECONDS
    shares: dict[str, float] = {}
    cpu: dict[str, float] = {}
    for kind in ("bare", "api"):
        with serving.running("bench.streams", kind) as served:
            trio.run(all_streams, served.url, served.key)
            before = served.cpu_seconds()
            shares[kind] = max(trio.run(all_streams, served.url, served.key) for _ in range(2)) / ideal
            cpu[kind] = (served.cpu_seconds() - before) / (2 * STREAMS * TOKENS) * 1e6
    yield Figure(
        f"{STREAMS} streams at {TOKEN_SECONDS * 1000:g} ms a token, of the ideal", shares["api"], "", shares["bare"],
        "bare ASGI", goal_min=GOAL_SHARE,
    )  # fmt: skip
    yield Figure("CPU of a token, the echo's included", cpu["api"], "µs", cpu["bare"], "bare ASGI")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=tuple(OPENS), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        trio.run(serving.serve, OPENS, asked.serve)
    else:
        show((__doc__ or "").partition("\n")[0], run(0))
