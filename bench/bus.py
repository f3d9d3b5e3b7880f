"""What a call costs: a bare awaited function, the bus in the process, and a session over a Unix socket, in one run.

    python -m bench.bus [--seconds 1.0]

Ratios within one run mean something; absolute figures are this machine's. Both ends of the socket share one process
and one event loop, so that a socket figure is the work of two nodes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from bench.figure import Figure, show
from covey.bus.background import open_background
from covey.bus.bus import Bus, BusHandle
from covey.bus.caller import EVERY_PARTY, Caller
from covey.bus.replies import Emit
from covey.bus.session import acceptor, open_session
from covey.contracts.auth import VERIFY, Identity, VerifyKey
from covey.contracts.inference import CHAT, ChatDelta, ChatRequest, Message
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId
from covey.transport.unix import dial_unix, serve_unix

KEY = VerifyKey("0123456789abcdef", b"d" * 32)
IDENTITY = Identity("0123456789abcdef", "account", models=("tiny",))
PROMPT = ChatRequest("tiny", (Message("user", "Tell me a story. " * 20),))
TOKENS = 20_000


async def verify(caller: Caller, request: VerifyKey) -> Identity:
    """Answer at once."""
    return IDENTITY


async def chat(caller: Caller, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
    """Emit tokens as fast as they are taken."""
    delta = ChatDelta(" token", tokens=1)
    for _ in range(TOKENS):
        await emit(delta)


@asynccontextmanager
async def open_local() -> AsyncGenerator[BusHandle, None]:
    """A bus that serves itself."""
    async with Bus(PeerId("bench"), Metrics()).open() as bus:
        serve(bus)
        yield bus.stamped("gateway")


@asynccontextmanager
async def open_unix() -> AsyncGenerator[BusHandle, None]:
    """A bus with a session over a Unix socket to another one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "far.sock"
        far, near = Bus(PeerId("far"), Metrics()), Bus(PeerId("near"), Metrics())
        serve(far)
        async with near.open(), far.open(), open_background() as nursery:
            await nursery.start(partial(serve_unix, path, acceptor(far, lambda _: EVERY_PARTY)))
            stream = await dial_unix(path)
            async with open_session(near, stream, peer=PeerId("far"), granted=EVERY_PARTY, dialer=True):
                yield near.stamped("gateway")


def serve(bus: Bus) -> None:
    """What both ways call."""
    bus.stamped("auth").serve(VERIFY, verify)
    bus.stamped("inference").serve_stream(CHAT, chat)


async def serial(call: Callable[[], Awaitable[object]], seconds: float) -> float:
    """The median of one call at a time, in microseconds; the best of batches, so that the clock's own cost is small."""
    for _ in range(200):
        await call()
    batch, samples = 50, list[float]()
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        for _ in range(batch):
            await call()
        samples.append((time.perf_counter() - start) / batch)
    return statistics.median(samples) * 1e6


async def together(call: Callable[[], Awaitable[object]], workers: int, seconds: float) -> float:
    """Calls a second with so many in flight."""
    done = 0
    end = time.perf_counter() + seconds

    async def work() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await call()
            done += 1

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(workers):
            nursery.start_soon(work)
    return done / (time.perf_counter() - start)


async def tokens(bus: BusHandle, streams: int) -> float:
    """Tokens a second over so many streams at once, read in batches as a gateway reads them."""
    taken = 0

    async def read() -> None:
        nonlocal taken
        async with bus.stream(CHAT, PROMPT) as deltas:
            while batch := await deltas.batch():
                taken += len(batch)

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(streams):
            nursery.start_soon(read)
    return taken / (time.perf_counter() - start)


async def measure(seconds: float) -> list[Figure]:
    """Every figure."""
    caller = Caller(PeerId("bench"), "gateway")
    bare = await serial(partial(verify, caller, KEY), seconds)
    async with open_local() as bus:
        local = await serial(partial(bus.call, VERIFY, KEY), seconds)
        local_tokens = await tokens(bus, 1)
    async with open_unix() as bus:
        unix = await serial(partial(bus.call, VERIFY, KEY), seconds)
        unix_rate = await together(partial(bus.call, VERIFY, KEY), 64, seconds)
        unix_tokens = await tokens(bus, 1)
        unix_tokens_many = await tokens(bus, 8)
    return [
        Figure("local call, median", local, "µs", bare, "bare function", goal_max=10),
        Figure("call over a Unix socket, median", unix, "µs", local, "local call"),
        Figure("calls over a Unix socket, 64 in flight", unix_rate, "/s"),
        Figure("tokens, local", local_tokens, "/s"),
        Figure("tokens over a Unix socket", unix_tokens, "/s", local_tokens, "local"),
        Figure("tokens over a Unix socket, 8 streams", unix_tokens_many, "/s", local_tokens, "local"),
    ]


def run(seconds: float) -> list[Figure]:
    """See `bench.figure`."""
    return trio.run(measure, seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    show("bus", run(parser.parse_args().seconds))
