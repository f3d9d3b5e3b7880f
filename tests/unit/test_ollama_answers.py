"""Ollama's answers out: its own client reads them as it would Ollama's."""

import json
import struct
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import httpx
import ollama as sdk
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.contracts.gateway import ModelSummary
from covey.contracts.inference import Alternative, ChatDelta, TokenLogprob, ToolCallDelta, Usage
from covey.dialects import ollama
from covey.dialects.base import ChatCall, Gathered, Head
from covey.dialects.ollama_writer import timestamp
from covey.errors import CallError

USAGE = Usage(30, 7, 10)
HI = [{"role": "user", "content": "hi"}]
PARSERS: dict[str, Callable[[bytes], ChatCall]] = {
    "/api/chat": ollama.parse_chat,
    "/api/generate": ollama.parse_generate,
}

Batches = Sequence[Sequence[ChatDelta]]


def ticking() -> Head:
    """It is asked for 0.25 s after the request, then 1 s after it."""
    ticks = iter((0.25, 1.0))
    return Head("abc", "m", 1_795_000_000.5, lambda: next(ticks))


def answered(call: ChatCall, batches: Batches, broken: CallError | None = None) -> bytes:
    writer, gathered = call.writer(ticking()), Gathered()
    streamed = [writer.begin()]
    for batch in batches:
        gathered.add(batch)
        if call.stream:
            streamed.append(writer.deltas(0, batch))
    answers = [gathered] if call.chats else []
    if not call.stream:
        return writer.whole(answers, USAGE)
    streamed.append(writer.end(answers, USAGE) if broken is None else writer.failed(broken))
    return ollama.PING.join(part for part in streamed if part)


def client(answer: Callable[[httpx.Request], httpx.Response]) -> sdk.Client:
    return sdk.Client("http://covey", transport=httpx.MockTransport(answer))


def serving(batches: Batches, broken: CallError | None = None) -> sdk.Client:
    """A client whose service answers with these deltas."""

    def answer(request: httpx.Request) -> httpx.Response:
        call = PARSERS[request.url.path](request.read())
        return httpx.Response(200, content=answered(call, batches, broken))

    return client(answer)


def saying(body: bytes) -> sdk.Client:
    return client(lambda _: httpx.Response(200, content=body))


def joined(chunks: Iterable[sdk.ChatResponse]) -> tuple[str, str, list[Any], sdk.ChatResponse]:
    """What a stream's lines say together, and the last one."""
    every = list(chunks)
    assert [chunk.done for chunk in every] == [False] * (len(every) - 1) + [True]
    return (
        "".join(chunk.message.content or "" for chunk in every),
        "".join(chunk.message.thinking or "" for chunk in every),
        [call for chunk in every for call in chunk.message.tool_calls or ()],
        every[-1],
    )


TEXT = [[ChatDelta("Hel", 1), ChatDelta("lo", 1)], [ChatDelta(" you", 1)], [ChatDelta(finish="stop")]]
THOUGHT = [[ChatDelta(reasoning="Hm", tokens=1), ChatDelta("yes", 1, reasoning="m.")], [ChatDelta(finish="stop")]]


def test_a_chat() -> None:
    service = serving(TEXT)
    whole = service.chat("m", HI)
    text, _, _, last = joined(service.chat("m", HI, stream=True))
    assert whole.message.content == text == "Hello you"
    for answer in (whole, last):
        assert (answer.model, answer.done_reason, answer.created_at) == ("m", "stop", "2026-11-18T11:06:40.500000000Z")
        assert (answer.prompt_eval_count, answer.eval_count) == (30, 7)
        assert answer.message.role == "assistant"
    assert (last.total_duration, last.prompt_eval_duration, last.eval_duration) == (10**9, 250_000_000, 750_000_000)
    assert (whole.total_duration, whole.prompt_eval_duration, whole.eval_duration) == (250_000_000, 0, 250_000_000)


def test_a_completion() -> None:
    service = serving(TEXT)
    chunks = list(service.generate("m", "hi", stream=True))
    assert service.generate("m", "hi").response == "".join(chunk.response or "" for chunk in chunks) == "Hello you"
    assert chunks[-1].done_reason == "stop"
    assert service.generate("m", "hi").thinking is None


def test_one_line_for_a_batch_of_text() -> None:
    call = ollama.parse_chat(json.dumps({"model": "m", "messages": HI}).encode())
    writer = call.writer(Head("abc", "m", 0))
    lines = writer.deltas(0, TEXT[0])
    assert lines == (
        b'{"model":"m","created_at":"1970-01-01T00:00:00.000000000Z",'
        b'"message":{"role":"assistant","content":"Hello"},"done":false}\n'
    )
    assert writer.deltas(0, TEXT[2]) == b""


@pytest.mark.parametrize(
    ("last", "reason"),
    [(ChatDelta(finish="length"), "length"), (ChatDelta(finish="tool_calls"), "stop")],
)
def test_why_it_ended(last: ChatDelta, reason: str) -> None:
    assert serving([[last]]).chat("m", HI).done_reason == reason


@pytest.mark.parametrize("think", [None, True, "high"])
def test_what_is_thought(think: Any) -> None:
    service = serving(THOUGHT)
    whole = service.chat("m", HI, think=think)
    text, thinking, _, _ = joined(service.chat("m", HI, think=think, stream=True))
    assert (whole.message.content, whole.message.thinking) == (text, thinking) == ("yes", "Hmm.")
    assert service.generate("m", "hi", think=think).thinking == "Hmm."


