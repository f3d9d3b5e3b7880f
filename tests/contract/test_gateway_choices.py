"""Several answers to one request, what a model cannot do, and how long is long enough."""

import json
from typing import Any

import pytest
import trio
from gateway_harness import Gateway, chat_body, gateway, pause
from http_harness import Answer, eventually

from covey.bus.replies import Emit
from covey.contracts.inference import ChatDelta, ChatRequest, Usage
from covey.dialects.openai_chat_writer import ChatWriter
from covey.errors import CallError
from covey.roles.gateway.answers import CHOICES_AT_ONCE
from covey.roles.gateway.patience import Timeouts

CHAT_PATH = "/v1/chat/completions"


def body_of(answer: Answer) -> Any:
    return json.loads(answer.body)


def chunks_of(answer: Answer) -> list[Any]:
    events = answer.body.decode().split("\n\n")
    return [json.loads(one.removeprefix("data: ")) for one in events if one.startswith("data: {")]


async def by_seed(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
    """Says its seed, twice; seed 2 fails in the middle."""
    await emit(ChatDelta(f"seed {request.sampling.seed}", tokens=2))
    if request.sampling.seed == 2:
        raise CallError("upstream", "The engine has died.")
    await emit(ChatDelta(" again", tokens=1))
    await emit(ChatDelta(finish="stop", usage=Usage(5, 3, 1)))


@pytest.mark.parametrize("stream", [False, True])
async def test_each_choice_is_an_answer_of_its_own(*, stream: bool) -> None:
    async with gateway() as node:
        node.inference.script = by_seed
        options = {"stream_options": {"include_usage": True}} if stream else {}
        body = chat_body(model="scripted", n=3, seed=10, stream=stream, **options)
        answer = await node.ask(CHAT_PATH, body)
        assert answer.status == 200
        if stream:
            texts = ["", "", ""]
            for chunk in chunks_of(answer):
                for choice in chunk["choices"]:
                    texts[choice["index"]] += choice["delta"].get("content") or ""
            usage = chunks_of(answer)[-1]["usage"]
            assert answer.body.endswith(b"data: [DONE]\n\n")
        else:
            choices = body_of(answer)["choices"]
            assert [one["index"] for one in choices] == [0, 1, 2]
            texts = [one["message"]["content"] for one in choices]
            usage = body_of(answer)["usage"]
        assert texts == ["seed 10 again", "seed 11 again", "seed 12 again"]
        # They share their prompt: it counts once, as with OpenAI.
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 9)
        assert node.sample("covey_generation_tokens_total", model="scripted") == 9


@pytest.mark.parametrize("stream", [False, True])
async def test_one_that_fails_fails_them_all_and_stops_the_others(*, stream: bool) -> None:
    async def slow(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await (by_seed(request, emit) if request.sampling.seed == 2 else pause())

    async with gateway() as node:
        node.inference.script = slow
        answer = await node.ask(CHAT_PATH, chat_body(model="scripted", n=3, seed=0, stream=stream))
        assert b"The engine has died." in answer.body
        assert b"[DONE]" not in answer.body
        assert answer.status == (200 if stream else 502)
        await eventually(lambda: node.inference.running == 0)


async def test_so_many_choices_are_under_way_at_once_and_no_more() -> None:
    most = 0

    async def watched(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        nonlocal most
        most = max(most, node.inference.running)
        await trio.sleep(0.01)
        await emit(ChatDelta("x", tokens=1))
        await emit(ChatDelta(finish="stop", usage=Usage(1, 1)))

    async with gateway() as node:
        node.inference.script = watched
        answer = await node.ask(CHAT_PATH, chat_body(model="scripted", n=3 * CHOICES_AT_ONCE))
        assert len(body_of(answer)["choices"]) == 3 * CHOICES_AT_ONCE
    assert most == CHOICES_AT_ONCE


async def test_the_client_leaves_and_every_choice_stops() -> None:
    async def endless(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        while True:
            await emit(ChatDelta("x", tokens=1))
            await trio.sleep(0.01)

    async with gateway() as node:
        node.inference.script = endless
        async with node.asking(chat_body(model="scripted", n=4, stream=True)) as client:
            await client.until(b'"content":"x"')
            assert node.inference.running == 4
        await eventually(lambda: node.inference.running == 0)
        labels = {"route": CHAT_PATH, "model": "scripted", "outcome": "cancelled"}
        await eventually(lambda: node.sample("covey_requests_total", **labels) == 1)


async def test_a_choice_that_waits_for_its_turn_has_as_much_patience_as_the_first() -> None:
    """Mutation: count the first token's time from the request."""

    async def slow(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await emit(ChatDelta("x", tokens=1))
        await trio.sleep(0.6)
        await emit(ChatDelta(finish="stop", usage=Usage(1, 1)))

    async with gateway(timeouts=(Timeouts(("scripted",), first_token_seconds=1.0),)) as node:
        node.inference.script = slow
        answer = await node.ask(CHAT_PATH, chat_body(model="scripted", n=3 * CHOICES_AT_ONCE))
        assert answer.status == 200, answer.body


# What a model cannot do


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}
                ]
            },
            "messages[0].content[0]",
        ),
    ],
)
async def test_what_a_model_cannot_do_is_refused_by_field_and_model(fields: dict[str, Any], param: str) -> None:
    if "messages" in fields:
        fields["messages"][0]["content"][0]["image_url"]["url"] += "iVBORw0KGgo="
    async with gateway() as node:
        answer = await node.ask(CHAT_PATH, {**chat_body(model="scripted"), **fields})
        error = body_of(answer)["error"]
        assert (answer.status, error["code"]) == (400, "unsupported_value")
        assert error["param"].startswith(param)
        assert "'scripted'" in error["message"]
        assert node.inference.requests == []


