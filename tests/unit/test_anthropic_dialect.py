"""Anthropic's messages in: whatever comes, either a request or one error that names the field."""

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from covey.contracts.inference import (
    IMAGES_MAX,
    MESSAGES_MAX,
    TOOLS_MAX,
    AnswerFormat,
    ChatRequest,
    Image,
    Message,
    Tool,
    ToolCall,
)
from covey.dialects import anthropic
from covey.dialects.base import ChatCall
from covey.dialects.counting import estimated_tokens
from covey.errors import CODES, CallError

BASE: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
PNG = b"\x89PNG\r\n\x1a\n and so on"
PICTURE = {
    "type": "image",
    "source": {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()},
}
WEATHER = {"name": "weather", "description": "The weather.", "input_schema": {"type": "object"}}


def parse(**fields: Any) -> ChatCall:
    return anthropic.parse_messages(json.dumps({**BASE, **fields}).encode())


def chat(**fields: Any) -> ChatRequest:
    (only,) = parse(**fields).chats
    return only


def refusal(**fields: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        parse(**fields)
    return caught.value


def outcome(fields: dict[str, Any]) -> ChatCall | CallError:
    try:
        return parse(**fields)
    except CallError as error:
        return error


def said(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "content": list(blocks)}


def test_everything_that_is_understood() -> None:
    call = parse(
        system="Be brief.", temperature=1, top_p=0.5, top_k=3, stop_sequences=["a", "b"], stream=True,
        tools=[{**WEATHER, "strict": True, "cache_control": {"type": "ephemeral"}}],
        tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        metadata={"user_id": "somebody"}, service_tier="auto", thinking={"type": "disabled"},
        output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        container=None, mcp_servers=[], nonsense={"deep": [1, 2]},
    )  # fmt: skip
    assert (call.stream, call.model) == (True, "m")
    (only,) = call.chats
    assert only.messages == (Message("system", "Be brief."), Message("user", "hi"))
    assert (only.max_tokens, only.stop) == (9, ("a", "b"))
    assert (only.sampling.temperature, only.sampling.top_p, only.sampling.top_k) == (1, 0.5, 3)
    assert only.tools == (Tool("weather", "The weather.", '{"type":"object"}', strict=True),)
    assert (only.tool_use, only.forced_tool, only.parallel_tool_calls) == ("required", "weather", False)
    assert only.format == AnswerFormat("schema", '{"type":"object"}')
    assert call.fields["json"] == "output_config.format"


def test_the_older_name_of_a_format() -> None:
    call = parse(output_format={"type": "json_schema", "schema": {}}, output_config={})
    assert call.chats[0].format == AnswerFormat("schema", "{}")
    assert call.fields["json"] == "output_format"


def test_only_what_is_needed() -> None:
    call = parse()
    assert not call.stream
    assert call.chats == (ChatRequest(model="m", messages=(Message("user", "hi"),), max_tokens=9),)


@pytest.mark.parametrize(
    ("choice", "use"),
    [({"type": "auto"}, "auto"), ({"type": "none"}, "none"), ({"type": "any"}, "required")],
)
def test_which_tools(choice: Any, use: str) -> None:
    only = chat(tools=[WEATHER], tool_choice=choice)
    assert (only.tool_use, only.forced_tool, only.parallel_tool_calls) == (use, "", None)


def test_texts_pictures_and_the_system_prompt_in_blocks() -> None:
    only = chat(
        system=[{"type": "text", "text": "A.", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "B."}],
        messages=[
            said(
                {"type": "text", "text": "Look:"}, PICTURE, {"type": "text", "text": "What"},
                {"type": "text", "text": "now?"},
            ),
            said({"type": "text", "text": "It is"}, role="assistant"),
        ],
    )  # fmt: skip
    assert only.messages == (
        Message("system", "A.\nB."),
        Message("user", "Look:What\nnow?", images=(Image("image/png", PNG, 5),)),
        Message("assistant", "It is"),  # the beginning of the answer
    )


def test_a_turn_with_tools() -> None:
    only = chat(
        messages=[
            {"role": "user", "content": "Weather?"},
            said(
                {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
                {"type": "tool_use", "id": "t2", "name": "time", "input": {}},
                {"type": "tool_use", "id": "t3", "name": "sky", "input": {}},
                role="assistant",
            ),
            said(
                {"type": "tool_result", "tool_use_id": "t1", "content": "Sunny."},
                {"type": "tool_result", "tool_use_id": "t2", "is_error": True,
                 "content": [{"type": "text", "text": "broken"}, PICTURE]},
                {"type": "tool_result", "tool_use_id": "t3"},
                {"type": "text", "text": "So?"},
            ),
            said({"type": "thinking", "thinking": "Hm.", "signature": "x"}, role="assistant"),
        ],
    )  # fmt: skip
    calls = (ToolCall("t1", "weather", '{"city":"Rome"}'), ToolCall("t2", "time", "{}"), ToolCall("t3", "sky", "{}"))
    assert only.messages == (
        Message("user", "Weather?"),
        Message("assistant", "I look.", tool_calls=calls),
        Message("tool", "Sunny.", "weather", tool_call_id="t1"),
        Message("tool", "Error: broken", "time", images=(Image("image/png", PNG, 13),), tool_call_id="t2"),
        Message("tool", "", "sky", tool_call_id="t3"),
        Message("user", "So?"),
        Message("assistant", ""),
    )


def test_results_alone_leave_no_empty_turn_behind() -> None:
    only = chat(
        messages=[
            said({"type": "tool_use", "id": "t", "name": "n", "input": {}}, role="assistant"),
            said({"type": "tool_result", "tool_use_id": "t", "content": "x"}),
        ]
    )
    assert [message.role for message in only.messages] == ["assistant", "tool"]


USE = {"type": "tool_use", "id": "t", "name": "n", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "x"}


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"model": ""}, "invalid", "model"),
        ({"model": None}, "invalid", "model"),
        ({"model": "x" * 201}, "invalid", "model"),
        ({"max_tokens": None}, "invalid", "max_tokens"),
        ({"max_tokens": 0}, "invalid", "max_tokens"),
        ({"max_tokens": 2**31}, "invalid", "max_tokens"),
        ({"max_tokens": "9"}, "invalid", "max_tokens"),
        ({"temperature": 1.1}, "invalid", "temperature"),
        ({"top_p": -0.1}, "invalid", "top_p"),
        ({"top_k": -1}, "invalid", "top_k"),
        ({"stop_sequences": [""]}, "invalid", "stop_sequences"),
        ({"stop_sequences": "x"}, "invalid", "stop_sequences"),
        ({"stop_sequences": ["x"] * 17}, "invalid", "stop_sequences"),
        ({"stream": "yes"}, "invalid", "stream"),
        ({"messages": []}, "invalid", "messages"),
        ({"messages": None}, "invalid", "messages"),
        ({"messages": BASE["messages"] * (MESSAGES_MAX + 1)}, "invalid", "messages"),
        ({"messages": [said(USE, role="assistant"), said(*[RESULT] * MESSAGES_MAX)]}, "invalid", "messages"),
        ({"messages": [said(*[PICTURE] * (IMAGES_MAX + 1))]}, "invalid", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "invalid", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "invalid", "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "invalid", "messages[0].content"),
        ({"messages": [said({"type": "text"})]}, "invalid", "messages[0].content[0].text"),
        ({"messages": [said({"type": "video"})]}, "invalid", "messages[0].content[0].type"),
        ({"messages": [said({"text": "x"})]}, "invalid", "messages[0].content[0].type"),
        ({"messages": [said({"type": "document", "source": {}})]}, "unsupported", "messages[0].content[0]"),
        ({"messages": [said({"type": "image", "source": {"type": "url", "url": "http://x"}})]}, "unsupported",
         "messages[0].content[0].source"),
        ({"messages": [said({"type": "image", "source": {"type": "base64"}})]}, "invalid",
         "messages[0].content[0].source.data"),
        ({"messages": [said({"type": "image", "source": {"type": "base64", "data": "!"}})]}, "invalid",
         "messages[0].content[0].source.data"),
        ({"messages": [said(USE)]}, "invalid", "messages[0].content[0]"),
        ({"messages": [said(RESULT, role="assistant")]}, "invalid", "messages[0].content[0]"),
        ({"messages": [said(PICTURE, role="system")]}, "invalid", "messages[0].content[0]"),
        ({"messages": [said(RESULT)]}, "invalid", "messages[0].content[0].tool_use_id"),
        ({"messages": [said({**USE, "input": "x"}, role="assistant")]}, "invalid", "messages[0].content[0].input"),
        ({"messages": [said(USE, role="assistant"),
                       said({**RESULT, "content": [{"type": "document"}]})]}, "unsupported",
         "messages[1].content[0].content[0]"),
        ({"system": 3}, "invalid", "system"),
        ({"system": [PICTURE]}, "invalid", "system[0].type"),
        ({"tools": [WEATHER] * (TOOLS_MAX + 1)}, "invalid", "tools"),
        ({"tools": [WEATHER] * 2}, "invalid", "tools"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "unsupported", "tools[0].type"),
        ({"tools": [{"input_schema": {}}]}, "invalid", "tools[0].name"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "invalid", "tools[0].name"),
        ({"tools": [{"name": "a", "type": "custom"}]}, "invalid", "tools[0].input_schema"),
        ({"tools": [{"name": "a", "input_schema": []}]}, "invalid", "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "invalid", "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "invalid", "tool_choice.name"),
        ({"tool_choice": {"type": "x"}}, "invalid", "tool_choice.type"),
        ({"thinking": {"type": "deeply"}}, "invalid", "thinking.type"),
        ({"output_config": {"format": {"type": "xml", "schema": {}}}}, "invalid", "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "invalid", "output_format.schema"),
        ({"container": "c"}, "unsupported", "container"),
        ({"mcp_servers": [{}]}, "unsupported", "mcp_servers"),
    ],
)  # fmt: skip
def test_what_is_refused_names_its_field(fields: dict[str, Any], code: str, param: str) -> None:
    error = refusal(**fields)
    assert (error.code, error.param) == (code, param)
    assert param in error.message


