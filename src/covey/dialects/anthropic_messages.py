"""The bodies of `POST /v1/messages` and `/v1/messages/count_tokens` to our chats. Pure.

Source: the Anthropic API reference, "Create a Message", "Count tokens in a Message".
"""

import re
from functools import partial
from typing import Any, Literal

import msgspec

from covey.contracts.inference import TOOLS_MAX, AnswerFormat, Capability, ChatRequest, Message, Sampling, Tool
from covey.dialects.anthropic_content import SentMessage, Text, conversation, system_text
from covey.dialects.anthropic_writer import MessageWriter
from covey.dialects.base import ChatCall
from covey.dialects.bodies import (
    CAUSE_CHARS_MAX,
    TOKEN_COUNT_MAX,
    Range,
    check_ranges,
    decode,
    json_text,
    model_name,
    stop_sequences,
)
from covey.errors import CallError

_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")


class _Tool(msgspec.Struct):
    name: str | None = None
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class _ToolChoice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Thinking(msgspec.Struct):
    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    display: str | None = None


class _Format(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class _OutputConfig(msgspec.Struct):
    format: _Format | None = None


class MessagesBody(msgspec.Struct):
    """What a client sends."""

    model: str
    messages: list[SentMessage]
    max_tokens: int | None = None
    system: str | list[Text] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    tools: list[_Tool] | None = None
    tool_choice: _ToolChoice | None = None
    thinking: _Thinking | None = None
    output_config: _OutputConfig | None = None
    output_format: _Format | None = None
    container: Any = None
    mcp_servers: list[Any] | None = None


_decoder = msgspec.json.Decoder(MessagesBody)

RANGES: tuple[Range, ...] = (
    ("max_tokens", 1, TOKEN_COUNT_MAX),
    ("temperature", 0, 1),
    ("top_p", 0, 1),
    ("top_k", 0, 1_000_000),
)


def parse_messages(body: bytes) -> ChatCall:
    """A request body to ours.

    Raises:
        CallError: `invalid` or `unsupported`, with `param` naming the field.
    """
    sent = decode(body, _decoder)
    if sent.max_tokens is None:
        raise CallError("invalid", "max_tokens is required.", param="max_tokens")
    chat = _chat(sent)
    writer = partial(MessageWriter, chat=chat, thinking=_is_thinking_shown(sent.thinking))
    return ChatCall((chat,), bool(sent.stream), writer, _fields(sent), chat.model)


def parse_count(body: bytes) -> ChatRequest:
    """The body of a request to count: a message's, where `max_tokens` may be left out.

    Raises:
        CallError: as `parse_messages`.
    """
    return _chat(decode(body, _decoder))


def _chat(sent: MessagesBody) -> ChatRequest:
    model_name(sent.model)
    check_ranges(sent, RANGES)
    _refuse_unsupported(sent)
    messages = conversation(sent.messages)
    if sent.system:
        messages = (Message("system", system_text(sent.system)), *messages)
    tools = _tools(sent.tools or [])
    tool_use, forced_tool = _tool_use(sent.tool_choice, tools)
    choice = sent.tool_choice
    return ChatRequest(
        model=sent.model,
        messages=messages,
        max_tokens=sent.max_tokens,
        stop=stop_sequences(sent.stop_sequences, "stop_sequences"),
        sampling=Sampling(temperature=sent.temperature, top_p=sent.top_p, top_k=sent.top_k),
        tools=tools,
        tool_use=tool_use,
        forced_tool=forced_tool,
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
        format=_answer_format(sent),
    )


def _refuse_unsupported(sent: MessagesBody) -> None:
    for name, asked in (("container", sent.container), ("mcp_servers", sent.mcp_servers)):
        if asked:
            raise CallError("unsupported", f"{name} is not supported here: nothing runs but the model.", param=name)


def _tools(sent: list[_Tool]) -> tuple[Tool, ...]:
    if len(sent) > TOOLS_MAX:
        raise CallError("invalid", f"tools holds more than {TOOLS_MAX} tools.", param="tools")
    tools = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(sent))
    if len({tool.name for tool in tools}) < len(tools):
        raise CallError("invalid", "tools: two have the same name.", param="tools")
    return tools


def _tool(tool: _Tool, param: str) -> Tool:
    if tool.type is not None and tool.type != "custom":
        kind = tool.type[:CAUSE_CHARS_MAX]
        raise CallError(
            "unsupported",
            f"{param}.type: {kind} is a tool of Anthropic's own, which is not supported here. Give it as a custom "
            "tool, with its input_schema.",
            param=f"{param}.type",
        )
    if tool.name is None or not _TOOL_NAME.fullmatch(tool.name):
        raise CallError("invalid", f"{param}.name must have 1 to 128 letters, digits, _ or -.", param=f"{param}.name")
    if tool.input_schema is None:
        raise CallError("invalid", f"{param}.input_schema is required.", param=f"{param}.input_schema")
    schema = json_text(tool.input_schema, f"{param}.input_schema")
    return Tool(tool.name, tool.description or "", schema, strict=bool(tool.strict))


def _tool_use(choice: _ToolChoice | None, tools: tuple[Tool, ...]) -> tuple[Literal["auto", "none", "required"], str]:
    if choice is None or choice.type == "auto":
        return "auto", ""
    if choice.type == "none":
        return "none", ""
    if not tools:
        raise CallError("invalid", f"tool_choice {choice.type} needs tools.", param="tool_choice")
    if choice.type == "any":
        return "required", ""
    if choice.name not in {tool.name for tool in tools}:
        raise CallError("invalid", "tool_choice.name must be the name of one of the tools.", param="tool_choice.name")
    return "required", choice.name or ""


def _answer_format(sent: MessagesBody) -> AnswerFormat:
    if sent.output_config is not None and sent.output_config.format is not None:
        return AnswerFormat("schema", json_text(sent.output_config.format.schema, "output_config.format.schema"))
    if sent.output_format is not None:
        return AnswerFormat("schema", json_text(sent.output_format.schema, "output_format.schema"))
    return AnswerFormat()


def _is_thinking_shown(thinking: _Thinking | None) -> bool:
    """Clients that did not ask for it take the first block for the answer."""
    return thinking is not None and thinking.type != "disabled" and thinking.display != "omitted"


def _fields(sent: MessagesBody) -> dict[Capability, str]:
    fields: dict[Capability, str] = {"chat": "model", "completion": "model", "tools": "tools", "vision": "messages"}
    fields["json"] = "output_format" if sent.output_format is not None else "output_config.format"
    return fields
