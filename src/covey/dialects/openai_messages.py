"""The messages of a chat completion, to ours. Pure.

Source: the OpenAI API reference, "Create chat completion": `messages`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from covey.contracts.inference import MESSAGES_MAX, TOOLS_MAX, Image, Message, Speaker, ToolCall
from covey.dialects.bodies import CAUSE_CHARS_MAX
from covey.dialects.openai_tools import check_tool_name
from covey.dialects.pictures import check_picture_count, picture_of_url
from covey.errors import CallError

CALL_ID_CHARS_MAX = 200


class ImageUrl(msgspec.Struct):
    """A picture, as a `data:` URL."""

    url: str
    detail: str | None = None


class Part(msgspec.Struct):
    """A part of a message's content: `text`, `image_url` or `refusal`."""

    type: str
    text: str | None = None
    image_url: ImageUrl | None = None
    refusal: str | None = None


class CalledFunction(msgspec.Struct):
    """What an assistant called; `arguments` is JSON as text."""

    name: str
    arguments: str


class CalledTool(msgspec.Struct):
    """One of an assistant's `tool_calls`."""

    id: str
    type: str = "function"
    function: CalledFunction | None = None


class ChatMessage(msgspec.Struct):
    """One of `messages`."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    refusal: str | None = None
    audio: dict[str, Any] | None = None


SPEAKERS: dict[str, Speaker] = {
    "developer": "system",  # OpenAI's newer name for it
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


@dataclass(slots=True)
class _Reading:
    """What earlier messages leave to later ones. `function_call_id`: ours, for a call that has none."""

    pictures: int = 0
    first_picture: str = ""
    function_call_id: str = ""
    messages: list[Message] = field(default_factory=list[Message])


def read_messages(messages: list[ChatMessage]) -> tuple[tuple[Message, ...], str]:
    """All of them, and the field of the first picture; "": there is none.

    Raises:
        CallError: `invalid` or `unsupported`, with the field.
    """
    if not messages:
        raise CallError("invalid", "messages must not be empty.", param="messages")
    if len(messages) > MESSAGES_MAX:
        raise CallError("invalid", f"messages holds more than {MESSAGES_MAX} messages.", param="messages")
    reading = _Reading()
    for index, message in enumerate(messages):
        reading.messages.append(_message(message, index, reading))
    return tuple(reading.messages), reading.first_picture


def check_call_id(call_id: str | None, param: str) -> str:
    """The id of a call, as the client gave it.

    Raises:
        CallError: `invalid`: none, or too long.
    """
    if not call_id or len(call_id) > CALL_ID_CHARS_MAX:
        raise CallError("invalid", f"{param} must have 1 to {CALL_ID_CHARS_MAX} characters.", param=param)
    return call_id


def _message(message: ChatMessage, index: int, reading: _Reading) -> Message:
    param = f"messages[{index}]"
    role = message.role
    if message.audio:
        raise CallError("unsupported", f"{param}.audio is not supported: send text.", param=f"{param}.audio")
    content = message.content
    images: tuple[Image, ...] = ()
    if isinstance(content, list):
        content, images = _parts(content, param, role, reading)
    if role == "assistant":
        calls = _calls(message, index, reading)
        return Message("assistant", content or message.refusal or "", message.name or "", tool_calls=calls)
    if content is None:
        param = f"{param}.content"
        raise CallError("invalid", f"{param} must not be null for the role {role}.", param=param)
    answered = ""
    if role == "tool":
        answered = check_call_id(message.tool_call_id, f"{param}.tool_call_id")
    elif role == "function":
        answered = reading.function_call_id
    return Message(SPEAKERS[role], content, message.name or "", images, tool_call_id=answered)


def _parts(parts: list[Part], param: str, role: str, reading: _Reading) -> tuple[str, tuple[Image, ...]]:
    texts: list[str] = []
    images: list[Image] = []
    chars = 0
    for number, part in enumerate(parts):
        if part.type == "text" and part.text is not None:  # nearly all of them, and there may be very many
            texts.append(part.text)
            chars += len(part.text)
            continue
        at = f"{param}.content[{number}]"
        if part.type == "image_url" and role == "user":
            images.append(_picture(part, f"{at}.image_url", chars, reading))
            continue
        texts.append(_text(part, at, role))
        chars += len(texts[-1])
    return "".join(texts), tuple(images)


def _text(part: Part, param: str, role: str) -> str:
    if part.type == "refusal" and role == "assistant" and part.refusal is not None:
        return part.refusal
    if part.type == "text" or (part.type == "refusal" and role == "assistant"):
        raise CallError("invalid", f"{param}.{part.type} is required.", param=f"{param}.{part.type}")
    kind = part.type[:CAUSE_CHARS_MAX]
    raise CallError("unsupported", f"{param}: the role {role} takes no parts of type {kind!r} here.", param=param)


def _picture(part: Part, param: str, chars: int, reading: _Reading) -> Image:
    if part.image_url is None:
        raise CallError("invalid", f"{param} is required.", param=param)
    reading.pictures += 1
    reading.first_picture = reading.first_picture or param
    check_picture_count(reading.pictures, param)
    return picture_of_url(part.image_url.url, param, at=chars)


def _calls(message: ChatMessage, index: int, reading: _Reading) -> tuple[ToolCall, ...]:
    param = f"messages[{index}]"
    if message.function_call is not None:
        called = message.function_call
        check_tool_name(called.name, f"{param}.function_call.name")
        reading.function_call_id = f"call_{index}"
        return (ToolCall(reading.function_call_id, called.name, called.arguments),)
    calls = message.tool_calls or []
    if len(calls) > TOOLS_MAX:
        param = f"{param}.tool_calls"
        raise CallError("invalid", f"{param} holds more than {TOOLS_MAX} calls.", param=param)
    return tuple(_call(call, f"{param}.tool_calls[{number}]") for number, call in enumerate(calls))


def _call(call: CalledTool, param: str) -> ToolCall:
    if call.type != "function":
        kind = call.type[:CAUSE_CHARS_MAX]
        raise CallError("unsupported", f"{param}: calls of type {kind!r} are not supported.", param=f"{param}.type")
    if call.function is None:
        raise CallError("invalid", f"{param}.function is required.", param=f"{param}.function")
    check_tool_name(call.function.name, f"{param}.function.name")
    return ToolCall(check_call_id(call.id, f"{param}.id"), call.function.name, call.function.arguments)
