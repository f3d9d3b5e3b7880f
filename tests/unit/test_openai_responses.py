"""The body of a response, to a chat: items, tools, formats, and what is refused because nothing is stored."""

import base64
import json
from typing import Any

import pytest

from covey.contracts.inference import IMAGES_MAX, TOOLS_MAX, AnswerFormat, Image, Message, ToolCall
from covey.dialects.base import ChatCall
from covey.dialects.openai import parse_response
from covey.dialects.openai_responses import RANGES
from covey.errors import CallError
from openai_answers import PNG, only_chat, refused

DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
CALL = {
    "type": "function_call",
    "id": "fc_1",
    "call_id": "call_1",
    "name": "add",
    "arguments": "{}",
    "status": "completed",
}
GIVEN = {"type": "function_call_output", "call_id": "call_1", "output": "4"}


def parse(items: Any = "hi", **fields: Any) -> ChatCall:
    return parse_response(json.dumps({"model": "m", "input": items, **fields}).encode())


def refusal(items: Any = "hi", **fields: Any) -> CallError:
    return refused(parse_response, {"model": "m", "input": items, **fields})


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": {}, "strict": True, **more}


def test_text_is_what_the_user_says() -> None:
    assert only_chat(parse()).messages == (Message("user", "hi"),)
    messages = only_chat(parse(instructions="Be brief.")).messages
    assert messages == (Message("system", "Be brief."), Message("user", "hi"))


def test_items() -> None:
    call = parse(
        [
            {"role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "See"}, {"type": "input_image", "image_url": DATA_URL, "detail": "low"},
                {"type": "input_text", "text": "?"},
            ]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [
                {"type": "output_text", "text": "I add.", "annotations": [], "logprobs": []},
                {"type": "refusal", "refusal": " No."},
            ]},
            CALL,
            {**CALL, "call_id": "call_2"},
            GIVEN,
            {**GIVEN, "call_id": "call_2", "output": [{"type": "input_text", "text": "5"}]},
            CALL,
        ]
    )  # fmt: skip
    assert only_chat(call).messages == (
        Message("system", "Be brief."),
        Message("user", "See?", images=(Image("image/png", PNG, 3),)),
        Message(
            "assistant", "I add. No.", tool_calls=(ToolCall("call_1", "add", "{}"), ToolCall("call_2", "add", "{}"))
        ),
        Message("tool", "4", tool_call_id="call_1"),
        Message("tool", "5", tool_call_id="call_2"),
        Message("assistant", "", tool_calls=(ToolCall("call_1", "add", "{}"),)),
    )
    assert call.fields["vision"] == "input[1].content[1].image_url"


def test_what_openai_keeps_or_charges_by_is_ignored() -> None:
    call = parse(
        store=True, service_tier="auto", user="u", safety_identifier="s", prompt_cache_key="k", max_tool_calls=3,
        include=["reasoning.encrypted_content"], reasoning={"effort": "high"}, truncation="auto", background=False,
        stream_options={"include_obfuscation": True}, stream=True,
    )  # fmt: skip
    assert call.stream
    assert only_chat(call) == only_chat(parse())


def test_settings() -> None:
    chat = only_chat(parse(max_output_tokens=5, temperature=0.5, top_p=0.25, parallel_tool_calls=True))
    assert (chat.max_tokens, chat.sampling.temperature, chat.sampling.top_p) == (5, 0.5, 0.25)
    assert chat.parallel_tool_calls is True
    assert chat.logprobs is None
    assert only_chat(parse(include=["message.output_text.logprobs"])).logprobs == 0
    assert only_chat(parse(include=["message.output_text.logprobs"], top_logprobs=3)).logprobs == 3
    assert only_chat(parse(top_logprobs=3)).logprobs == 3
    assert parse(top_logprobs=3).fields["logprobs"] == "top_logprobs"


@pytest.mark.parametrize(
    ("choice", "tools", "use", "forced"),
    [
        (None, "ab", "auto", ""),
        ("none", "ab", "none", ""),
        ("required", "ab", "required", ""),
        ({"type": "function", "name": "b"}, "ab", "required", "b"),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]},
            "b",
            "required",
            "",
        ),
        ({"type": "allowed_tools", "tools": [{"type": "function", "name": "b"}]}, "b", "auto", ""),
    ],
)
def test_tools(choice: Any, tools: str, use: str, forced: str) -> None:
    chat = only_chat(parse(tools=[tool("a", description="A."), tool("b", strict=None)], tool_choice=choice))
    assert ("".join(tool.name for tool in chat.tools), chat.tool_use, chat.forced_tool) == (tools, use, forced)
    assert chat.tools[-1].strict is False


def test_formats() -> None:
    assert only_chat(parse(text={})).format == AnswerFormat()
    assert only_chat(parse(text={"format": {"type": "text"}, "verbosity": "low"})).format == AnswerFormat()
    assert only_chat(parse(text={"format": {"type": "json_object"}})).format == AnswerFormat("json")
    wanted = {"type": "json_schema", "name": "sum", "schema": {"type": "object"}, "strict": True}
    assert only_chat(parse(text={"format": wanted})).format == AnswerFormat("schema", '{"type":"object"}', "sum")


