"""Whatever a client sends: a call that can be encoded, or one error of ours that names a field of the client's."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from covey.dialects.base import ChatCall, EmbedCall
from covey.dialects.bodies import VALUES_MAX
from covey.dialects.openai import parse_chat, parse_completion, parse_embedding, parse_response
from covey.dialects.openai_chat import ChatBody
from covey.dialects.openai_completions import CompletionBody
from covey.dialects.openai_embeddings import EmbeddingBody
from covey.dialects.openai_responses import ResponseBody
from covey.errors import CallError

Parser = Callable[[bytes], ChatCall | EmbedCall]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
PICTURE = "data:image/png;base64,iVBORw0KGgoAAAAA"
FUNCTION = {"name": "add", "description": "d", "parameters": SCHEMA, "strict": True}
SETTINGS: dict[str, Any] = {
    "temperature": 1, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 7, "presence_penalty": 1, "frequency_penalty": 1,
    "stop": ["x"], "logit_bias": {"5": 1}, "n": 2, "stream": True, "stream_options": {"include_usage": True},
}  # fmt: skip
CHAT: dict[str, Any] = {
    **SETTINGS,
    "model": "m",
    "messages": [
        {"role": "user", "name": "ada", "content": [
            {"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}},
        ]},
        {"role": "assistant", "content": None, "refusal": "r", "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "c", "content": "4"},
        {"role": "assistant", "function_call": {"name": "add", "arguments": "{}"}},
    ],
    "max_tokens": 5, "max_completion_tokens": 6, "logprobs": True, "top_logprobs": 2, "modalities": ["text"],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": {"type": "allowed_tools", "allowed_tools": {
        "mode": "auto", "tools": [{"type": "function", "function": {"name": "add"}}],
    }},
    "parallel_tool_calls": True,
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
}  # fmt: skip
LEGACY_CHAT: dict[str, Any] = {
    "model": "m", "messages": [{"role": "user", "content": "x"}], "functions": [FUNCTION],
    "function_call": {"name": "add"},
}  # fmt: skip
COMPLETION: dict[str, Any] = {
    **SETTINGS, "model": "m", "prompt": ["a", "b"], "suffix": "s", "max_tokens": 5, "best_of": 2, "logprobs": 2,
    "echo": False,
}  # fmt: skip
EMBEDDING: dict[str, Any] = {"model": "m", "input": [[1], [2]], "encoding_format": "base64", "dimensions": 5}
RESPONSE: dict[str, Any] = {
    "model": "m",
    "input": [
        {"role": "user", "content": [
            {"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": PICTURE},
        ]},
        {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "x"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "x"}]},
    ],
    "instructions": "i", "stream": True, "max_output_tokens": 5, "temperature": 1, "top_p": 1, "top_logprobs": 2,
    "include": ["message.output_text.logprobs"], "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "add"}]},
    "parallel_tool_calls": True, "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
    "truncation": "auto", "metadata": {"a": "b"}, "background": False,
}  # fmt: skip
WHOLE: list[tuple[Parser, type[msgspec.Struct], dict[str, Any]]] = [
    (parse_chat, ChatBody, CHAT),
    (parse_chat, ChatBody, LEGACY_CHAT),
    (parse_completion, CompletionBody, COMPLETION),
    (parse_embedding, EmbeddingBody, EMBEDDING),
    (parse_response, ResponseBody, RESPONSE),
]

HARDLY = [
    b"1e999", b"-1e999", b"9" * 5_000, b"[" * 5_000 + b"]" * 5_000, b'{"a":' * 3_000 + b"1" + b"}" * 3_000,
    b'"\\ud800"', b'"\xff"', b"NaN", b"-Infinity", b"0x1",
]  # fmt: skip

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**30, -(10**30), 1e308, 0.5])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from(["user", "text", "assistant", "function", "m", "x" * 300, "data:", "https://x", PICTURE])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "name", "function", "x"]), inner, max_size=4),
    max_leaves=8,
)


def places(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where in a body something stands."""
    found = [at] if at else []
    if isinstance(value, dict):
        return found + [place for key, inner in value.items() for place in places(inner, (*at, key))]
    if isinstance(value, list):
        return found + [place for index, inner in enumerate(value) for place in places(inner, (*at, index))]
    return found


def changed(body: Any, place: tuple[str | int, ...], make: Callable[[Any, str | int], None]) -> Any:
    copy = json.loads(json.dumps(body))
    holder = copy
    for step in place[:-1]:
        holder = holder[step]
    make(holder, place[-1])
    return copy


def put(holder: Any, key: str | int, *, value: Any) -> None:
    holder[key] = value


def outcome(parse: Parser, body: bytes) -> ChatCall | EmbedCall | CallError:
    try:
        return parse(body)
    except CallError as error:
        return error


