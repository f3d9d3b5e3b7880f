"""Back ends over real servers, one kind of world each, for the suite in `test_backends`."""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import trio

from covey.backends.base import Backend, BackendParts
from covey.backends.catalogue import DEFAULT_EMBEDDER, DEFAULT_MODEL, Entry, find
from covey.backends.echo import EchoBackend, EchoConfig, open_echo
from covey.backends.embedded import EmbeddedBackend, EmbeddedConfig, open_embedded
from covey.backends.embedder import EmbedderBackend, EmbedderConfig, open_embedder
from covey.backends.ollama import OllamaConfig, open_ollama
from covey.backends.openai import OpenAiConfig, open_openai
from covey.backends.openai_upstream import Upstream
from covey.contracts.inference import (
    ChatDelta,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    Message,
    PullProgress,
    Sampling,
    TokenLogprob,
    ToolCall,
)
from covey.telemetry.metrics import Metrics

SERVERS = Path(__file__).parent / "servers"


def models_folder() -> Path:
    """Where the tests keep the default model, fetched once like any user's."""
    return Path(os.environ.get("COVEY_TEST_MODELS") or Path.home() / ".cache" / "covey-tests")


async def ensure_model() -> Path:
    """Fetch the default model unless it is there, one process at a time."""
    folder = models_folder()
    target = folder / f"{DEFAULT_MODEL}.gguf"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        await trio.to_thread.run_sync(fcntl.flock, lock, fcntl.LOCK_EX)
        if not target.exists():
            config = EmbeddedConfig(default_model="", models=(DEFAULT_MODEL,))
            async with open_embedded(config, BackendParts(folder, Metrics())) as backend:

                async def nobody(progress: PullProgress) -> None: ...

                await backend.pull(DEFAULT_MODEL, nobody)
    return target


async def ensure_embedder() -> Path:
    """The same for the model that embeds; its folder."""
    folder = models_folder()
    entry = find(DEFAULT_EMBEDDER)
    assert isinstance(entry, Entry)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        await trio.to_thread.run_sync(fcntl.flock, lock, fcntl.LOCK_EX)
        if not (folder / entry.file_name).exists():
            async with open_embedder(EmbedderConfig(), BackendParts(folder, Metrics())) as backend:

                async def nobody(progress: PullProgress) -> None: ...

                await backend.pull(DEFAULT_EMBEDDER, nobody)
    return folder


@dataclass
class World:
    """A back end with one model, and a look at the engine behind it."""

    backend: Backend
    model: str
    busy: Callable[[], Awaitable[bool]]
    kill: Callable[[], None] | None = None
    revive: Callable[[], Awaitable[None]] | None = None
    batch_tokens: int = 64
    """Of a prompt, evaluated in one step."""
    exact: bool = True
    """Tells usage and the reason of the end exactly (the Ollama proxy guesses)."""

    def request(self, text: str = "Say hello.", max_tokens: int | None = 24, stop: tuple[str, ...] = ()) -> ChatRequest:
        system = Message("system", "You are a helpful assistant.")
        return ChatRequest(
            self.model, (system, Message("user", text)), max_tokens, stop, Sampling(temperature=0.0, seed=1)
        )

    async def embed(self, request: EmbedRequest) -> list[tuple[float, ...]]:
        """The vectors."""
        vectors: list[tuple[float, ...]] = []

        async def take(some: Embeddings) -> None:
            vectors.extend(struct.unpack(f"<{len(one) // 4}f", one) for one in some.vectors)

        await self.backend.embed(request, take)
        return vectors

    async def ask(self, request: ChatRequest) -> "Answer":
        answer = Answer()
        await self.backend.generate(request, answer.take)
        return answer


@dataclass
class Answer:
    deltas: list[ChatDelta] = field(default_factory=list)

    async def take(self, delta: ChatDelta) -> None:
        self.deltas.append(delta)

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def calls(self) -> list[ToolCall]:
        """The calls, put together from their pieces."""
        calls: dict[int, ToolCall] = {}
        for piece in (piece for delta in self.deltas for piece in delta.tool_calls):
            if piece.index not in calls:
                calls[piece.index] = ToolCall(piece.id, piece.name, piece.arguments)
            else:
                assert not piece.id
                assert not piece.name
                last = calls[piece.index]
                calls[piece.index] = ToolCall(last.id, last.name, last.arguments + piece.arguments)
        return [calls[index] for index in sorted(calls)]

    @property
    def logprobs(self) -> list[TokenLogprob]:
        return [one for delta in self.deltas for one in delta.logprobs]


