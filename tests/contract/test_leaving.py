"""A client that goes away, in every dialect, near and far: the engine stops, and what was delivered is accounted."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from gateway_harness import Gateway, chat_body, gateway
from http_harness import eventually

from covey.backends.echo import EchoBackend, EchoConfig
from covey.transport.memory import LinkQuality, MemoryNetwork

WORDS = " ".join(f"word{number}" for number in range(5_000))
MESSAGES = [{"role": "user", "content": WORDS}]
ASKS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": chat_body(WORDS),
    "/v1/completions": {"model": "echo", "prompt": WORDS, "max_tokens": 10_000},
    "/v1/responses": {"model": "echo", "input": WORDS},
    "/v1/messages": {"model": "echo", "max_tokens": 10_000, "messages": MESSAGES},
    "/api/chat": {"model": "echo", "messages": MESSAGES},
    "/api/generate": {"model": "echo", "prompt": WORDS},
}
A_WHILE = {"near": 40, "far": 200}
"""Tokens until the client has had enough. The far engine's take 50 ms to the gateway, or more on a busy machine."""


@asynccontextmanager
async def paced(far: MemoryNetwork | None) -> AsyncGenerator[Gateway, None]:
    """A gateway whose model takes 2 ms for each token: ten seconds in all."""
    async with gateway(far=far) as node:
        node.inference.echo = EchoBackend(EchoConfig(token_seconds=0.002, context_tokens=100_000))
        yield node


@pytest.mark.parametrize("place", ["near", "far"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("route", ASKS)
async def test_the_engine_stops_with_its_client(route: str, place: str, *, stream: bool) -> None:
    far = MemoryNetwork(quality=LinkQuality(delay_seconds=0.05)) if place == "far" else None
    async with paced(far) as node:
        async with node.served.client() as client:
            await client.send(node.request(route, {**ASKS[route], "stream": stream}))
            await eventually(lambda: node.inference.echo.produced >= A_WHILE[place])
        await eventually(lambda: not node.inference.running, 2.0)  # python -m bench leaving tells how long it takes
        produced = node.inference.echo.produced
        assert produced < 2_500
        await eventually(
            lambda: node.sample("covey_requests_total", route=route, model="echo", outcome="cancelled") == 1
        )
        billed = node.sample("covey_generation_tokens_total", model="echo")
        assert 0 < billed <= produced
        if place == "near" and not stream:
            assert billed >= A_WHILE[place] - 2
        assert node.sample("covey_prompt_tokens_total", model="echo") > 0


@pytest.mark.parametrize("route", ["/v1/embeddings", "/api/embed"])
async def test_embedding_stops_too(route: str) -> None:
    async with paced(None) as node:
        async with node.served.client() as client:
            await client.send(node.request(route, {"model": "echo", "input": ["a b c"] * 2_000}))
            await eventually(lambda: node.inference.running == 1)
        await eventually(lambda: not node.inference.running, 2.0)
