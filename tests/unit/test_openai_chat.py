"""OpenAI's chat completions in: whatever comes, either a request or one error that names the field."""

import json
from typing import Any

import pytest

from covey.contracts.inference import MESSAGES_MAX
from covey.dialects.base import ChatCall
from covey.dialects.openai import parse_chat
from covey.dialects.openai_chat import RANGES, ChatBody
from covey.errors import CallError
from openai_answers import only_chat, refused

BASE: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def parse(**fields: Any) -> ChatCall:
    return parse_chat(json.dumps({**BASE, **fields}).encode())


def refusal(body: bytes | dict[str, Any]) -> CallError:
    return refused(parse_chat, body)


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
    assert (only_chat(call).max_tokens, only_chat(call).stop) == (7, ("a", "b"))
    sampling = only_chat(call).sampling
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
    messages = only_chat(parse(messages=said)).messages
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
        parse(**{name: value, "logprobs": True})
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
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "system", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "assistant", "audio": {"id": "x"}}]}, "messages[0].audio"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
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
        (b'{"audio": {"x": ' + b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"model": "\\ud800"}', "JSON"),
    ],
)
def test_what_is_not_json_is_said_so(body: bytes, words: str) -> None:
    error = refusal(body)
    assert error.code == "invalid"
    assert words in error.message or error.param == "model"


def test_each_choice_is_a_chat_and_only_its_seed_differs() -> None:
    one, two, three = parse(n=3, seed=2**63 - 2).chats
    assert [chat.sampling.seed for chat in (one, two, three)] == [2**63 - 2, 2**63 - 1, -(2**63)]
    assert one.messages is two.messages is three.messages  # a prompt that choices share counts once
    assert [chat.sampling.seed for chat in parse(n=2).chats] == [None, None]
    assert len(parse(n=128).chats) == 128


def test_probabilities_are_asked_for_in_two_fields() -> None:
    assert only_chat(parse()).logprobs is None
    assert only_chat(parse(logprobs=False, top_logprobs=0)).logprobs is None
    assert only_chat(parse(logprobs=True)).logprobs == 0
    assert only_chat(parse(logprobs=True, top_logprobs=20)).logprobs == 20
    error = refusal({**BASE, "top_logprobs": 3})
    assert (error.code, error.param) == ("invalid", "top_logprobs")


def test_biases_are_by_token() -> None:
    assert only_chat(parse(logit_bias={"5": -100, "70": 2.5})).sampling.logit_bias == {"5": -100, "70": 2.5}
    assert only_chat(parse(logit_bias={})).sampling.logit_bias is None
    for bias, param in (
        ({"x": 1}, "logit_bias"),
        ({"-1": 1}, "logit_bias"),
        ({"5": 101}, "logit_bias.5"),
        ({str(i): 1 for i in range(1025)}, "logit_bias"),
    ):
        error = refusal({**BASE, "logit_bias": bias})
        assert (error.code, error.param) == ("invalid", param)


def test_what_is_shown_back_is_short() -> None:
    long = "x" * 100_000
    for fields in (
        {"messages": [{"role": long, "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": long}]}]},
        {"model": long},
    ):
        assert len(refusal({**BASE, **fields}).message) < 500
