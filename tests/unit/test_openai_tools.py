"""Tools, choices among them, and answer formats of a chat completion."""

import json
from typing import Any

import pytest

from covey.contracts.inference import TOOLS_MAX, AnswerFormat, Tool
from covey.dialects.base import ChatCall
from covey.dialects.openai import parse_chat
from covey.dialects.openai_tools import DESCRIPTION_CHARS_MAX
from covey.errors import CallError
from openai_answers import only_chat, refused

BASE: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ADD = {"name": "add", "description": "Adds.", "parameters": SCHEMA, "strict": True}


def entry(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def parse(**fields: Any) -> ChatCall:
    return parse_chat(json.dumps({**BASE, **fields}).encode())


def refusal(**fields: Any) -> CallError:
    return refused(parse_chat, {**BASE, **fields})


def nested(levels: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for _ in range(levels - 1):
        inner = {"not": inner}
    return inner


def test_tools() -> None:
    chat = only_chat(
        parse(tools=[{"type": "function", "function": ADD}, entry("none-at_all")], parallel_tool_calls=False)
    )
    first, second = chat.tools
    assert (first.name, first.description, first.strict) == ("add", "Adds.", True)
    assert json.loads(first.parameters) == SCHEMA
    assert second == Tool("none-at_all")
    assert (chat.tool_use, chat.forced_tool, chat.parallel_tool_calls) == ("auto", "", False)


@pytest.mark.parametrize(
    ("choice", "tools", "use", "forced"),
    [
        (None, "ab", "auto", ""),
        ("auto", "ab", "auto", ""),
        ("none", "ab", "none", ""),
        ("required", "ab", "required", ""),
        ({"type": "function", "function": {"name": "b"}}, "ab", "required", "b"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [entry("b")]}}, "b", "required", ""),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [entry("b"), entry("a")]}},
            "ab",
            "auto",
            "",
        ),
    ],
)
def test_choices(choice: Any, tools: str, use: str, forced: str) -> None:
    chat = only_chat(parse(tools=[entry("a"), entry("b")], tool_choice=choice))
    assert ("".join(tool.name for tool in chat.tools), chat.tool_use, chat.forced_tool) == (tools, use, forced)


def test_no_tools_need_no_choice() -> None:
    for word in ("auto", "none"):
        assert only_chat(parse(tool_choice=word)).tools == ()
    assert only_chat(parse(tools=[], function_call="none", functions=[])).tools == ()


@pytest.mark.parametrize(("choice", "use", "forced"), [
    (None, "auto", ""), ("auto", "auto", ""), ("none", "none", ""), ({"name": "add"}, "required", "add"),
])  # fmt: skip
def test_functions_are_tools_of_which_one_is_called(choice: Any, use: str, forced: str) -> None:
    call = parse(functions=[ADD], function_call=choice)
    chat = only_chat(call)
    assert (chat.tools[0].name, chat.tool_use, chat.forced_tool) == ("add", use, forced)
    assert chat.parallel_tool_calls is False
    assert call.fields["tools"] == "functions"


ALLOWED = {"type": "allowed_tools"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": "x"}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [entry("")]}, "tools[0].function.name"),
        ({"tools": [entry("a b")]}, "tools[0].function.name"),
        ({"tools": [entry("x" * 65)]}, "tools[0].function.name"),
        ({"tools": [entry("a"), entry("a")]}, "tools"),
        ({"tools": [entry(f"a{i}") for i in range(TOOLS_MAX + 1)]}, "tools"),
        ({"tools": [entry("a", description="x" * (DESCRIPTION_CHARS_MAX + 1))]}, "tools[0].function.description"),
        ({"tools": [entry("a", parameters=[])]}, "tools[0].function.parameters"),
        ({"tools": [entry("a", parameters=nested(70))]}, "tools[0].function.parameters"),
        ({"tools": [entry("a", parameters={"x": "y" * 100_001})]}, "tools[0].function.parameters"),
        ({"tools": [entry(f"a{i}", parameters={"x": "y" * 90_000}) for i in range(6)]}, "tools"),
        ({"tools": [entry("a", strict="yes")]}, "tools[0].function.strict"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": {"type": "function", "function": {"name": "b"}}}, "tool_choice.function.name"),
        ({"tool_choice": ALLOWED}, "tool_choice.allowed_tools"),
        ({"tool_choice": {**ALLOWED, "allowed_tools": {"mode": "auto", "tools": []}}},
         "tool_choice.allowed_tools.tools"),
        ({"tool_choice": {**ALLOWED, "allowed_tools": {"mode": "auto", "tools": [entry("b")]}}},
         "tool_choice.allowed_tools.tools[0]"),
        ({"tool_choice": {**ALLOWED, "allowed_tools": {"mode": "auto", "tools": [{"type": "function"}]}}},
         "tool_choice.allowed_tools.tools[0].function"),
        ({"parallel_tool_calls": "x"}, "parallel_tool_calls"),
        ({"functions": [{"name": ""}]}, "functions[0].name"),
        ({"functions": [ADD, ADD]}, "functions"),
        ({"functions": [ADD], "tools": [entry("a")]}, "functions"),
        ({"functions": [ADD], "function_call": {"name": "b"}}, "function_call.name"),
        ({"functions": [ADD], "function_call": "required"}, "function_call"),
        ({"function_call": "auto"}, "function_call"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": []}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}},
         "response_format.json_schema.name"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": nested(66)}}},
         "response_format.json_schema.schema"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named(fields: dict[str, Any], param: str) -> None:
    error = refusal(
        **({"tools": [entry("a")]} if "tool_choice" in fields and fields["tool_choice"] != "required" else {}), **fields
    )
    assert (error.code, error.param) == ("invalid", param)
    assert error.message.startswith(param.partition("[")[0])
    assert len(error.message) < 400


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"type": "x" * 1000}]}, "tools[0].type"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice.type"),
        ({"tool_choice": {**ALLOWED, "allowed_tools": {"mode": "auto", "tools": [{"type": "mcp"}]}}},
         "tool_choice.allowed_tools.tools[0].type"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = refusal(**fields)
    assert (error.code, error.param) == ("unsupported", param)
    assert len(error.message) < 400


def test_formats() -> None:
    assert only_chat(parse(response_format={"type": "text"})).format == AnswerFormat()
    assert only_chat(parse(response_format={"type": "json_object"})).format == AnswerFormat("json")
    wanted = {
        "name": "sum",
        "schema": {"type": "array", "items": [1, {"x": 10**30}]},
        "strict": True,
        "description": "y",
    }
    found = only_chat(parse(response_format={"type": "json_schema", "json_schema": wanted})).format
    assert (found.kind, found.name) == ("schema", "sum")
    assert json.loads(found.schema) == wanted["schema"]
    assert parse().fields["json"] == "response_format"
