"""How soon the engine stops after its client has gone: every dialect, on this machine and over a link of 50 ms.

    python -m bench.leaving

Real sockets to a real node; the far machine is another bus over the memory network, 50 ms each way. The baseline is the
link's own time.
"""

import statistics
import tempfile
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import trio

from bench.figure import Figure, show
from covey.backends.echo import EchoBackend, EchoConfig
from covey.bus.background import open_background
from covey.bus.bus import Bus
from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.bus.session import acceptor, open_session
from covey.config import build
from covey.contracts.auth import ADD_USER, Actor, AddUser
from covey.contracts.inference import CHAT, MODELS, ChatDelta, ChatRequest, Models
from covey.contracts.method import Nothing
from covey.node import open_node
from covey.telemetry.metrics import Metrics
from covey.testing import BOB, MEMBER
from covey.transport.memory import LinkQuality, MemoryNetwork

LINK_SECONDS = 0.05
NEAR_GOAL_MILLISECONDS = 100
FAR_GOAL_MILLISECONDS = 300
ROUNDS = 5
TOKENS_FIRST = 20
WORDS = " ".join(["token"] * 5_000)
MESSAGES = [{"role": "user", "content": WORDS}]
ASKS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "echo", "messages": MESSAGES},
    "/v1/completions": {"model": "echo", "prompt": WORDS, "max_tokens": 10_000},
    "/v1/responses": {"model": "echo", "input": WORDS},
    "/v1/messages": {"model": "echo", "max_tokens": 10_000, "messages": MESSAGES},
    "/api/chat": {"model": "echo", "messages": MESSAGES},
    "/api/generate": {"model": "echo", "prompt": WORDS},
}


class Engine:
    """The echo back end at 2 ms a token, as an inference node serves it."""

    def __init__(self) -> None:
        self.echo = EchoBackend(EchoConfig(token_seconds=0.002, context_tokens=100_000))

    async def chat(self, caller: Caller, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await self.echo.generate(request, emit)

    async def models(self, caller: Caller, request: Nothing) -> Models:
        return Models(self.echo.models())

    def serve(self, bus: Bus) -> None:
        bus.stamped("inference").serve_stream(CHAT, self.chat)
        bus.stamped("inference").serve(MODELS, self.models)


@asynccontextmanager
async def serving(engine: Engine, folder: Path, network: MemoryNetwork | None) -> AsyncGenerator[tuple[str, str]]:
    """A node with a gateway whose models are `engine`'s, here or over a network; yields its address and a key."""
    tables = {
        "node": {"name": "bench", "roles": ["auth", "gateway"]},
        "http": {"listen": "127.0.0.1:0"},
        "telemetry": {"log_level": "error"},
    }
    async with open_node(build(tables), data=folder, listen=True) as node, AsyncExitStack() as stack:
        bus = node.bus._bus  # noqa: SLF001 - this stands in for a machine that has joined
        if network is None:
            engine.serve(bus)
        else:
            far = Bus(BOB, Metrics(), name="bob")
            engine.serve(far)
            await stack.enter_async_context(far.open())
            nursery = await stack.enter_async_context(open_background())
            await nursery.start(network.join(BOB).serve, acceptor(far, lambda _: MEMBER))
            stream = await network.join(bus.me).dial(BOB)
            await stack.enter_async_context(open_session(bus, stream, peer=BOB, granted=MEMBER, dialer=True))
        await node.bus.call(ADD_USER, AddUser(Actor(), "ada", "correct horse battery staple", "admin"))
        made = await node.client.create_key("ada")
        yield node.urls[0], made.key


async def leave(engine: Engine, url: str, key: str, route: str, *, stream: bool) -> float:
    """Ask, take a few tokens, hang up; seconds until the engine rests."""
    body = msgspec.json.encode({**ASKS[route], "stream": stream})
    head = (
        f"POST {route} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    address = urlsplit(url)
    enough = engine.echo.produced + TOKENS_FIRST
    connection = await trio.open_tcp_stream(address.hostname or "", address.port or 0)
    async with connection:
        await connection.send_all(head.encode() + body)
        with trio.fail_after(10):
            while engine.echo.produced < enough:  # noqa: ASYNC110
                await trio.sleep(0.001)
    left = trio.current_time()
    with trio.fail_after(10):
        while engine.echo.running:  # noqa: ASYNC110
            await trio.sleep(0.0002)
    return trio.current_time() - left


async def measure(network: MemoryNetwork | None) -> list[float]:
    """Milliseconds of every dialect, streamed and not."""
    engine, found = Engine(), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        async with serving(engine, Path(folder), network) as (url, key):
            for _ in range(ROUNDS):
                for route in ASKS:
                    for stream in (True, False):
                        found.append(await leave(engine, url, key, route, stream=stream) * 1000)
    return found


def run(seconds: float) -> Iterable[Figure]:
    """Near, then far; `seconds` is not used: each leaves as often."""
    near = trio.run(measure, None)
    yield Figure("client gone to engine at rest, near, median", statistics.median(near), "ms")
    yield Figure("the same, the longest", max(near), "ms", goal_max=NEAR_GOAL_MILLISECONDS)
    far = trio.run(measure, MemoryNetwork(quality=LinkQuality(delay_seconds=LINK_SECONDS)))
    link = LINK_SECONDS * 1000
    yield Figure("over a link of 50 ms, median", statistics.median(far), "ms", link, "the link")
    yield Figure("the same, the longest", max(far), "ms", link, "the link", goal_max=FAR_GOAL_MILLISECONDS)


if __name__ == "__main__":
    show(__doc__.partition("\n")[0] if __doc__ else "", run(0))