def test_what_is_thought_is_left_out_where_the_client_says_so() -> None:
    service = serving(THOUGHT)
    assert service.chat("m", HI, think=False).message.thinking is None
    assert joined(service.chat("m", HI, think=False, stream=True))[:2] == ("yes", "")


def test_calls_come_whole() -> None:
    def piece(index: int, arguments: str, name: str = "", call_id: str = "") -> ChatDelta:
        return ChatDelta(tool_calls=(ToolCallDelta(index, call_id, name, arguments),))

    batches = [[piece(0, '{"a"', "one", "t"), piece(1, "x", "two"), piece(0, ":1}")], [ChatDelta(finish="tool_calls")]]
    service = serving(batches)
    whole = service.chat("m", HI)
    _, _, calls, last = joined(service.chat("m", HI, stream=True))
    for told in (whole.message.tool_calls or (), calls):
        assert [(call.function.name, call.function.arguments) for call in told] == [
            ("one", {"a": 1}),
            ("two", {"INVALID_JSON": "x"}),
        ]
    assert last.message.tool_calls is None
    sent = json.loads(
        answered(ollama.parse_chat(b'{"model":"m","messages":[{"role":"user"}],"stream":false}'), batches)
    )
    assert [call.get("id") for call in sent["message"]["tool_calls"]] == ["t", None]


def test_probabilities() -> None:
    token = TokenLogprob("é", -0.5, top=(Alternative("e", float("-inf")),))
    batches = [[ChatDelta("é", logprobs=(token,)), ChatDelta("!")], [ChatDelta(finish="stop")]]
    service = serving(batches)
    whole = service.chat("m", HI, logprobs=True, top_logprobs=1)
    lines = list(service.chat("m", HI, logprobs=True, top_logprobs=1, stream=True))
    for told in (whole.logprobs, lines[0].logprobs):
        assert told is not None
        assert (told[0].token, told[0].logprob) == ("é", -0.5)
        assert told[0].top_logprobs is not None
        assert told[0].top_logprobs[0].logprob == -9999
    assert service.chat("m", HI).logprobs is None
    assert all(line.logprobs is None for line in service.chat("m", HI, stream=True))


def test_a_model_that_is_only_to_be_ready() -> None:
    service = serving([])
    assert service.generate("m").done_reason == service.chat("m").done_reason == "load"
    (line,) = service.generate("m", stream=True)
    assert (line.done, line.done_reason, line.response) == (True, "load", "")


def test_a_stream_that_breaks_raises_and_is_never_done() -> None:
    broken = CallError("peer_lost", "The machine went away.")
    call = ollama.parse_chat(json.dumps({"model": "m", "messages": HI}).encode())
    lines = answered(call, TEXT[:1], broken).splitlines()
    assert json.loads(lines[-1]) == {"error": "The machine went away."}
    assert not any(json.loads(line).get("done") for line in lines)
    with pytest.raises(sdk.ResponseError, match="The machine went away"):
        list(serving(TEXT[:1], broken).chat("m", HI, stream=True))


def test_embeddings() -> None:
    vectors = [struct.pack("<2f", 1, -0.5), struct.pack("<2f", 0, 2)]
    call = ollama.parse_embed(b'{"model": "m", "input": ["a", "b"]}')
    answer = saying(call.render(ticking(), vectors, 5)).embed("m", ["a", "b"])
    assert [list(one) for one in answer.embeddings] == [[1, -0.5], [0, 2]]
    assert (answer.model, answer.prompt_eval_count, answer.total_duration) == ("m", 5, 250_000_000)
    older = ollama.parse_embeddings(b'{"model": "m", "prompt": "a"}')
    assert list(saying(older.render(ticking(), vectors[:1], 5)).embeddings("m", "a").embedding) == [1, -0.5]


MODELS = [
    ModelSummary(
        "here", "loaded", ("chat", "completion", "tools", "vision", "json"), ("a",), 4096, created_at=1_795_000_000
    ),
    ModelSummary("there", "remote", ("embed", "dance"), ("b",)),
    ModelSummary("asleep", "on_disk", ("chat",), ("a",), created_at=-5),
]


def test_models() -> None:
    listed = saying(ollama.tags(MODELS)).list().models
    assert [model.model for model in listed] == ["here", "there", "asleep"]
    assert listed[0].modified_at == datetime.fromtimestamp(1_795_000_000, UTC)
    assert listed[0].details is not None
    assert listed[0].details.families == []
    assert json.loads(ollama.tags(MODELS))["models"][1]["capabilities"] == ["embedding"]


def test_running_models() -> None:
    models = saying(ollama.running(MODELS)).ps().models
    assert [(model.name, model.context_length) for model in models] == [("here", 4096), ("there", 0)]
    assert models[0].expires_at == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def test_one_model() -> None:
    shown = saying(ollama.shown(MODELS[0])).show("here")
    assert shown.capabilities == ["completion", "tools", "vision"]
    assert shown.modelinfo is not None
    architecture = shown.modelinfo["general.architecture"]
    assert shown.modelinfo[f"{architecture}.context_length"] == 4096
    assert "unknown.context_length" not in json.loads(ollama.shown(MODELS[1]))["model_info"]


def test_the_version_is_one_that_clients_can_compare() -> None:
    assert [int(part) for part in json.loads(ollama.version())["version"].split(".")] >= [0, 12, 11]


@given(st.floats())
def test_any_time_is_told_so_that_it_can_be_read(seconds: float) -> None:
    told = timestamp(seconds)
    assert len(told) == len("2026-11-18T11:06:40.500000000Z")
    datetime.fromisoformat(told)
