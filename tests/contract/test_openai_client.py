"""OpenAI's own client against the gateway: it must not be able to tell."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
import trio
from gateway_harness import Gateway, gateway
from openai import AsyncOpenAI, OpenAI

from covey.bus.replies import Emit
from covey.contracts.inference import ChatDelta, ChatRequest, Usage
from covey.errors import CallError

ASK: Any = {"model": "echo", "messages": [{"role": "user", "content": "one two €"}]}


@asynccontextmanager
async def client_of(node: Gateway, **options: Any) -> AsyncGenerator[OpenAI, None]:
    options = {"api_key": node.key, "max_retries": 0, "timeout": 10, **options}
    with OpenAI(base_url=f"{node.served.url}/v1", **options) as client:
        yield client


async def in_thread(ask: Callable[[], Any]) -> Any:
    with trio.fail_after(15):
        return await trio.to_thread.run_sync(ask, abandon_on_cancel=True)


async def test_a_chat() -> None:
    async with gateway() as node, client_of(node) as client:
        answer = await in_thread(lambda: client.chat.completions.create(**ASK))
        assert answer.choices[0].message.content == "one two €"
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.total_tokens == 6
        assert answer._request_id


async def test_a_stream_with_its_usage() -> None:
    def ask() -> list[Any]:
        return list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))

    async with gateway() as node, client_of(node) as client:
        *chunks, last = await in_thread(ask)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "one two €"
        assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
        assert all(chunk.usage is None for chunk in chunks)
        assert last.choices == []
        assert last.usage.completion_tokens == 3
        assert len({chunk.id for chunk in [*chunks, last]}) == 1


async def test_the_helper_that_gathers_a_stream() -> None:
    def ask() -> Any:
        with client.chat.completions.stream(**ASK) as stream:
            return stream.get_final_completion()

    async with gateway() as node, client_of(node) as client:
        final = await in_thread(ask)
        assert final.choices[0].message.content == "one two €"


async def test_the_asyncio_client() -> None:
    async def ask(url: str, key: str) -> tuple[str, str]:
        async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
            whole = await client.chat.completions.create(**ASK)
            pieces = [chunk async for chunk in await client.chat.completions.create(**ASK, stream=True)]
        return whole.choices[0].message.content or "", "".join(p.choices[0].delta.content or "" for p in pieces)

    async with gateway() as node:
        url, key = f"{node.served.url}/v1", node.key
        assert await in_thread(lambda: asyncio.run(ask(url, key))) == ("one two €", "one two €")


async def test_models() -> None:
    async with gateway() as node, client_of(node) as client:
        assert [model.id for model in await in_thread(lambda: client.models.list())] == ["echo", "scripted"]
        assert (await in_thread(lambda: client.models.retrieve("echo"))).owned_by == "covey"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (CallError("invalid", "x", param="y"), openai.BadRequestError),
        (CallError("forbidden", "x"), openai.PermissionDeniedError),
        (CallError("conflict", "x"), openai.ConflictError),
        (CallError("rate_limited", "x"), openai.RateLimitError),
        (CallError("upstream", "x"), openai.InternalServerError),
        (CallError("loading", "x"), openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_failures_before_the_first_token(error: CallError, kind: type[openai.APIError], *, stream: bool) -> None:
    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        raise error

    async with gateway() as node, client_of(node) as client:
        node.inference.script = script
        with pytest.raises(kind) as caught:
            await in_thread(lambda: client.chat.completions.create(**{**ASK, "model": "scripted"}, stream=stream))
        assert caught.value.body["message"] == "x"  # type: ignore[index]
        assert caught.value.param == (error.param or None)


async def test_refusals_of_the_gateway_itself() -> None:
    async with gateway() as node:
        async with client_of(node, api_key="sk-wrong") as client:
            with pytest.raises(openai.AuthenticationError) as refused:
                await in_thread(lambda: client.models.list())
            assert refused.value.code == "invalid_api_key"
        async with client_of(node, api_key=node.auth.key(models=("scripted",))) as client:
            with pytest.raises(openai.PermissionDeniedError) as forbidden:
                await in_thread(lambda: client.chat.completions.create(**ASK))
            assert forbidden.value.code == "model_not_allowed"
        async with client_of(node) as client:
            with pytest.raises(openai.NotFoundError) as missing:
                await in_thread(lambda: client.chat.completions.create(**{**ASK, "model": "gpt-4o"}))
            assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
            with pytest.raises(openai.BadRequestError) as bad:
                await in_thread(lambda: client.chat.completions.create(**ASK, temperature=7))
            assert bad.value.param == "temperature"
            with pytest.raises(openai.NotFoundError):
                await in_thread(lambda: client.files.list())


async def test_a_failure_in_the_middle_is_raised() -> None:
    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await emit(ChatDelta("half", tokens=1))
        await trio.sleep(0.05)
        raise CallError("peer_lost", "The node went away.")

    heard: list[str] = []

    def ask() -> None:
        for chunk in client.chat.completions.create(**{**ASK, "model": "scripted"}, stream=True):
            heard.append(chunk.choices[0].delta.content or "")

    async with gateway() as node, client_of(node) as client:
        node.inference.script = script
        with pytest.raises(openai.APIError, match="The node went away") as caught:
            await in_thread(ask)
        assert caught.value.code == "upstream_lost"
        assert heard == ["", "half"]


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (CallError("loading", "x", retry_after_seconds=0.7), 2),
        (CallError("no_capacity", "x", retry_after_seconds=0.7), 2),
        (CallError("rate_limited", "x", retry_after_seconds=0.7), 2),
        (CallError("upstream", "x"), 1),
        (CallError("internal", "x"), 1),
    ],
)
async def test_retries_come_when_they_may_succeed(error: CallError, tries: int) -> None:
    times: list[float] = []

    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        times.append(time.monotonic())
        if len(times) < 2:
            raise error
        await emit(ChatDelta("at last", tokens=2))
        await emit(ChatDelta(finish="stop", usage=Usage(1, 2)))

    async with gateway() as node, client_of(node, max_retries=2) as client:
        node.inference.script = script
        ask = {**ASK, "model": "scripted"}
        if tries == 2:
            answer = await in_thread(lambda: client.chat.completions.create(**ask))
            assert answer.choices[0].message.content == "at last"
            assert times[1] - times[0] >= 0.7  # of its own accord it would wait half a second at most
        else:
            with pytest.raises(openai.InternalServerError):
                await in_thread(lambda: client.chat.completions.create(**ask))
        assert len(times) == tries


async def test_a_stream_that_is_closed_early_stops_the_engine() -> None:
    stopped = trio.Event()

    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        try:
            while True:
                await emit(ChatDelta("x", tokens=1))
                await trio.sleep(0.01)
        finally:
            stopped.set()

    def ask() -> None:
        with client.chat.completions.create(**{**ASK, "model": "scripted"}, stream=True) as stream:
            for _ in range(3):
                next(stream)

    async with gateway() as node, client_of(node) as client:
        node.inference.script = script
        await in_thread(ask)
        with trio.fail_after(1):
            await stopped.wait()
