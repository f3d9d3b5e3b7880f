"""What a call between two processes costs over libp2p, beside the same session over a bare TCP connection, in one run.

    python -m bench.machines [--seconds 2] [--rounds 3]

Ratios within one run mean something; absolute figures are this machine's. The two ways take turns, round after round,
and the best round of each counts: what disturbs the machine disturbs both.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import trio

from bench.figure import Figure, show
from covey.bus.background import open_background
from covey.bus.bus import Bus, BusHandle
from covey.bus.caller import EVERY_PARTY, Caller
from covey.bus.replies import Emit
from covey.bus.session import acceptor, open_session
from covey.contracts.auth import VERIFY, Identity, VerifyKey
from covey.contracts.inference import CHAT, ChatDelta, ChatRequest, Message
from covey.store.identity import Identity as NodeIdentity
from covey.telemetry.metrics import Metrics
from covey.transport.libp2p.host import open_libp2p

KEY = VerifyKey("0123456789abcdef", b"d" * 32)
IDENTITY = Identity("0123456789abcdef", "account", models=("tiny",))
PROMPT = ChatRequest("tiny", (Message("user", "Tell me a story. " * 20),))
NEAR = NodeIdentity(b"n" * 32)
FAR = NodeIdentity(b"f" * 32)
IN_FLIGHT = 64
STREAMS = 100
STALLED = 20
ROUNDS = 3
RATIO_MIN = 0.75
"""Of the calls a second over bare TCP."""


class Figures(msgspec.Struct):
    """Of one way, in one round."""

    unary_p50_ms: float
    calls_per_second: float
    tokens_per_second: float
    stalled_p99_ms: float


async def verify(caller: Caller, request: VerifyKey) -> Identity:
    return IDENTITY


async def chat(caller: Caller, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
    delta = ChatDelta(" token", tokens=1)
    while True:
        await emit(delta)


async def nobody(*_: object) -> None:
    raise AssertionError("nobody dials here")


async def far_side() -> None:
    """The other process: serves over both ways until its standard input ends."""
    bus = Bus(FAR.peer_id, Metrics(), name="far")
    bus.stamped("auth").serve(VERIFY, verify)
    bus.stamped("inference").serve_stream(CHAT, chat)
    accept = acceptor(bus, lambda _: EVERY_PARTY)
    async with (
        bus.open(),
        open_libp2p(FAR, listen=["127.0.0.1:0"], is_member=lambda _: True, on_rpc=accept, on_join=nobody) as host,
        open_background() as nursery,
    ):
        (listener,) = await nursery.start(
            partial(trio.serve_tcp, lambda stream: accept(NEAR.peer_id, stream), 0, host="127.0.0.1")
        )
        port = listener.socket.getsockname()[1]
        sys.stdout.write(msgspec.json.encode((host.addresses, port)).decode() + "\n")
        sys.stdout.flush()
        async for _ in trio.lowlevel.FdStream(os.dup(0)):
            pass


@asynccontextmanager
async def linked(stream: trio.abc.Stream) -> AsyncGenerator[BusHandle, None]:
    bus = Bus(NEAR.peer_id, Metrics(), name="near")
    async with bus.open(), open_session(bus, stream, peer=FAR.peer_id, granted=EVERY_PARTY, dialer=True):
        yield bus.stamped("gateway")


async def unary_p50_ms(bus: BusHandle, seconds: float) -> float:
    for _ in range(200):
        await bus.call(VERIFY, KEY)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        await bus.call(VERIFY, KEY)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


async def calls_per_second(bus: BusHandle, seconds: float) -> float:
    count = 0

    async def caller() -> None:
        nonlocal count
        while True:
            await bus.call(VERIFY, KEY)
            count += 1

    start = time.perf_counter()
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(IN_FLIGHT):
                nursery.start_soon(caller)
    return count / (time.perf_counter() - start)


async def tokens_per_second(bus: BusHandle, seconds: float) -> float:
    count = 0

    async def reader() -> None:
        nonlocal count
        async with bus.stream(CHAT, PROMPT) as replies:
            async for _ in replies:
                count += 1

    start = time.perf_counter()
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(STREAMS):
                nursery.start_soon(reader)
    return count / (time.perf_counter() - start)


async def stalled_p99_ms(bus: BusHandle, seconds: float) -> float:
    """Of calls, one at a time, while consumers take nothing of streams that have everything to give."""

    async def stalled() -> None:
        async with bus.stream(CHAT, PROMPT) as replies:
            await anext(replies)
            await trio.sleep_forever()

    times: list[float] = []
    async with trio.open_nursery() as nursery:
        for _ in range(STALLED):
            nursery.start_soon(stalled)
        await trio.sleep(0.2)
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            await bus.call(VERIFY, KEY)
            times.append(time.perf_counter() - start)
        nursery.cancel_scope.cancel()
    return statistics.quantiles(times, n=100)[98] * 1e3


async def measure(stream: trio.abc.Stream, seconds: float) -> Figures:
    async with linked(stream) as bus:
        return Figures(
            await unary_p50_ms(bus, seconds), await calls_per_second(bus, seconds),
            await tokens_per_second(bus, seconds), await stalled_p99_ms(bus, seconds),
        )  # fmt: skip


def best(rounds: list[Figures]) -> Figures:
    return Figures(
        min(each.unary_p50_ms for each in rounds), max(each.calls_per_second for each in rounds),
        max(each.tokens_per_second for each in rounds), min(each.stalled_p99_ms for each in rounds),
    )  # fmt: skip


async def compare(addresses: tuple[str, ...], port: int, seconds: float, rounds: int) -> tuple[Figures, Figures]:
    libp2p: list[Figures] = []
    tcp: list[Figures] = []
    async with open_libp2p(NEAR, listen=[], is_member=lambda _: True, on_rpc=nobody, on_join=nobody) as host:
        for _ in range(rounds):
            tcp.append(await measure(await trio.open_tcp_stream("127.0.0.1", port), seconds))
            stream, _ = await host.dial(FAR.peer_id, addresses)
            libp2p.append(await measure(stream, seconds))
    return best(libp2p), best(tcp)


def run(seconds: float, rounds: int = ROUNDS) -> Iterable[Figure]:
    """See `bench.figure`. `seconds`: for each figure of a round."""
    command = [sys.executable, "-m", "bench.machines", "--far"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        addresses, port = msgspec.json.decode(process.stdout.readline(), type=tuple[tuple[str, ...], int])
        libp2p, tcp = trio.run(compare, addresses, port, seconds, rounds)
    finally:
        process.kill()
        process.communicate()
    name = "bare TCP"
    yield Figure("unary p50", libp2p.unary_p50_ms, "ms", tcp.unary_p50_ms, name, goal_max=0.6)
    yield Figure(
        f"calls, {IN_FLIGHT} in flight", libp2p.calls_per_second, "/s", tcp.calls_per_second, name,
        goal_min=round(RATIO_MIN * tcp.calls_per_second),
    )  # fmt: skip
    yield Figure(
        f"tokens, {STREAMS} streams", libp2p.tokens_per_second, "/s", tcp.tokens_per_second, name, goal_min=150_000
    )
    yield Figure(f"p99 with {STALLED} stalled", libp2p.stalled_p99_ms, "ms", tcp.stalled_p99_ms, name, goal_max=5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure of a round")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--far", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.far:
        trio.run(far_side)
    else:
        show("machines", run(arguments.seconds, arguments.rounds))