def test_a_schema_must_not_nest_without_end() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100):
        schema = {"a": schema}
    assert refusal(tools=[{"name": "a", "input_schema": schema}]).param == "tools[0].input_schema"
    assert refusal(messages=[said({**USE, "input": schema}, role="assistant")]).param == "messages[0].content[0].input"


def test_a_count_needs_no_max_tokens() -> None:
    body = json.dumps({**BASE, "max_tokens": None, "tools": [WEATHER]}).encode()
    counted = anthropic.parse_count(body)
    assert counted.max_tokens is None
    assert json.loads(anthropic.counted(estimated_tokens(counted))) == {"input_tokens": estimated_tokens(counted)}
    with pytest.raises(CallError) as caught:
        anthropic.parse_count(b"{}")
    assert caught.value.param == "model"


@pytest.mark.parametrize("code", CODES)
def test_every_error_has_one_of_anthropics_types(code: Any) -> None:
    body = json.loads(anthropic.error_body(CallError(code, "So it is.")))
    assert body["type"] == "error"
    assert body["error"]["message"] == "So it is."
    assert body["error"]["type"] in {
        "invalid_request_error", "authentication_error", "permission_error", "not_found_error", "request_too_large",
        "rate_limit_error", "timeout_error", "api_error", "overloaded_error",
    }  # fmt: skip


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=5,
)
BLOCK = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "tool_use", "tool_result", "thinking", "document"]) | JSON},
    optional={
        "text": st.text() | JSON, "input": JSON, "content": st.text() | JSON,
        "source": st.fixed_dictionaries({"type": st.just("base64"), "data": st.text()}) | JSON,
        "id": st.just("t"), "name": st.just("n"), "tool_use_id": st.just("t"),
    },
)  # fmt: skip
TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": st.text() | st.lists(BLOCK)},
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "messages": JSON | st.lists(TURN),
        **dict.fromkeys(("model", "max_tokens", "system", "temperature", "top_p", "top_k", "stop_sequences",
                                   "stream", "tools", "tool_choice", "thinking", "output_config", "output_format",
                                   "container", "mcp_servers", "metadata"), JSON),
    },
)  # fmt: skip


@given(FIELDS)
@settings(max_examples=100)
def test_any_value_of_any_field_is_read_or_refused(fields: dict[str, Any]) -> None:
    found = outcome(fields)
    if isinstance(found, CallError):
        assert found.code in ("invalid", "unsupported", "too_large")
        assert found.message.isprintable()
    else:
        assert found.chats[0].messages


@given(st.binary(max_size=200))
@example(b"")
@example(b'{"messages": ' + b"[" * 100_000)
@example(b'{"model": "\\ud800"}')
@example(b'{"model": "\xff"}')
@example(b'{"model": NaN}')
@example(b'{"model": "m", "messages": [], "top_k": ' + b"9" * 5_000 + b"}")
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    for read in (anthropic.parse_messages, anthropic.parse_count):
        with pytest.raises(CallError) as caught:
            read(body)
        assert caught.value.code == "invalid"
