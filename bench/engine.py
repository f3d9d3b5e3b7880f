"""Embedded tokens per second through CHAT, beside the same engine asked directly over its socket.

Needs the default model, fetched once into `COVEY_TEST_MODELS` (default: `~/.cache/covey-tests`).
"""

import dataclasses
import json
import os
import socket
import statistics
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import trio

from bench.figure import Figure
from covey.backends.base import BackendParts, Plugged
from covey.backends.catalogue import DEFAULT_MODEL
from covey.backends.completion_requests import chat_body
from covey.backends.embedded import BACKEND, EmbeddedBackend, EmbeddedConfig, open_embedded
from covey.bus.bus import Bus, BusHandle
from covey.contracts.inference import CHAT, ChatRequest, Message, PullProgress, Sampling
from covey.roles.base import Lifecycle, NodeInfo, Parts
from covey.roles.inference.role import ROLE, InferenceConfig
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId

RATIO_MIN = 0.97
TOKENS = 128
ASK = ChatRequest(
    DEFAULT_MODEL,
    (
        Message("system", "You are a helpful assistant."),
        Message("user", "Write a long story about a lighthouse keeper and the sea."),
    ),
    TOKENS,
    sampling=Sampling(temperature=0.0, seed=1),
)


def run(seconds: float) -> Iterable[Figure]:
    """Both, in turns, so that a noisy machine disturbs them alike."""
    return trio.run(measure, seconds)


async def measure(seconds: float) -> list[Figure]:
    """Rounds of both for about `seconds` each."""
    folder = Path(os.environ.get("COVEY_TEST_MODELS") or Path.home() / ".cache" / "covey-tests")
    async with role(folder) as (bus, backend):
        through: list[float] = []
        direct: list[float] = []
        first_tokens: list[float] = []
        started = time.perf_counter()
        await ask(bus)
        ready = time.perf_counter() - started
        engine = backend.engines.find(DEFAULT_MODEL)
        assert engine is not None
        assert engine.child is not None
        process = engine.child.process.pid
        path = socket_of(process)
        began = time.perf_counter()
        while len(through) < 3 or time.perf_counter() - began < 2 * seconds:
            speed, first = await ask(bus)
            through.append(speed)
            first_tokens.append(first)
            direct.append(await trio.to_thread.run_sync(ask_directly, path))
        memory = resident_bytes(process)
    median = statistics.median
    return [
        Figure("tokens/s through CHAT", median(through), "1/s", median(direct), "the engine itself"),
        Figure("of the engine's own tokens/s", median(through) / median(direct), "", goal_min=RATIO_MIN),
        Figure("first token of a known prompt", median(first_tokens) * 1e3, "ms"),
        Figure("start to first answer, file checked", ready, "s"),
        Figure("memory of the engine", memory / 1e6, "MB"),
    ]


async def ask(bus: BusHandle) -> tuple[float, float]:
    """Tokens per second after the first token, and the seconds until it."""
    started = time.perf_counter()
    first = last = 0.0
    count = 0
    async with bus.stream(CHAT, ASK) as deltas:
        async for delta in deltas:
            if delta.text:
                last = time.perf_counter()
                first = first or last
                count += delta.tokens
    return (count - 1) / (last - first), first - started


def ask_directly(path: str) -> float:
    """The same over a plain socket, parsing nothing but the lines."""
    body = chat_body(ASK, DEFAULT_MODEL, local=True)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: engine\r\nConnection: close\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        connection.sendall(head.encode() + body)
        rest = b""
        first = last = 0.0
        count = 0
        while data := connection.recv(65_536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {") and b'"content":"' in line:
                    last = time.perf_counter()
                    first = first or last
                    count = json.loads(line[6:])["timings"]["predicted_n"]
    return (count - 1) / (last - first)


@asynccontextmanager
async def role(folder: Path) -> AsyncGenerator[tuple[BusHandle, EmbeddedBackend], None]:
    """The inference role with the embedded back end, on a bus of its own."""
    metrics = Metrics()
    bus = Bus(PeerId("bench"), metrics)
    opened: list[EmbeddedBackend] = []

    @asynccontextmanager
    async def open_kept(config: EmbeddedConfig, parts: BackendParts) -> AsyncGenerator[EmbeddedBackend, None]:
        async with open_embedded(config, BackendParts(folder, metrics)) as backend:
            assert isinstance(backend, EmbeddedBackend)
            opened.append(backend)

            async def nobody(progress: PullProgress) -> None:
                """The log tells."""

            if not (folder / f"{DEFAULT_MODEL}.gguf").exists():
                await backend.pull(DEFAULT_MODEL, nobody)
            yield backend

    absent = cast("Any", None)
    plugin = Plugged(dataclasses.replace(BACKEND, open=open_kept), EmbeddedConfig())
    parts = Parts(
        node=NodeInfo("bench", "0", 0),
        identity=absent,
        bus=bus.stamped("inference"),
        store=absent,
        http=absent,
        metrics=metrics,
        clock=absent,
        lifecycle=Lifecycle(),
        folder=folder,
        assets=folder,
        backends=(plugin,),
    )
    async with bus.open(), ROLE.open(InferenceConfig(), parts):
        yield bus.stamped("gateway"), opened[0]


def socket_of(pid: int) -> str:
    """The engine's Unix socket, found as an operator would."""
    inodes = {
        str(link.readlink()).removeprefix("socket:[").removesuffix("]")
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if str(link.readlink()).startswith("socket:[")
    }
    for line in Path("/proc/net/unix").read_text().splitlines():
        fields = line.split()
        if len(fields) == 8 and fields[6] in inodes:
            return fields[7]
    raise LookupError(pid)


def resident_bytes(pid: int) -> int:
    """Of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
