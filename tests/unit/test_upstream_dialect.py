"""The OpenAI dialect as a client speaks it, and the event stream under it: pure."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.backends.completion_requests import SYSTEM_PROMPT, chat_body
from covey.backends.completions import AnswerReader
from covey.backends.refusals import refusal
from covey.backends.sse_client import EVENT_BYTES_MAX, EventReader
from covey.contracts.inference import ChatDelta, ChatRequest, Message, Sampling, Usage
from covey.dialects.counting import estimated_tokens
from covey.errors import CallError

REQUEST = ChatRequest("m", (Message("user", "hi", "ann"),), 7, ("x",), Sampling(temperature=0.5, top_k=3))


def chunk(text: str | None = None, finish: str | None = None, **more: object) -> bytes:
    delta = {} if text is None else {"content": text}
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}).encode()


# Events


@given(st.lists(st.binary(min_size=1).filter(lambda b: b"\n" not in b and b"\r" not in b)), st.data())
def test_events_come_out_however_the_bytes_are_cut(payloads: list[bytes], data: st.DataObject) -> None:
    end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    stream = b": ping" + end + end + b"".join(b"data: " + p + end + b"id: 1" + end + end for p in payloads)
    reader, events = EventReader(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        events += reader.receive(stream[:size])
        stream = stream[size:]
    assert events == payloads


def test_lines_of_one_event_are_joined() -> None:
    assert EventReader().receive(b"data: a\ndata:b\n\n") == [b"a\nb"]


def test_an_endless_event_is_refused() -> None:
    reader = EventReader()
    reader.receive(b"data: " + b"x" * (EVENT_BYTES_MAX // 2))
    with pytest.raises(CallError) as caught:
        reader.receive(b"x" * (EVENT_BYTES_MAX // 2))
    assert caught.value.code == "upstream"


# Requests


def test_a_request_always_asks_for_a_stream_and_its_usage() -> None:
    body = json.loads(chat_body(REQUEST, "other", local=False))
    assert body == {
        "model": "other",
        "messages": [{"role": "user", "content": "hi", "name": "ann"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 7,
        "stop": ["x"],
        "temperature": 0.5,
        "top_k": 3,
    }


def test_a_request_without_limits_names_none() -> None:
    body = json.loads(chat_body(ChatRequest("m", (Message("user", "hi"),)), "m", local=True))
    assert body.keys().isdisjoint({"max_tokens", "stop", "temperature"})
    assert body["return_progress"]


def test_tokens_are_guessed_from_bytes() -> None:
    assert estimated_tokens(ChatRequest("m", (Message("user", "é" * 8), Message("user", "")))) == 12


def test_a_system_message_is_added_only_where_the_model_wants_one_and_has_none() -> None:
    system = {"role": "system", "content": SYSTEM_PROMPT}
    body = json.loads(chat_body(REQUEST, "m", local=True, system_prompt=True))
    assert body["messages"][0] == system
    own = msgspec.structs.replace(REQUEST, messages=(Message("system", "Be rude."), *REQUEST.messages))
    assert len(json.loads(chat_body(own, "m", local=True, system_prompt=True))["messages"]) == 2


# Answers


def test_an_answer_ends_with_what_the_server_counted() -> None:
    reader = AnswerReader(9)
    assert reader.receive(chunk()) is None
    assert reader.receive(chunk("a")) == ChatDelta("a", tokens=1)
    assert reader.receive(chunk("🦙", timings={"predicted_n": 4})) == ChatDelta("🦙", tokens=3)
    assert reader.receive(chunk(finish="length")) is None
    usage = {"prompt_tokens": 5, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}
    assert reader.receive(json.dumps({"choices": [], "usage": usage}).encode()) is None
    assert reader.receive(b"[DONE]") is None
    assert reader.end() == ChatDelta(finish="length", usage=Usage(5, 4, 2))


def test_tokens_are_counted_where_the_server_does_not() -> None:
    reader = AnswerReader(9)
    for text in "abc":
        reader.receive(chunk(text))
    reader.receive(chunk(finish="eos"))
    assert reader.end() == ChatDelta(finish="stop", usage=Usage(9, 3))


@pytest.mark.parametrize("events", [[], [chunk("a")], [chunk("a"), b"[DONE]"]])
def test_an_answer_without_a_reason_did_not_end(events: list[bytes]) -> None:
    reader = AnswerReader(1)
    for event in events:
        reader.receive(event)
    with pytest.raises(CallError) as caught:
        reader.end()
    assert caught.value.code == "upstream"


@pytest.mark.parametrize(
    "event",
    [b"", b"nonsense", b"[]", b'{"choices": 1}', b'{"error": {"message": "boom"}}', b"\xff\xfe", chunk(finish="abort")],
)
def test_garbage_in_the_stream_is_the_servers_fault(event: bytes) -> None:
    with pytest.raises(CallError) as caught:
        AnswerReader(1).receive(event)
    assert caught.value.code == "upstream"


@given(st.binary())
def test_no_bytes_break_the_reader(event: bytes) -> None:
    try:
        AnswerReader(1).receive(event)
    except CallError as error:
        assert error.code == "upstream"  # noqa: PT017  either outcome will do


# Refusals


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (400, {"error": {"message": "no"}}, "invalid"),
        (401, {"error": {"message": "Incorrect API key provided: sk-secret"}}, "upstream"),
        (404, {"error": "model not found"}, "not_found"),
        (413, {}, "too_large"),
        (422, {"detail": "bad"}, "invalid"),
        (429, {"error": {"message": "slow down"}}, "no_capacity"),
        (500, {"error": None}, "upstream"),
        (503, {"error": {"message": "Loading model"}}, "loading"),
        (503, {"error": {"message": "overloaded"}}, "no_capacity"),
        (302, {}, "upstream"),
    ],
)
def test_statuses_become_our_codes(status: int, body: dict[str, object], code: str) -> None:
    error = refusal(status, json.dumps(body).encode(), "7")
    assert error.code == code
    assert "sk-secret" not in error.message
    if status == 429:
        assert error.retry_after_seconds == 7


@pytest.mark.parametrize(
    "body",
    [
        {"code": 400, "message": "request (13920 tokens) exceeds the available context size (2048 tokens)",
         "type": "exceed_context_size_error", "n_prompt_tokens": 13920, "n_ctx": 2048},
        {"code": "context_length_exceeded", "message": "This model's maximum context length is 2048 tokens."},
        {"message": "maximum context length is 10", "type": "BadRequestError"},
    ],
)  # fmt: skip
def test_a_prompt_too_long_is_told_in_the_words_that_clients_look_for(body: dict[str, object]) -> None:
    error = refusal(400, json.dumps({"error": body}).encode())
    assert (error.code, error.reason) == ("invalid", "context_length_exceeded")
    assert "This model's maximum context length is" in error.message


@given(st.integers(100, 599), st.binary(max_size=200))
def test_any_refusal_is_one_line(status: int, body: bytes) -> None:
    error = refusal(status, body)
    assert "\n" not in error.message
    assert len(error.message) < 500
