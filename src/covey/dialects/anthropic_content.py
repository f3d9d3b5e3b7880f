"""The messages of Anthropic's requests, block by block, to ours. Pure.

Source: the Anthropic API reference, "Create a Message", `messages`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from covey.contracts.inference import MESSAGES_MAX, Image, Message, ToolCall
from covey.dialects.bodies import json_text
from covey.dialects.call_arguments import ARGUMENTS_BYTES_MAX
from covey.dialects.pictures import check_picture_count, picture_of_base64
from covey.errors import CallError

BETWEEN_TEXTS = "\n"
"""What separates two blocks of text that follow each other: our messages hold one text."""
ERROR_MARK = "Error: "
"""Before what a tool says that failed (`is_error`): chat templates know no such flag."""


class Text(msgspec.Struct, tag="text"):
    """What somebody says. `cache_control` and `citations` are ignored."""

    text: str


class _Source(msgspec.Struct):
    type: str
    data: str | None = None


class Picture(msgspec.Struct, tag="image"):
    """What somebody shows."""

    source: _Source


class ToolUse(msgspec.Struct, tag="tool_use"):
    """A call that the model asked for."""

    id: str
    name: str
    input: dict[str, Any]


class _Thinking(msgspec.Struct, tag="thinking"):
    pass


class _RedactedThinking(msgspec.Struct, tag="redacted_thinking"):
    pass


class _Document(msgspec.Struct, tag="document"):
    pass


class _SearchResult(msgspec.Struct, tag="search_result"):
    pass


class _ServerToolUse(msgspec.Struct, tag="server_tool_use"):
    pass


class _WebSearchResult(msgspec.Struct, tag="web_search_tool_result"):
    pass


class _WebFetchResult(msgspec.Struct, tag="web_fetch_tool_result"):
    pass


class _CodeResult(msgspec.Struct, tag="code_execution_tool_result"):
    pass


class _ContainerUpload(msgspec.Struct, tag="container_upload"):
    pass


class _ToolReference(msgspec.Struct, tag="tool_reference"):
    pass


class ToolResult(msgspec.Struct, tag="tool_result"):
    """What came of a call."""

    tool_use_id: str
    content: str | list[Text | Picture | _Document | _SearchResult | _ToolReference] | None = None
    is_error: bool | None = None


_Block = (
    Text
    | Picture
    | ToolUse
    | ToolResult
    | _Thinking
    | _RedactedThinking
    | _Document
    | _SearchResult
    | _ServerToolUse
    | _WebSearchResult
    | _WebFetchResult
    | _CodeResult
    | _ContainerUpload
    | _ToolReference
)


class SentMessage(msgspec.Struct):
    """One of `messages`."""

    role: Literal["user", "assistant", "system"]
    content: str | list[_Block]


class _Said:
    """Text and pictures of one message, put together from its blocks."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._chars = 0
        self._after_text = False
        self.images: list[Image] = []

    def add(self, block: Text | Picture, param: str) -> None:
        if isinstance(block, Picture):
            self.images.append(_image(block.source, f"{param}.source", at=self._chars))
            self._after_text = False
            return
        text = BETWEEN_TEXTS + block.text if self._after_text else block.text
        self._texts.append(text)
        self._chars += len(text)
        self._after_text = True

    @property
    def text(self) -> str:
        return "".join(self._texts)


def conversation(sent: Sequence[SentMessage]) -> tuple[Message, ...]:
    """`messages` to ours: a message that holds results of tools becomes one for each of these, and one for the rest.

    Raises:
        CallError: `invalid` or `unsupported`, with `param` naming the block.
    """
    if not sent:
        raise CallError("invalid", "messages must not be empty.", param="messages")
    if len(sent) > MESSAGES_MAX:
        raise _too_many()
    messages: list[Message] = []
    names: dict[str, str] = {}
    for index, message in enumerate(sent):
        messages.extend(_messages(message, f"messages[{index}]", names))
        names.update((call.id, call.name) for call in messages[-1].tool_calls)
    if len(messages) > MESSAGES_MAX:
        raise _too_many()
    check_picture_count(sum(len(message.images) for message in messages), "messages")
    return tuple(messages)


def _too_many() -> CallError:
    return CallError(
        "invalid", f"messages holds more than {MESSAGES_MAX} messages and results of tools.", param="messages"
    )


def system_text(system: str | list[Text]) -> str:
    """The system prompt, of one text or several."""
    return system if isinstance(system, str) else BETWEEN_TEXTS.join(block.text for block in system)


def _messages(message: SentMessage, param: str, names: dict[str, str]) -> list[Message]:
    if isinstance(message.content, str):
        return [Message(message.role, message.content)]
    said, calls, messages = _Said(), list[ToolCall](), list[Message]()
    for block, where in _known(message.content, f"{param}.content"):
        _check_role(block, message.role, where)
        if isinstance(block, ToolUse):
            arguments = json_text(block.input, f"{where}.input", bytes_max=ARGUMENTS_BYTES_MAX)
            calls.append(ToolCall(block.id, block.name, arguments))
        elif isinstance(block, ToolResult):
            messages.append(_result(block, where, names))
        else:
            said.add(block, where)
    if said.text or said.images or calls or not messages:
        messages.append(Message(message.role, said.text, images=tuple(said.images), tool_calls=tuple(calls)))
    return messages


def _known(blocks: Sequence[msgspec.Struct], param: str) -> Iterator[tuple[Text | Picture | ToolUse | ToolResult, str]]:
    """The blocks that count, each with its place. What was thought before is left out, as Anthropic does, too."""
    for number, block in enumerate(blocks):
        where = f"{param}[{number}]"
        if isinstance(block, Text | Picture | ToolUse | ToolResult):
            yield block, where
        elif not isinstance(block, _Thinking | _RedactedThinking):
            kind = type(block).__struct_config__.tag
            raise CallError("unsupported", f"{where}: blocks of type {kind} are not supported here.", param=where)


def _check_role(block: Text | Picture | ToolUse | ToolResult, role: str, param: str) -> None:
    if isinstance(block, Text):
        return
    if role != ("assistant" if isinstance(block, ToolUse) else "user"):
        kind = type(block).__struct_config__.tag
        raise CallError("invalid", f"{param}: a message of the role {role} holds no {kind}.", param=param)


def _result(block: ToolResult, param: str, names: dict[str, str]) -> Message:
    name = names.get(block.tool_use_id)
    if name is None:
        raise CallError(
            "invalid",
            f"{param}.tool_use_id names no tool_use block of a message before it.",
            param=f"{param}.tool_use_id",
        )
    said = _Said()
    if isinstance(block.content, str):
        said.add(Text(block.content), param)
    else:
        for part, where in _known(block.content or (), f"{param}.content"):
            assert isinstance(part, Text | Picture), part  # the type of `content` has no others that are known
            said.add(part, where)
    mark = ERROR_MARK if block.is_error else ""
    images = tuple(replace(image, at=image.at + len(mark)) for image in said.images)
    return Message("tool", mark + said.text, name, images=images, tool_call_id=block.tool_use_id)


def _image(source: _Source, param: str, *, at: int) -> Image:
    if source.type != "base64":
        raise CallError(
            "unsupported",
            f"{param}: this service fetches no pictures from elsewhere. Send the picture itself, with the source's "
            "type base64.",
            param=param,
        )
    if source.data is None:
        raise CallError("invalid", f"{param}.data is required.", param=f"{param}.data")
    return picture_of_base64(source.data, f"{param}.data", at=at)
