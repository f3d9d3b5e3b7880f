"""OpenAI's chat completions in: whatever comes, either a request or one error that names the field."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from covey.contracts.gateway import ModelSummary
from covey.contracts.inference import MESSAGES_MAX, ChatDelta, ChatRequest, Usage
from covey.dialects.base import ChatCall, Gathered, Head, Writer
from covey.dialects.openai import model_list, model_one, parse_chat
from covey.dialects.openai_chat import RANGES, ChatBody
from covey.errors import CallError

BASE: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def parse(**fields: Any) -> ChatCall:
    return parse_chat(json.dumps({**BASE, **fields}).encode())


def only(call: ChatCall) -> ChatRequest:
    (chat,) = call.chats
    return chat


def writer(call: ChatCall) -> Writer:
    return call.writer(Head("1", 'm"}', 3.7))


def gathered(*deltas: ChatDelta) -> Gathered:
    answer = Gathered()
    answer.add(deltas)
    return answer


def refusal(body: bytes | dict[str, Any]) -> CallError:
    with pytest.raises(CallError) as caught:
        parse_chat(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


def outcome(body: bytes) -> ChatCall | CallError:
    try:
        return parse_chat(body)
    except CallError as error:
        return error


def test_everything_that_is_understood() -> None:
    call = parse(
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=7,
        max_tokens=9,
        stop=["a", "b"],
        temperature=0,
        top_p=1,
        top_k=3,
        min_p=0.5,
        seed=-1,
        presence_penalty=-2,
        frequency_penalty=2.0,
        n=1,
        tools=[],
        response_format={"type": "text"},
        modalities=["text"],
        user="somebody",
        nonsense={"deep": [1, 2]},
    )
    assert call.stream
    assert (only(call).max_tokens, only(call).stop) == (7, ("a", "b"))
    sampling = only(call).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 1, 3, 0.5)
    assert (sampling.seed, sampling.presence_penalty, sampling.frequency_penalty) == (-1, -2, 2)


def test_null_is_as_good_as_missing() -> None:
    nulls = dict.fromkeys(set(ChatBody.__struct_fields__) - {"model", "messages"})
    assert parse(**nulls).chats == parse().chats


def test_roles_and_parts() -> None:
    said = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ada"},
        {"role": "assistant", "content": None},
        {"role": "function", "content": "4", "name": "add"},
        {"role": "assistant"},
    ]
    messages = only(parse(messages=said)).messages
    assert [(one.role, one.content, one.name) for one in messages] == [
        ("system", "be brief", ""),
        ("user", "ab", "ada"),
        ("assistant", "", ""),
        ("tool", "4", "add"),
        ("assistant", "", ""),
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"model": "x" * 201}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}] * (MESSAGES_MAX + 1)}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [*BASE["messages"], {"role": "tool", "content": None}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": {"type": "text"}}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": "x", "name": 5}]}, "messages[0].name"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"stream": True, "stream_options": 1}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": "x"}}, "stream_options.include_usage"),
        ({"stream_options": {}}, "stream_options"),
        ({"stream_options": {"include_usage": True}, "stream": False}, "stream_options"),
        ({"stop": 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": [5]}, "stop[0]"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 513}, "stop"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"tools": "x"}, "tools"),
        ({"logit_bias": {"5": "x"}}, "logit_bias[...]"),
        ({"logprobs": 5}, "logprobs"),
        ({"modalities": "text"}, "modalities"),
    ],
)
def test_what_is_malformed_is_named(fields: dict[str, Any], param: str) -> None:
    error = refusal({**BASE, **fields})
    assert (error.code, error.param) == ("invalid", param)
    assert error.message.startswith(param.partition("[")[0])
    assert "`" not in error.message
    assert error.message.endswith(".")


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_what_is_missing_is_named(missing: str) -> None:
    error = refusal({key: value for key, value in BASE.items() if key != missing})
    assert (error.code, error.param, error.message) == ("invalid", missing, f"{missing} is required.")


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_ranges(name: str, low: int, high: int) -> None:
    for value in (low, high):
        if (name, value) != ("n", high):
            parse(**{name: value})
    for value in (low - 1, high + 1, 10**25, -(10**25)):
        error = refusal({**BASE, name: value})
        assert (error.code, error.param) == ("invalid", name)
        assert "e+" not in error.message
    for text in (b"1e999", b"-1e999", b"9" * 4_000, b"NaN", b"Infinity", b"true", b'"1"', b"[]", b"{}"):
        error = refusal(json.dumps(BASE).encode()[:-1] + b', "' + name.encode() + b'": ' + text + b"}")
        assert error.code == "invalid"
        assert error.param == name or text in (b"NaN", b"Infinity")  # these are no JSON at all
        assert len(error.message) < 300


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
    ],
)
def test_what_is_not_supported_yet_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal({**BASE, **fields})
    assert (error.code, error.param) == ("unsupported", param)
    assert param in error.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "it is empty"),
        (b"  \n", "it is empty"),
        (b"{", "truncated"),
        (b"null", "expected object, got null"),
        (b"[]", "expected object, got array"),
        (b"\xef\xbb\xbf{}", "JSON"),
        (b"{} x", "JSON"),
        (b"'x'", "JSON"),
        (b'{"model": "\xff"}', "UTF-8"),
        (b'{"x": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"tools": ' + b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"model": "\\ud800"}', "JSON"),
    ],
)
def test_what_is_not_json_is_said_so(body: bytes, words: str) -> None:
    error = refusal(body)
    assert error.code == "invalid"
    assert words in error.message or error.param == "model"


def test_what_is_shown_back_is_short() -> None:
    long = "x" * 100_000
    for fields in (
        {"messages": [{"role": long, "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": long}]}]},
        {"model": long},
    ):
        assert len(refusal({**BASE, **fields}).message) < 500


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["user", "text", "assistant", "m"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "include_usage", "x"]), inner, max_size=4),
    max_leaves=8,
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(ChatBody.__struct_fields__, json_values),
        "model": st.just("m") | json_values,
        "messages": st.just(BASE["messages"]) | json_values,
    },
)


@given(bodies)
@settings(max_examples=400)
def test_nothing_but_a_call_error_escapes(body: dict[str, Any]) -> None:
    got = outcome(json.dumps(body).encode())
    if isinstance(got, ChatCall):
        msgspec.msgpack.encode(got.chats)
        return
    assert got.code in ("invalid", "unsupported")
    assert got.param
    assert got.param.partition(".")[0].partition("[")[0] in ChatBody.__struct_fields__


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b'{"model":"m","messages":[{"role":"user","content":"\\udc00"}]}')
@example(b'{"model":"m","messages":[{"role":"user","content":"\\ud83d\\ud83d"}]}')
def test_nothing_but_a_call_error_escapes_from_bytes(body: bytes) -> None:
    got = outcome(body)
    if isinstance(got, ChatCall):
        msgspec.msgpack.encode(got.chats)
    else:
        assert got.code == "invalid"


@given(st.text())
def test_text_survives_every_shape(text: str) -> None:
    for usage in (True, False):
        call = parse(stream=True, stream_options={"include_usage": usage})
        pieces = [ChatDelta(text + "1"), ChatDelta(""), ChatDelta("x")]
        one, two, rest = writer(call).deltas(0, pieces).split(b"\n\n")
        assert rest == b""
        assert json.loads(one[6:])["choices"][0]["delta"] == {"content": text + "1"}
        assert json.loads(two[6:])["choices"][0]["delta"] == {"content": "x"}
        assert ("usage" in json.loads(one[6:])) == usage
    body = json.loads(writer(parse()).whole([gathered(ChatDelta(text), ChatDelta(finish="stop"))], Usage(1, 2, 1)))
    assert body["choices"][0]["message"]["content"] == text
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 1


def test_the_list_of_models() -> None:
    listed = json.loads(model_list([ModelSummary("m", "loaded", ("chat",), ("a",), context_tokens=0, created_at=3)]))
    assert listed["object"] == "list"
    assert listed["data"][0]["id"] == "m"
    assert listed["data"][0]["context_length"] is None
    one = json.loads(model_one(ModelSummary("m", "loaded", ("chat",), ("a",), context_tokens=9, created_at=3)))
    assert (one["object"], one["id"], one["context_length"]) == ("model", "m", 9)


def test_a_stream_s_chunks_end_with_a_reason_and_where_asked_for_with_usage() -> None:
    chunks = writer(parse(stream=True, stream_options={"include_usage": True}))
    deltas = [ChatDelta("Hel"), ChatDelta("lo"), ChatDelta(finish="stop", usage=Usage(2, 3, 1))]
    sent = chunks.begin() + chunks.deltas(0, deltas) + chunks.end([gathered(*deltas)], Usage(2, 3, 1))
    lines = [line.removeprefix("data: ") for line in sent.decode().split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    events = [json.loads(line) for line in lines]
    assert [event["choices"][0]["delta"] for event in events[:-1]] == [
        {"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}, {},
    ]  # fmt: skip
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None, None, None, "stop"]
    assert all(event["usage"] is None for event in events[:-1])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] == 5
