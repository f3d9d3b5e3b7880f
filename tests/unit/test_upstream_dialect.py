"""The OpenAI dialect as a client speaks it, and the event stream under it: pure."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.backends.completion_requests import SYSTEM_PROMPT, chat_body, embed_body, engine_prompt, prompt_body
from covey.backends.completions import AnswerReader
from covey.backends.refusals import refusal
from covey.backends.sse_client import EVENT_BYTES_MAX, EventReader
from covey.contracts.inference import (
    Alternative,
    AnswerFormat,
    ChatDelta,
    ChatRequest,
    EmbedRequest,
    Image,
    Message,
    Prompt,
    Sampling,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
)
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


def test_an_event_of_endless_empty_lines_is_refused() -> None:
    reader = EventReader()
    reader.receive(b"data:\n" * (EVENT_BYTES_MAX + 1))
    with pytest.raises(CallError, match="unreasonable"):
        reader.receive(b"data:\n")


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


def body_of(request: ChatRequest, *, local: bool = False) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(chat_body(request, "m", local=local))
    return body


def test_tools_and_what_became_of_them_go_in_their_own_shape() -> None:
    past = (
        Message("assistant", "", tool_calls=(ToolCall("c", "get", "{}"),)),
        Message("tool", "rain", tool_call_id="c"),
    )
    tools = (Tool("get", "Gets.", '{"type": "object"}', strict=True), Tool("other"))
    request = ChatRequest("m", past, tools=tools, parallel_tool_calls=False)
    body = body_of(request)
    assert body["messages"][0]["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "get", "arguments": "{}"}}
    ]
    assert body["messages"][1] == {"role": "tool", "content": "rain", "tool_call_id": "c"}
    first, second = body["tools"]
    described = {"name": "get", "description": "Gets.", "parameters": {"type": "object"}, "strict": True}
    assert first == {"type": "function", "function": described}
    assert second["function"] == {"name": "other", "parameters": {"type": "object", "properties": {}}}
    assert "tool_choice" not in body
    assert body["parallel_tool_calls"] is False
    assert body_of(msgspec.structs.replace(request, tool_use="none"))["tool_choice"] == "none"
    required = msgspec.structs.replace(request, tool_use="required", parallel_tool_calls=None)
    assert body_of(required)["tool_choice"] == "required"
    forced = body_of(msgspec.structs.replace(required, forced_tool="other"))
    assert forced["tool_choice"] == {"type": "function", "function": {"name": "other"}}
    assert "parallel_tool_calls" not in forced


def test_formats_and_probabilities_go_in_their_own_shape() -> None:
    asked = msgspec.structs.replace(REQUEST, format=AnswerFormat("json"), logprobs=0)
    assert body_of(asked)["response_format"] == {"type": "json_object"}
    assert (body_of(asked)["logprobs"], body_of(asked)["top_logprobs"]) == (True, 0)
    assert body_of(asked, local=True)["top_logprobs"] == 1
    schema = msgspec.structs.replace(REQUEST, format=AnswerFormat("schema", '{"type": "object"}'))
    wanted = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert body_of(schema)["response_format"] == {"type": "json_schema", "json_schema": wanted}
    with pytest.raises(CallError) as caught:
        body_of(msgspec.structs.replace(REQUEST, format=AnswerFormat("schema", "[]")))
    assert (caught.value.code, caught.value.param) == ("invalid", "response_format")


def test_pictures_stand_where_they_stood_in_the_text() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,eHl6"}}
    images = (Image("image/png", b"xyz", 99), Image("image/png", b"xyz"), Image("image/png", b"xyz", 2))
    message = Message("user", "abcd", images=images)
    assert body_of(ChatRequest("m", (message,)))["messages"][0]["content"] == [
        picture,
        {"type": "text", "text": "ab"},
        picture,
        {"type": "text", "text": "cd"},
        picture,
    ]
    (last,) = body_of(ChatRequest("m", (Message("user", "ab", images=images[1:2]),)))["messages"]
    assert last["content"] == [picture, {"type": "text", "text": "ab"}]


def test_a_raw_prompt_is_text_or_tokens() -> None:
    prompt = Prompt("go on", suffix="end")
    body = json.loads(prompt_body(msgspec.structs.replace(REQUEST, logprobs=2), prompt, "m"))
    assert (body["prompt"], body["suffix"], body["logprobs"], body["max_tokens"]) == ("go on", "end", 2, 7)
    asked = msgspec.structs.replace(REQUEST, format=AnswerFormat("json"))
    body = json.loads(prompt_body(asked, Prompt(tokens=(1, 2)), "m"))
    assert (body["prompt"], body["response_format"]["type"]) == ([1, 2], "json_object")
    assert "suffix" not in body


def test_llama_cpp_gets_a_raw_prompt_in_its_own_words() -> None:
    path, content = engine_prompt(msgspec.structs.replace(REQUEST, logprobs=0), Prompt("go on"))
    body = json.loads(content)
    assert (path, body["prompt"], body["n_predict"], body["stop"], body["n_probs"]) == (
        "/completion",
        "go on",
        7,
        ["x"],
        1,
    )
    plain = ChatRequest("m", (), format=AnswerFormat("json"))
    path, content = engine_prompt(plain, Prompt("a", suffix="b"))
    body = json.loads(content)
    assert (path, body["input_prefix"], body["input_suffix"]) == ("/infill", "a", "b")
    assert body["json_schema"] == {"type": "object"}
    assert body.keys().isdisjoint({"n_predict", "stop", "n_probs"})
    asked = msgspec.structs.replace(plain, format=AnswerFormat("schema", '{"type": "array"}'))
    body = json.loads(engine_prompt(asked, Prompt(tokens=(3,)))[1])
    assert (body["prompt"], body["json_schema"]) == ([3], {"type": "array"})


def test_embeddings_are_asked_for_in_base64() -> None:
    request = EmbedRequest("m", ("a", (1, 2)), dimensions=8)
    body = json.loads(embed_body(request, request.inputs))
    assert body == {"model": "m", "input": ["a", [1, 2]], "encoding_format": "base64", "dimensions": 8}
    assert "dimensions" not in json.loads(embed_body(EmbedRequest("m", ("a",)), ("a",)))


# Answers


def delta_of(reader: AnswerReader, delta: dict[str, Any], **more: Any) -> ChatDelta | None:
    return reader.receive(json.dumps({"choices": [{"delta": delta, **more}]}).encode())


def test_calls_come_in_pieces() -> None:
    reader = AnswerReader(1, "own")
    first = [{"index": 0, "id": "a", "function": {"name": "get", "arguments": ""}}]
    assert delta_of(reader, {"tool_calls": first}) == ChatDelta(tokens=1, tool_calls=(ToolCallDelta(0, "a", "get"),))
    more = [{"index": 0, "function": {"arguments": "{}"}}, {"index": 1, "id": "", "function": {"name": "b"}}]
    assert delta_of(reader, {"tool_calls": more}) == ChatDelta(
        tokens=1, tool_calls=(ToolCallDelta(0, arguments="{}"), ToolCallDelta(1, "own_1", "b"))
    )
    assert delta_of(reader, {"tool_calls": [{"index": 0}]}) == ChatDelta(tokens=1, tool_calls=(ToolCallDelta(0),))
    assert delta_of(reader, {}, finish_reason="stop") is None
    assert reader.end().finish == "tool_calls"


@pytest.mark.parametrize("call", [{"index": 0}, {"index": -1}, {"index": 9_999, "function": {"name": "a"}}])
def test_a_call_of_nothing_is_the_servers_fault(call: dict[str, Any]) -> None:
    with pytest.raises(CallError) as caught:
        delta_of(AnswerReader(1), {"tool_calls": [call]})
    assert caught.value.code == "upstream"


def test_thoughts_are_told_apart_from_the_answer() -> None:
    reader = AnswerReader(1)
    assert delta_of(reader, {"reasoning_content": "hm"}) == ChatDelta(tokens=1, reasoning="hm")
    assert delta_of(reader, {"reasoning": "ha"}) == ChatDelta(tokens=1, reasoning="ha")


def test_probabilities_come_in_either_shape() -> None:
    reader = AnswerReader(1, alternatives=1)
    top = [{"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "b", "logprob": -1}]
    content = [{"token": "\ufffd", "logprob": -0.5, "bytes": [240, 159], "top_logprobs": top}]
    told = TokenLogprob("\ufffd", -0.5, b"\xf0\x9f", (Alternative("a", -0.5),))
    assert delta_of(reader, {"content": "a"}, logprobs={"content": content}) == ChatDelta("a", 1, logprobs=(told,))
    older = {"tokens": ["x", "y"], "token_logprobs": [-1, None], "top_logprobs": [{"z": -2, "x": -1}]}
    told_older = (TokenLogprob("x", -1, top=(Alternative("x", -1),)), TokenLogprob("y", 0.0))
    event = json.dumps({"choices": [{"text": "xy", "logprobs": older}]}).encode()
    assert reader.receive(event) == ChatDelta("xy", 2, logprobs=told_older)
    event = json.dumps({"choices": [{"text": "x", "logprobs": {"tokens": ["x"]}}]}).encode()
    assert reader.receive(event) == ChatDelta("x", 1, logprobs=(TokenLogprob("x", 0.0),))
    strange = [{"token": "a", "logprob": -1, "bytes": [999]}]
    assert delta_of(reader, {"content": "a"}, logprobs={"content": strange}) == ChatDelta(
        "a", 1, logprobs=(TokenLogprob("a", -1),)
    )
    assert delta_of(reader, {}, logprobs={}) is None


def test_the_prompt_is_counted_as_it_is_evaluated() -> None:
    reader = AnswerReader(9)
    assert reader.receive(b'{"choices": [], "prompt_progress": {"total": 5, "cache": 2, "processed": 5}}') is None
    assert delta_of(reader, {"content": "a"}, stop_reason="END") is not None
    assert reader.counted_here == Usage(5, 1, 2)
    delta_of(reader, {}, finish_reason="stop", stop_reason=7)
    assert reader.end() == ChatDelta(finish="stop", usage=Usage(5, 1, 2), stopped_by="END")
    reader.receive(b'{"usage": {}}')
    assert reader.end().usage == Usage(5, 1, 2)


def test_llama_cpp_s_own_stream_says_what_stopped_it() -> None:
    reader = AnswerReader(9, alternatives=0)
    progress = {"content": "", "prompt_progress": {"total": 5, "cache": 1}}
    assert reader.receive_engine(json.dumps(progress).encode()) is None
    piece = {"content": "a", "tokens_predicted": 1, "completion_probabilities": [{"token": "a", "logprob": -1}]}
    assert reader.receive_engine(json.dumps(piece).encode()) == ChatDelta("a", 1, logprobs=(TokenLogprob("a", -1),))
    end = {"stop": True, "stop_type": "word", "stopping_word": ".", "tokens_predicted": 2, "tokens_evaluated": 5}
    assert reader.receive_engine(json.dumps(end).encode()) is None
    assert reader.end() == ChatDelta(finish="stop", usage=Usage(5, 2, 1), stopped_by=".")
    reader.receive_engine(b'{"stop": true, "stop_type": "limit"}')
    assert reader.end() == ChatDelta(finish="length", usage=Usage(5, 0, 1))


@pytest.mark.parametrize("event", [b"", b"[]", b"\xff", b'{"error": {"message": "boom"}}'])
def test_garbage_of_llama_cpp_s_is_its_fault(event: bytes) -> None:
    with pytest.raises(CallError) as caught:
        AnswerReader(1).receive_engine(event)
    assert caught.value.code == "upstream"


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
        (501, {"error": {"message": "Infill is not supported", "type": "not_supported_error"}}, "unsupported"),
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
        {"message": "input (161 tokens) is too large to process. increase the batch size", "type": "server_error"},
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