def parts(*parts: dict[str, Any], role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": parts}]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"model": ""}, "invalid", "model"),
        ({"items": None}, "invalid", "input"),
        ({"items": []}, "invalid", "input"),
        ({"items": ["x"]}, "invalid", "input[0]"),
        ({"items": [{"role": "user", "content": "x"}] * 2049}, "invalid", "input"),
        ({"items": [{}]}, "invalid", "input[0].role"),
        ({"items": [{"role": "tool"}]}, "invalid", "input[0].role"),
        ({"items": [{"role": "user"}]}, "invalid", "input[0].content"),
        ({"items": parts({"type": "input_text"})}, "invalid", "input[0].content[0].text"),
        ({"items": parts({"type": "refusal"}, role="assistant")}, "invalid", "input[0].content[0].refusal"),
        ({"items": parts({"type": "input_file"})}, "unsupported", "input[0].content[0]"),
        ({"items": parts({"type": "input_image"}, role="system")}, "unsupported", "input[0].content[0]"),
        ({"items": parts({"type": "input_image"})}, "invalid", "input[0].content[0].image_url"),
        ({"items": parts({"type": "input_image", "file_id": "x"})}, "unsupported", "input[0].content[0].file_id"),
        ({"items": parts({"type": "input_image", "image_url": "https://x"})}, "unsupported",
         "input[0].content[0].image_url"),
        ({"items": parts(*[{"type": "input_image", "image_url": DATA_URL}] * (IMAGES_MAX + 1))}, "invalid",
         f"input[0].content[{IMAGES_MAX}].image_url"),
        ({"items": [{"type": "item_reference", "id": "x"}]}, "unsupported", "input[0]"),
        ({"items": [{"type": "computer_call"}]}, "unsupported", "input[0]"),
        ({"items": [{**CALL, "name": None}]}, "invalid", "input[0].name"),
        ({"items": [{**CALL, "call_id": None}]}, "invalid", "input[0].call_id"),
        ({"items": [{**CALL, "arguments": None}]}, "invalid", "input[0].arguments"),
        ({"items": [CALL] * (TOOLS_MAX + 1)}, "invalid", f"input[{TOOLS_MAX}]"),
        ({"items": [{**GIVEN, "call_id": ""}]}, "invalid", "input[0].call_id"),
        ({"items": [{**GIVEN, "output": None}]}, "invalid", "input[0].output"),
        ({"items": [{**GIVEN, "output": [{"type": "input_image", "image_url": DATA_URL}]}]}, "unsupported",
         "input[0].output[0]"),
        ({"tools": [{"type": "web_search"}]}, "unsupported", "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "invalid", "tools[0].name"),
        ({"tools": [tool("a"), tool("a")]}, "invalid", "tools"),
        ({"tool_choice": "required"}, "invalid", "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "invalid", "tool_choice.name"),
        ({"tool_choice": {"type": "mcp"}}, "unsupported", "tool_choice.type"),
        ({"tool_choice": {"type": "allowed_tools"}}, "invalid", "tool_choice.tools"),
        ({"tool_choice": {"type": "allowed_tools", "tools": [{"type": "mcp"}]}}, "unsupported",
         "tool_choice.tools[0].type"),
        ({"tool_choice": {"type": "allowed_tools", "tools": [{"type": "function"}]}}, "invalid",
         "tool_choice.tools[0]"),
        ({"text": {"format": {"type": "grammar"}}}, "unsupported", "text.format.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "invalid", "text.format.name"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "invalid", "text.format.schema"),
        ({"truncation": "x"}, "invalid", "truncation"),
        ({"metadata": {"a": 5}}, "invalid", "metadata[...]"),
        ({"metadata": {str(i): "" for i in range(17)}}, "invalid", "metadata"),
        ({"metadata": {"x" * 65: ""}}, "invalid", "metadata"),
        ({"metadata": {"x": "y" * 513}}, "invalid", "metadata"),
        ({"previous_response_id": "resp_1"}, "unsupported", "previous_response_id"),
        ({"conversation": "x"}, "unsupported", "conversation"),
        ({"conversation": {"id": "x"}}, "unsupported", "conversation"),
        ({"background": True}, "unsupported", "background"),
        ({"prompt": {"id": "x"}}, "unsupported", "prompt"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named(fields: dict[str, Any], code: str, param: str) -> None:
    error = refusal(**fields)
    assert (error.code, error.param) == (code, param)
    assert error.message.startswith(param.partition("[")[0])


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_ranges(name: str, low: int, high: int) -> None:
    for value in (low - 1, high + 1):
        assert refusal(**{name: value}).param == name
    parse(**{name: low})
    parse(**{name: high})
