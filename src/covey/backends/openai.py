"""Models of OpenAI-compatible servers: OpenAI itself, vLLM, llama-server, LM Studio.

A key goes to the host it is configured for and nowhere else: no redirect is followed, no proxy or `.netrc` of the
environment is used.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import msgspec
import trio

from covey.backends.base import Backend, BackendParts, BackendPlugin, Report
from covey.backends.openai_server import Server
from covey.backends.openai_upstream import Upstream, open_server_client
from covey.bus.replies import Emit
from covey.contracts.inference import ChatDelta, ChatRequest, Embeddings, EmbedRequest, ModelStatus
from covey.errors import CallError

FIRST_SECONDS = 1.0
"""How long a node that starts waits for the models: a server that hangs must not keep it from starting."""


class OpenAiConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[backends.openai]`. `refresh_seconds`: how often each upstream is asked for its models."""

    upstreams: tuple[Upstream, ...] = ()
    refresh_seconds: float = 30.0


class OpenAiBackend:
    """See `Backend`; where two upstreams have the same model, the first configured answers."""

    name = "openai"

    def __init__(self, servers: list[Server]) -> None:
        self.servers = servers

    def models(self) -> tuple[ModelStatus, ...]:
        """See `Backend.models`."""
        found: dict[str, ModelStatus] = {}
        for server in self.servers:
            for status in server.statuses():
                found.setdefault(status.name, status)
        return tuple(found.values())

    async def generate(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        """See `Backend.generate`."""
        await self._server(request.model).generate(request, emit)

    async def embed(self, request: EmbedRequest, emit: Emit[Embeddings]) -> None:
        """See `Backend.embed`."""
        await self._server(request.model).embed(request, emit)

    def _server(self, model: str) -> Server:
        for server in self.servers:
            if server.has(model):
                return server
        raise CallError("not_found", f"No upstream has a model {model[:200]!r}.", reason="model_not_found")

    async def pull(self, model: str, report: Report) -> None:
        """What an upstream has is its own affair."""
        raise CallError("unsupported", f"An OpenAI-compatible server cannot be told to fetch {model[:200]!r}.")


@asynccontextmanager
async def open_openai(config: OpenAiConfig, parts: BackendParts) -> AsyncGenerator[Backend, None]:
    """Open the back end; each upstream is asked once before, if it answers soon, and then every `refresh_seconds`.

    Raises:
        CallError: `invalid`: an upstream's settings are unusable.
    """
    clients = [await trio.to_thread.run_sync(open_server_client, upstream) for upstream in config.upstreams]
    try:
        servers = [Server(upstream, client) for upstream, client in zip(config.upstreams, clients, strict=True)]
        async with trio.open_nursery() as nursery:
            for server in servers:
                up = parts.metrics.upstream_up.labels("openai", server.upstream.name)
                nursery.start_soon(_keep_fresh, server, config.refresh_seconds, up.set)
            with trio.move_on_after(FIRST_SECONDS):
                for server in servers:
                    await server.asked.wait()
            yield OpenAiBackend(servers)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            for client in clients:
                await client.aclose()


async def _keep_fresh(server: Server, seconds: float, told: Callable[[float], None]) -> None:
    while True:
        await server.refresh()
        told(float(server.is_up))
        server.asked.set()
        await trio.sleep(seconds)


BACKEND = BackendPlugin("openai", OpenAiConfig, open_openai)
