"""Every limit as a client meets it over HTTP: status, code, headers, and what comes after."""

import json
from typing import Any

import pytest
from gateway_harness import Gateway, chat_body, gateway, pause
from http_harness import Answer, eventually

from covey.bus.replies import Emit
from covey.contracts.auth import KeyLimits
from covey.contracts.inference import ChatDelta, ChatRequest

CHAT_PATH = "/v1/chat/completions"
THREE = "one two three"


def refused(answer: Answer, code: str, *, retry: bool) -> dict[str, Any]:
    """Check a 429; its error."""
    assert answer.status == 429, answer.body
    error: dict[str, Any] = json.loads(answer.body)["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", code)
    assert answer.headers["x-should-retry"] == ("true" if retry else "false")
    return error


async def spend(node: Gateway, **fields: Any) -> Answer:
    return await node.ask(CHAT_PATH, chat_body(THREE, **fields))


async def test_requests_a_minute() -> None:
    async with gateway() as node:
        node.key = node.auth.key(requests_per_minute=2)
        for left in ("1", "0"):
            answer = await spend(node)
            assert answer.status == 200
            assert answer.headers["x-ratelimit-limit-requests"] == "2"
            assert answer.headers["x-ratelimit-remaining-requests"] == left
        answer = await spend(node)
        refused(answer, "requests", retry=True)
        assert 0 < int(answer.headers["retry-after"]) <= 30
        assert int(answer.headers["retry-after-ms"]) <= 30_000
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert answer.headers["x-ratelimit-reset-requests"]


async def test_tokens_a_minute() -> None:
    async with gateway() as node:
        node.key = node.auth.key(tokens_per_minute=100)
        answer = await spend(node, max_tokens=10)
        assert answer.status == 200
        assert answer.headers["x-ratelimit-limit-tokens"] == "100"
        left = int(answer.headers["x-ratelimit-remaining-tokens"])
        assert 80 <= left < 100
        answer = await spend(node, max_tokens=95)
        refused(answer, "tokens", retry=True)
        assert 0 < int(answer.headers["retry-after"]) <= 60
        assert answer.headers["x-ratelimit-reset-tokens"]
        assert (await spend(node, max_tokens=20)).status == 200


async def test_a_request_larger_than_its_limit_is_not_worth_a_retry() -> None:
    async with gateway() as node:
        node.key = node.auth.key(tokens_per_minute=100)
        answer = await node.ask(CHAT_PATH, chat_body("word " * 200))
        refused(answer, "tokens", retry=False)
        assert "retry-after" not in answer.headers


async def test_an_answer_without_a_cap_gets_the_tokens_that_are_left() -> None:
    async with gateway() as node:
        node.key = node.auth.key(tokens_per_minute=60)
        answer = await node.ask(CHAT_PATH, chat_body(" ".join(["word"] * 40)))
        choice = json.loads(answer.body)["choices"][0]
        assert choice["finish_reason"] == "length"
        used = json.loads(answer.body)["usage"]["total_tokens"]
        assert 40 < used <= 60


async def test_requests_at_once() -> None:
    async def stays(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await emit(ChatDelta("x", tokens=1))
        await pause()

    async with gateway() as node:
        node.inference.script = stays
        node.key = node.auth.key(concurrency=1)
        async with node.asking(chat_body(model="scripted", stream=True)) as client:
            await client.until(b'"x"')
            refused(await spend(node), "concurrency", retry=True)
        await eventually(lambda: node.inference.running == 0)
        assert (await spend(node)).status == 200


@pytest.mark.parametrize("budget", ["tokens_per_day", "tokens_per_month"])
async def test_a_spent_budget(budget: str) -> None:
    async with gateway() as node:
        node.key = node.auth.key(**{budget: 60})
        answer = await node.ask(CHAT_PATH, chat_body(" ".join(["word"] * 40)))
        assert json.loads(answer.body)["choices"][0]["finish_reason"] == "length"  # what is left caps the answer
        used = json.loads(answer.body)["usage"]["total_tokens"]
        while (answer := await spend(node)).status == 200:
            used += json.loads(answer.body)["usage"]["total_tokens"]
            assert used <= 60
        error = refused(answer, "insufficient_quota", retry=False)
        assert "tokens" in error["message"]


async def test_a_persons_limits_hold_beside_the_keys() -> None:
    async with gateway() as node:
        node.key = node.auth.key(requests_per_minute=100, owner_limits=KeyLimits(requests_per_minute=1))
        other = node.auth.key(owner_limits=KeyLimits(requests_per_minute=1))
        answer = await spend(node)
        assert answer.headers["x-ratelimit-limit-requests"] == "1"  # the tightest
        refused(await spend(node), "requests", retry=True)
        node.key = other  # of the same person
        refused(await spend(node), "requests", retry=True)


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/completions", {"model": "echo", "prompt": THREE}),
        ("/v1/responses", {"model": "echo", "input": THREE}),
        ("/v1/messages", {"model": "echo", "max_tokens": 9, "messages": [{"role": "user", "content": THREE}]}),
        ("/v1/embeddings", {"model": "echo", "input": THREE}),
        ("/api/chat", {"model": "echo", "messages": [{"role": "user", "content": THREE}]}),
        ("/api/generate", {"model": "echo", "prompt": THREE}),
        ("/api/embed", {"model": "echo", "input": THREE}),
        ("/api/embeddings", {"model": "echo", "prompt": THREE}),
    ],
)
async def test_no_path_goes_round_a_limit(route: str, body: dict[str, Any]) -> None:
    async with gateway() as node:
        node.key = node.auth.key(requests_per_minute=1, tokens_per_minute=1_000)
        answer = await node.ask(route, body)
        assert answer.status == 200
        for header in ("limit", "remaining", "reset"):
            assert answer.headers[f"x-ratelimit-{header}-requests"]
            assert answer.headers[f"x-ratelimit-{header}-tokens"]
        answer = await node.ask(route, body)
        assert answer.status == 429
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert answer.headers["x-should-retry"] == "true"
