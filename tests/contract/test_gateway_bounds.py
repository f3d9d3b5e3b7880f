"""What one request may cost at most, whoever sends it and whoever answers: tokens, memory, and tries."""

import json
from typing import Any

import pytest
import trio
from gateway_harness import Gateway, LimitOwner, chat_body, gateway, pause
from http_harness import eventually
from msgspec.structs import replace

from covey.backends.echo import EchoBackend
from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.contracts.auth import Actor
from covey.contracts.gateway import COMPLETE, Completion
from covey.contracts.inference import ChatDelta, ChatRequest, Embeddings, EmbedRequest, Message, Prompt, Usage
from covey.contracts.limits import LeaseLimits, LimitsLeased
from covey.errors import CallError

CHAT_PATH = "/v1/chat/completions"


async def test_an_owner_in_this_process_that_refuses_is_not_asked_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def refuse(self: LimitOwner, caller: Caller, request: LeaseLimits) -> LimitsLeased:
        nonlocal asked
        asked += bool(request.reports)
        raise CallError("storage", "The disk is full.")

    monkeypatch.setattr(LimitOwner, "lease", refuse)
    async with gateway() as node:
        node.key = node.auth.key(requests_per_minute=10)
        answer = await node.ask(CHAT_PATH, chat_body())
        assert answer.status == 429
    assert 1 <= asked < 10


async def test_a_model_is_made_ready_for_a_key_with_a_limit_of_tokens() -> None:
    """Ollama's empty request asks for no answer at all. Mutation: share the tokens between none."""
    async with gateway() as node:
        node.key = node.auth.key(tokens_per_minute=100)
        answer = await node.ask("/api/generate", {"model": "echo", "stream": False})
        assert answer.status == 200, answer.body
        assert json.loads(answer.body)["done_reason"] == "load"


async def test_many_answers_to_one_request_stay_within_what_is_reserved() -> None:
    """Mutation: reserve one token for all of them, and give each one."""
    async with gateway() as node:
        node.key = node.auth.key(tokens_per_minute=50)
        assert (await node.ask(CHAT_PATH, chat_body(n=100))).status == 429
        assert (await node.ask(CHAT_PATH, chat_body(n=10))).status == 200
        assert {one.max_tokens for one in node.inference.requests} == {4}


@pytest.mark.parametrize("code", ["no_capacity", "invalid", "upstream"])
async def test_what_a_node_refuses_is_not_charged(code: Any) -> None:
    """Mutation: charge the guess at the prompt wherever a node was asked."""

    async def refuse(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        raise CallError(code, "No.")

    async with gateway() as node:
        node.inference.script = refuse
        answer = await node.ask(CHAT_PATH, chat_body("x" * 4_000, model="scripted"))
        assert answer.status >= 400
        assert node.sample("covey_prompt_tokens_total", model="scripted") == 0


async def test_who_leaves_before_the_first_token_is_charged_the_prompt() -> None:
    async def quiet(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await pause()

    async with gateway() as node:
        node.inference.script = quiet
        async with node.asking(chat_body("x" * 4_000, model="scripted")):
            await eventually(lambda: node.inference.running == 1)
        await eventually(lambda: node.sample("covey_prompt_tokens_total", model="scripted") > 900)


async def test_an_answer_without_end_is_ended() -> None:
    """Mutation: keep all of it, for as long as it comes."""

    async def endless(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        while True:
            await emit(ChatDelta("x" * 100_000, tokens=1))

    async with gateway() as node:
        node.inference.script = endless
        with trio.fail_after(30):
            answer = await node.ask(CHAT_PATH, chat_body(model="scripted"))
        assert answer.status == 502
        assert b"does not end" in answer.body


async def test_a_request_larger_than_the_limit_is_not_sent_again() -> None:
    """Mutation: tell when to try again. openai-python would wait that long, twice, for nothing."""
    async with gateway() as node:
        node.key = node.auth.key(tokens_per_minute=100)
        answer = await node.ask(CHAT_PATH, chat_body("x" * 4_000))
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (429, "tokens")
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers


async def complete(node: Gateway, key: str, chat: ChatRequest) -> list[ChatDelta]:
    request = Completion(Actor(key=key), chat)
    async with node.bus.stamped("web").stream(COMPLETE, request) as deltas:
        return [delta async for delta in deltas]


async def test_over_the_bus_no_answer_is_without_limit() -> None:
    """An engine takes -1 for no limit. Mutation: hand it on."""
    async with gateway() as node:
        key = node.auth.key(tokens_per_minute=100)
        chat = ChatRequest("echo", (Message("user", "one two three"),))
        assert await complete(node, key, chat)
        with pytest.raises(CallError, match="max_tokens"):
            await complete(node, key, replace(chat, max_tokens=-1))


async def test_over_the_bus_a_raw_prompt_has_its_own_route() -> None:
    async with gateway() as node:
        key = node.auth.key(routes=("/v1/chat/completions",))
        assert await complete(node, key, ChatRequest("echo", (Message("user", "one"),)))
        with pytest.raises(CallError, match="/v1/completions"):
            await complete(node, key, ChatRequest("echo", (), prompt=Prompt("one")))


@pytest.mark.parametrize(
    "deltas",
    [
        (ChatDelta("x", tokens=1), ChatDelta(finish="stop", usage=Usage(-5, 1))),
        (ChatDelta("x", tokens=1), ChatDelta(finish="stop", usage=Usage(5, 2**60))),
        (ChatDelta("x", tokens=-7), ChatDelta(finish="stop", usage=Usage(5, 1))),
        (ChatDelta("x", tokens=2**60),),
    ],
)
async def test_a_node_that_counts_the_impossible_is_not_believed(deltas: tuple[ChatDelta, ...]) -> None:
    """Mutation: put whatever it says in the books. What is below nothing breaks them, and an owner of limits refuses
    every report with the rest.
    """

    async def miscount(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        for delta in deltas:
            await emit(delta)

    async with gateway() as node:
        node.inference.script = miscount
        node.key = node.auth.key(tokens_per_minute=1000, tokens_per_day=1000)
        answer = await node.ask(CHAT_PATH, chat_body(model="scripted", max_tokens=9))
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (502, "upstream_failed")
        assert node.sample("covey_generation_tokens_total", model="scripted") < 2
        assert (await node.ask(CHAT_PATH, chat_body(max_tokens=9))).status == 200


async def test_a_node_that_counts_impossible_inputs_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def miscount(self: EchoBackend, request: EmbedRequest, emit: Emit[Embeddings]) -> None:
        await emit(Embeddings((bytes(4),), -5))

    monkeypatch.setattr(EchoBackend, "embed", miscount)
    async with gateway() as node:
        answer = await node.ask("/v1/embeddings", {"model": "echo", "input": "x"})
        assert answer.status == 502


@pytest.mark.parametrize("limits", [{"tokens_per_minute": 1000}, {"tokens_per_day": 1000}])
@pytest.mark.parametrize("fields", [{}, {"max_tokens": 900}])
async def test_what_an_answer_did_not_use_is_there_for_the_next(limits: dict[str, int], fields: dict[str, int]) -> None:
    """Mutation: ask the owner for all that a request takes, beside what is already held."""
    async with gateway() as node:
        node.key = node.auth.key(**limits)
        for _ in range(5):
            answer = await node.ask(CHAT_PATH, {**chat_body(), **fields})
            assert answer.status == 200, answer.body