# How long is long enough


async def quiet(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
    if request.messages[0].content == "one":
        await emit(ChatDelta("one", tokens=1))
    if request.messages[0].content == "many":
        while True:
            await emit(ChatDelta("x", tokens=1))
            await trio.sleep(0.02)
    await pause()


@pytest.mark.parametrize(
    ("says", "seconds", "message"),
    [
        ("nothing", {"first_token_seconds": 0.1}, "no token within 0.1 s"),
        ("one", {"idle_seconds": 0.1}, "fell silent for 0.1 s"),
        ("many", {"total_seconds": 0.2}, "did not answer within"),
    ],
)
async def test_a_models_own_limits_of_time(says: str, seconds: dict[str, float], message: str) -> None:
    tables = (Timeouts(("other",), 0.0, 0.0, 0.0), Timeouts(("script*",), **seconds))
    async with gateway(timeouts=tables) as node:
        node.inference.script = quiet
        answer = await node.ask(CHAT_PATH, chat_body(says, model="scripted"))
        assert answer.status == 504
        error = body_of(answer)["error"]
        assert (error["type"], error["code"]) == ("timeout", "timeout")
        assert message in error["message"]
        answer = await node.ask(CHAT_PATH, chat_body(says, model="scripted", stream=True))
        assert message.encode() in answer.body
        assert b"[DONE]" not in answer.body
        await eventually(lambda: node.inference.running == 0)


async def test_pings_do_not_put_off_the_end_of_patience() -> None:
    tables = (Timeouts(("scripted",), idle_seconds=0.2),)
    async with gateway(timeouts=tables, ping_seconds=0.03) as node:
        node.inference.script = quiet
        answer = await node.ask(CHAT_PATH, chat_body("one", model="scripted", stream=True))
        assert answer.body.count(b": ping") >= 3
        assert b"fell silent for 0.2 s" in answer.body


# What a key may


async def test_a_key_for_some_paths_is_refused_on_the_others() -> None:
    async with gateway() as node:
        node.key = node.auth.key(routes=("/v1/models*", "/v1/embeddings"))
        assert (await node.ask("/v1/models")).status == 200
        answer = await node.ask(CHAT_PATH, chat_body())
        assert answer.status == 403
        error = body_of(answer)["error"]
        assert (error["type"], error["code"]) == ("permission_error", "route_not_allowed")


async def test_a_body_that_cannot_be_read_counts_and_tells_the_limits() -> None:
    async with gateway() as node:
        node.key = node.auth.key(requests_per_minute=2)
        for left in ("1", "0"):
            answer = await node.ask(CHAT_PATH, b"{")
            assert answer.status == 400
            assert answer.headers["x-ratelimit-remaining-requests"] == left
        assert (await node.ask(CHAT_PATH, chat_body())).status == 429


@pytest.mark.parametrize("said", [False, True])
async def test_who_answered_is_said_only_where_configured(*, said: bool) -> None:
    async with gateway(node_header=said) as node:
        for stream in (False, True):
            answer = await node.ask(CHAT_PATH, chat_body(stream=stream))
            assert answer.headers.get("x-covey-node") == (node.bus.name_of(node.bus.me) if said else None)


async def test_many_streams_at_once_lose_nothing() -> None:
    """Each pauses between its writes then, so that tokens share them: `bench streams` says what that saves."""
    said = " ".join(f"w{number}" for number in range(200))
    answers: list[Answer] = []

    async def stream(node: Gateway) -> None:
        answers.append(await node.ask(CHAT_PATH, chat_body(said, stream=True)))

    async with gateway() as node:
        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(stream, node)
        assert len(answers) == 40
        for answer in answers:
            assert answer.body.endswith(b"data: [DONE]\n\n")
            pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks_of(answer)]
            assert "".join(pieces) == said


async def test_all_bodies_together_have_a_bound() -> None:
    async with gateway(bodies_bytes_max=10_000) as node:
        node.inference.script = quiet
        async with node.asking(chat_body("one", model="scripted", stream=True, user="x" * 6_000)) as client:
            await client.until(b"one")  # its body is held until it ends
            answer = await node.ask(CHAT_PATH, chat_body("y" * 6_000))
            assert (answer.status, body_of(answer)["error"]["code"]) == (503, "no_capacity")
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["x-should-retry"] == "true"
            assert (await node.ask(CHAT_PATH, chat_body("small"))).status == 200
        await eventually(lambda: node.inference.running == 0)
        for _ in range(3):  # given back, by those that were refused too
            assert (await node.ask(CHAT_PATH, chat_body("y" * 6_000))).status == 200


async def test_a_bug_is_not_written_down_as_a_client_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> bytes:
        raise RuntimeError("a bug")

    monkeypatch.setattr(ChatWriter, "whole", broken)
    async with gateway() as node:
        answer = await node.ask(CHAT_PATH, chat_body())
        assert (answer.status, body_of(answer)["error"]["code"]) == (500, "internal_error")
        assert node.sample("covey_requests_total", route=CHAT_PATH, model="echo", outcome="internal") == 1
        assert node.sample("covey_requests_total", route=CHAT_PATH, model="echo", outcome="cancelled") == 0
