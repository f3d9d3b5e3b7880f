"""The body of Ollama's `POST /api/chat` to our chats. Pure.

Source: Ollama's API reference, "Generate a chat completion".
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from covey.contracts.inference import (
    MESSAGES_MAX,
    TOOLS_MAX,
    Capability,
    ChatRequest,
    Image,
    Message,
    Speaker,
    Tool,
    ToolCall,
)
from covey.dialects.base import ChatCall
from covey.dialects.bodies import decode, json_text, model_name
from covey.dialects.call_arguments import ARGUMENTS_BYTES_MAX
from covey.dialects.ollama_options import FIELDS, Answering, settings
from covey.dialects.ollama_writer import LineWriter, chat_fields
from covey.dialects.pictures import check_picture_count, picture_of_base64
from covey.errors import CallError

TOOL_NAME_CHARS_MAX = 128


class _CalledFunction(msgspec.Struct):
    name: str
    arguments: dict[str, Any] | None = None


class _Call(msgspec.Struct):
    function: _CalledFunction
    id: str | None = None


class _Message(msgspec.Struct):
    role: Speaker
    content: str | None = None
    images: list[str] | None = None
    tool_calls: list[_Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class _Function(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _Tool(msgspec.Struct):
    function: _Function
    type: str | None = None


class ChatBody(Answering):
    """What a client sends."""

    messages: list[_Message] | None = None
    tools: list[_Tool] | None = None


_decoder = msgspec.json.Decoder(ChatBody)


def parse_chat(body: bytes) -> ChatCall:
    """A request body to ours. Without messages it only asks that the model be ready.

    Raises:
        CallError: `invalid` or `unsupported`, with `param` naming the field.
    """
    sent = decode(body, _decoder)
    model_name(sent.model)
    how = settings(sent)
    messages = _messages(sent.messages or [])
    tools = _tools(sent.tools or [])
    writer = partial(LineWriter, names=chat_fields, thinking=sent.is_thinking_shown, logprobs=how.logprobs is not None)
    chat = ChatRequest(
        model=sent.model,
        messages=messages,
        max_tokens=how.max_tokens,
        stop=how.stop,
        sampling=how.sampling,
        tools=tools,
        format=how.format,
        logprobs=how.logprobs,
    )
    chats = (chat,) if messages else ()
    fields: dict[Capability, str] = {**FIELDS, "vision": "messages"}
    return ChatCall(chats, sent.is_streamed, writer, fields, sent.model)


def pictures(images: Sequence[str] | None, param: str) -> tuple[Image, ...]:
    """Pictures in base64; they stand before the text.

    Raises:
        CallError: as `picture_of_base64`.
    """
    return tuple(picture_of_base64(image, f"{param}[{number}]") for number, image in enumerate(images or ()))


def _messages(sent: Sequence[_Message]) -> tuple[Message, ...]:
    if len(sent) > MESSAGES_MAX:
        raise CallError("invalid", f"messages holds more than {MESSAGES_MAX} messages.", param="messages")
    check_picture_count(sum(len(message.images or ()) for message in sent), "messages")
    messages: list[Message] = []
    waiting: list[ToolCall] = []
    for index, message in enumerate(sent):
        param = f"messages[{index}]"
        calls = _calls(message, index)
        waiting = list(calls) or waiting
        messages.append(
            Message(
                message.role,
                message.content or "",
                message.tool_name or "",
                images=pictures(message.images, f"{param}.images"),
                tool_calls=calls,
                tool_call_id=_answered(message, waiting) if message.role == "tool" else "",
            )
        )
    return tuple(messages)


def _calls(message: _Message, index: int) -> tuple[ToolCall, ...]:
    sent = message.tool_calls or []
    param = f"messages[{index}]"
    if sent and message.role != "assistant":
        raise CallError("invalid", f"{param}.tool_calls is for the role assistant alone.", param=f"{param}.tool_calls")
    if len(sent) > TOOLS_MAX:
        raise CallError("invalid", f"{param}.tool_calls holds more than {TOOLS_MAX}.", param=f"{param}.tool_calls")
    calls: list[ToolCall] = []
    for number, call in enumerate(sent):
        where = f"{param}.tool_calls[{number}].function"
        _check_name(call.function.name, where)
        arguments = json_text(call.function.arguments or {}, f"{where}.arguments", bytes_max=ARGUMENTS_BYTES_MAX)
        # Ollama's calls need no id; those who answer for a model may want one.
        calls.append(ToolCall(call.id or f"call_{index}_{number}", call.function.name, arguments))
    return tuple(calls)


def _answered(message: _Message, waiting: list[ToolCall]) -> str:
    """The id of the call that a tool answers: the one it names, else the first that waits and has its name, or any."""
    for call in waiting:
        if message.tool_call_id == call.id or (not message.tool_call_id and message.tool_name in (None, "", call.name)):
            waiting.remove(call)
            return call.id
    return message.tool_call_id or ""


def _tools(sent: Sequence[_Tool]) -> tuple[Tool, ...]:
    if len(sent) > TOOLS_MAX:
        raise CallError("invalid", f"tools holds more than {TOOLS_MAX} tools.", param="tools")
    return tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(sent))


def _tool(tool: _Tool, param: str) -> Tool:
    if tool.type not in (None, "", "function"):
        raise CallError("unsupported", f"{param}.type: a tool can be a function only.", param=f"{param}.type")
    function = tool.function
    _check_name(function.name, f"{param}.function")
    parameters = "" if function.parameters is None else json_text(function.parameters, f"{param}.function.parameters")
    return Tool(function.name, function.description or "", parameters)


def _check_name(name: str, param: str) -> None:
    if not 0 < len(name) <= TOOL_NAME_CHARS_MAX:
        raise CallError(
            "invalid", f"{param}.name must have 1 to {TOOL_NAME_CHARS_MAX} characters.", param=f"{param}.name"
        )