def judge(parse: Parser, kind: type[msgspec.Struct], body: bytes) -> None:
    got = outcome(parse, body)
    if isinstance(got, ChatCall):
        msgspec.msgpack.encode(got.chats)
    elif isinstance(got, EmbedCall):
        msgspec.msgpack.encode(got.request)
    else:
        assert got.code in ("invalid", "unsupported", "too_large")
        assert len(got.message) < 700
        assert got.param.partition(".")[0].partition("[")[0] in kind.__struct_fields__


@pytest.mark.parametrize(("parse", "kind", "body"), WHOLE)
def test_what_nothing_is_wrong_with_is_taken(parse: Parser, kind: type[msgspec.Struct], body: dict[str, Any]) -> None:
    assert not isinstance(outcome(parse, json.dumps(body).encode()), CallError)
    assert set(body) <= set(kind.__struct_fields__)


@pytest.mark.parametrize(("parse", "kind", "body"), WHOLE)
def test_anything_may_be_missing_or_null_or_something_else(
    parse: Parser, kind: type[msgspec.Struct], body: dict[str, Any]
) -> None:
    wrong: list[Any] = [None, True, -1, 10**30, 1e308, 0.5, "", "x" * 5_000, [], [None], {}, {"x": 1}, [[[]]]]
    for place in places(body):
        judge(parse, kind, json.dumps(changed(body, place, lambda holder, key: holder.pop(key))).encode())
        for value in wrong:
            made = changed(body, place, partial(put, value=value))
            judge(parse, kind, json.dumps(made).encode())


@pytest.mark.parametrize(("parse", "kind", "body"), WHOLE)
@pytest.mark.parametrize("text", HARDLY)
def test_what_json_hardly_allows(parse: Parser, kind: type[msgspec.Struct], body: dict[str, Any], text: bytes) -> None:
    for place in places(body):
        marked = changed(body, place, partial(put, value="@@"))
        got = outcome(parse, json.dumps(marked).encode().replace(b'"@@"', text))
        if isinstance(got, CallError):
            assert got.code == "invalid"
            assert len(got.message) < 700
        else:
            assert place[-1] in ("schema", "parameters", "a", "type", "properties") or text.startswith(
                (b"[", b"{", b"9")
            )


@pytest.mark.parametrize(("parse", "kind", "body"), WHOLE)
@settings(max_examples=100)
@given(data=st.data())
def test_nothing_but_a_call_error_escapes(
    parse: Parser, kind: type[msgspec.Struct], body: dict[str, Any], data: st.DataObject
) -> None:
    for place in data.draw(st.lists(st.sampled_from(places(body)), min_size=1, max_size=3)):
        value = data.draw(values)
        try:
            body = changed(body, place, partial(put, value=value))
        except (TypeError, KeyError, IndexError):
            continue  # an earlier change took that place away
    judge(parse, kind, json.dumps(body).encode())


@pytest.mark.parametrize("words", [" - at `$.", "missing required field `"])
def test_what_a_client_writes_does_not_pass_for_what_the_decoder_says(words: str) -> None:
    role = "x" + words + "y" * 5_000 + "`"
    got = outcome(parse_chat, json.dumps({"model": "m", "messages": [{"role": role, "content": "x"}]}).encode())
    assert isinstance(got, CallError)
    assert got.param == "messages[0].role"
    assert got.message.startswith("messages[0].role is of the wrong kind: invalid enum value 'x")
    assert len(got.message) < 700


@pytest.mark.parametrize("parse", [parse_chat, parse_completion, parse_embedding, parse_response])
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b'{"model":"m","messages":[{"role":"user","content":"\\udc00"}]}')
@example(b'{"model":"m","messages":[{"role":"user","content":"\\ud83d\\ud83d"}]}')
@example(b'{"model":"m","input":"\\udc00","prompt":"\\udc00"}')
@example(b"\xef\xbb\xbf{}")
def test_nothing_but_a_call_error_escapes_from_bytes(parse: Parser, body: bytes) -> None:
    got = outcome(parse, body)
    assert isinstance(got, CallError)
    assert got.code == "invalid"


def test_every_field_of_a_body_is_tried() -> None:
    never = {
        "audio",
        "web_search_options",
        "previous_response_id",
        "conversation",
        "prompt",
    }  # refused whatever they hold
    for kind in (ChatBody, CompletionBody, EmbeddingBody, ResponseBody):
        tried = {name for _, one, body in WHOLE if one is kind for name in body}
        assert set(kind.__struct_fields__) - tried <= never


def test_a_body_of_too_many_values_is_not_even_read() -> None:
    for filler in (b"1,", b"[],", b"{},"):
        body = b'{"model": "m", "input": [' + filler * (VALUES_MAX // filler.count(b",") + 1) + b"1]}"
        with pytest.raises(CallError, match="more than 300000 values") as caught:
            parse_embedding(body)
        assert caught.value.code == "too_large"