@asynccontextmanager
async def process(command: list[str], **environment: str) -> AsyncGenerator[trio.Process, None]:
    started = await trio.lowlevel.open_process(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    try:
        yield started
    finally:
        with trio.CancelScope(shield=True):
            started.kill()
            await started.wait()
            assert started.stdin is not None
            assert started.stdout is not None
            await started.stdin.aclose()
            await started.stdout.aclose()


@asynccontextmanager
async def llama_server(
    model: Path, *arguments: str, **environment: str
) -> AsyncGenerator[tuple[str, trio.Process], None]:
    command = [sys.executable, str(SERVERS / "llama_server.py"), str(model), *(arguments or (DEFAULT_MODEL,))]
    # Passive: on a machine that other tests keep busy, spinning threads make the engine crawl.
    async with process(command, OMP_WAIT_POLICY="PASSIVE", **environment) as server:
        assert server.stdout is not None
        said = b""
        with trio.fail_after(60):
            while b"\n" not in said:
                data = await server.stdout.receive_some()
                assert data, "llama-server did not start"
                said += data
        yield json.loads(said)["url"], server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def slots_probe(base_url: str) -> Callable[[], Awaitable[bool]]:
    async def busy() -> bool:
        async with httpx.AsyncClient(base_url=base_url, trust_env=False) as client:
            return any(slot["is_processing"] for slot in (await client.get("/slots")).json())

    return busy


@asynccontextmanager
async def echo_world(model: Path) -> AsyncGenerator[World, None]:
    async with open_echo(EchoConfig(token_seconds=0.002), BackendParts(model.parent, Metrics())) as backend:
        assert isinstance(backend, EchoBackend)

        async def busy() -> bool:
            return backend.running > 0

        yield World(backend, "echo", busy)


@asynccontextmanager
async def embedded_world(model: Path) -> AsyncGenerator[World, None]:
    async with open_embedded(EmbeddedConfig(), BackendParts(model.parent, Metrics())) as backend:
        assert isinstance(backend, EmbeddedBackend)

        async def busy() -> bool:
            engine = backend.engines.find(DEFAULT_MODEL)
            assert engine is not None
            assert engine.child is not None
            return any(slot["is_processing"] for slot in (await engine.child.client.get("/slots")).json())

        def kill() -> None:
            engine = backend.engines.find(DEFAULT_MODEL)
            assert engine is not None
            assert engine.child is not None
            engine.child.process.kill()

        yield World(backend, DEFAULT_MODEL, busy, kill)


@asynccontextmanager
async def openai_world(model: Path) -> AsyncGenerator[World, None]:
    async with AsyncExitStack() as stack:
        url, server = await stack.enter_async_context(llama_server(model))
        upstream = Upstream(name="llama-server", base_url=f"{url}/v1", local=True, slots=2)
        parts = BackendParts(model.parent, Metrics())
        backend = await stack.enter_async_context(open_openai(OpenAiConfig((upstream,)), parts))
        await listed(backend)
        yield World(backend, DEFAULT_MODEL, slots_probe(url), server.kill)


@asynccontextmanager
async def ollama_world(model: Path) -> AsyncGenerator[World, None]:
    async with AsyncExitStack() as stack:
        url, server = await stack.enter_async_context(llama_server(model))
        port = free_port()
        name = f"engine/{DEFAULT_MODEL}"
        await stack.enter_async_context(
            process(
                [sys.executable, "-m", "ollama_proxy", "--host", "127.0.0.1", "--port", str(port)],
                PROVIDERS_ENGINE_BASE_URL=f"{url}/v1",
                PROVIDERS_ENGINE_API_KEY="none",
                EXTRA_MODELS=name,
            )
        )
        await reachable(port)
        config = OllamaConfig(f"http://127.0.0.1:{port}", refresh_seconds=0.2)
        backend = await stack.enter_async_context(open_ollama(config, BackendParts(model.parent, Metrics())))
        await listed(backend)
        # This proxy notices that somebody left only once it has something to tell them: after the whole prompt.
        yield World(backend, name, slots_probe(url), server.kill, batch_tokens=sys.maxsize, exact=False)


async def reachable(port: int) -> None:
    with trio.fail_after(30):
        while True:
            try:
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
            except OSError:
                await trio.sleep(0.05)
            else:
                return


async def listed(backend: Backend) -> None:
    """Until it knows what its server has: it opens without waiting for a server that is slow to say so."""
    with trio.fail_after(30):
        while not backend.models():  # noqa: ASYNC110  the back end asks its server in its own time
            await trio.sleep(0.05)


WORLDS = {"echo": echo_world, "embedded": embedded_world, "openai": openai_world, "ollama": ollama_world}


@asynccontextmanager
async def embedder_world(folder: Path) -> AsyncGenerator[World, None]:
    async with open_embedder(EmbedderConfig(), BackendParts(folder, Metrics())) as backend:
        assert isinstance(backend, EmbedderBackend)

        async def busy() -> bool:
            return backend.child is not None and backend.child.busy

        yield World(backend, DEFAULT_EMBEDDER, busy)


@asynccontextmanager
async def openai_embedding_world(model: Path) -> AsyncGenerator[World, None]:
    """llama-server with the chat model: its vectors are of little use, but real."""
    async with AsyncExitStack() as stack:
        url, server = await stack.enter_async_context(llama_server(model, LLAMA_EMBEDDING="1"))
        upstream = Upstream(name="llama-server", base_url=f"{url}/v1", local=True, slots=2, capabilities=("embed",))
        parts = BackendParts(model.parent, Metrics())
        backend = await stack.enter_async_context(open_openai(OpenAiConfig((upstream,)), parts))
        await listed(backend)
        yield World(backend, DEFAULT_MODEL, slots_probe(url), server.kill)


EMBEDDING_WORLDS = {"echo": echo_world, "embedder": embedder_world, "openai": openai_embedding_world}
