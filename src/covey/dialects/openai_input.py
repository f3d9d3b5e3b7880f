"""The input items of a response, to our messages. Pure.

Source: the OpenAI API reference, "Create a model response": `input`.
"""

from typing import Literal

import msgspec
from msgspec.structs import replace

from covey.contracts.inference import MESSAGES_MAX, TOOLS_MAX, Image, Message, ToolCall
from covey.dialects.bodies import CAUSE_CHARS_MAX
from covey.dialects.openai_messages import SPEAKERS, check_call_id
from covey.dialects.openai_tools import check_tool_name
from covey.dialects.pictures import check_picture_count, picture_of_url
from covey.errors import CallError


class InputPart(msgspec.Struct):
    """A part of an item's content: `input_text`, `output_text`, `refusal` or `input_image`."""

    type: str
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    file_id: str | None = None


class InputItem(msgspec.Struct):
    """A message, an assistant's call of a function, or what the function gave."""

    type: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None


class InputReader:
    """Items in, messages out. `first_picture`: the field of the first picture; "": there is none."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.first_picture = ""
        self._pictures = 0

    def read(self, items: str | list[InputItem]) -> None:
        """All that the client sent.

        Raises:
            CallError: `invalid` or `unsupported`, with the field.
        """
        if isinstance(items, str):
            self.messages.append(Message("user", items))
            return
        if not 0 < len(items) <= MESSAGES_MAX:
            raise CallError("invalid", f"input must hold 1 to {MESSAGES_MAX} items.", param="input")
        for index, item in enumerate(items):
            self._item(item, f"input[{index}]")

    def _item(self, item: InputItem, param: str) -> None:
        match item.type:
            case None | "message":
                self.messages.append(self._message(item, param))
            case "function_call":
                self._add_call(_call(item, param), param)
            case "function_call_output":
                self.messages.append(self._output(item, param))
            case "reasoning":
                pass  # what was thought in earlier turns is not shown to a model again
            case "item_reference":
                raise CallError(
                    "unsupported",
                    f"{param}: nothing is stored here that could be referred to; send the item itself.",
                    param=param,
                )
            case kind:
                kind = kind[:CAUSE_CHARS_MAX]
                raise CallError("unsupported", f"{param}: items of type {kind!r} are not supported.", param=param)

    def _message(self, item: InputItem, param: str) -> Message:
        if item.role is None:
            raise CallError("invalid", f"{param}.role is required.", param=f"{param}.role")
        text, images = self._content(item.content, f"{param}.content", item.role)
        return Message(SPEAKERS[item.role], text, images=images)

    def _output(self, item: InputItem, param: str) -> Message:
        call_id = check_call_id(item.call_id, f"{param}.call_id")
        text, _ = self._content(item.output, f"{param}.output", "tool")
        return Message("tool", text, tool_call_id=call_id)

    def _add_call(self, call: ToolCall, param: str) -> None:
        """Calls in a row are one turn of the assistant's, together with what it said before."""
        if self.messages and self.messages[-1].role == "assistant":
            last = self.messages.pop()
            if len(last.tool_calls) >= TOOLS_MAX:
                raise CallError("invalid", f"{param}: more than {TOOLS_MAX} calls in a row.", param=param)
        else:
            last = Message("assistant", "")
        self.messages.append(replace(last, tool_calls=(*last.tool_calls, call)))

    def _content(self, content: str | list[InputPart] | None, param: str, role: str) -> tuple[str, tuple[Image, ...]]:
        if content is None:
            raise CallError("invalid", f"{param} is required.", param=param)
        if isinstance(content, str):
            return content, ()
        texts: list[str] = []
        images: list[Image] = []
        chars = 0
        for number, part in enumerate(content):
            if part.type in ("input_text", "output_text") and part.text is not None:  # nearly all of them
                texts.append(part.text)
                chars += len(part.text)
                continue
            at = f"{param}[{number}]"
            if part.type == "input_image" and role == "user":
                images.append(self._picture(part, at, chars))
            else:
                texts.append(_text(part, at, role))
                chars += len(texts[-1])
        return "".join(texts), tuple(images)

    def _picture(self, part: InputPart, param: str, chars: int) -> Image:
        if part.file_id:
            param = f"{param}.file_id"
            raise CallError("unsupported", f"{param}: no files are kept here; send image_url.", param=param)
        param = f"{param}.image_url"
        if part.image_url is None:
            raise CallError("invalid", f"{param} is required.", param=param)
        self._pictures += 1
        self.first_picture = self.first_picture or param
        check_picture_count(self._pictures, param)
        return picture_of_url(part.image_url, param, at=chars)


def _text(part: InputPart, param: str, role: str) -> str:
    if part.type == "refusal" and part.refusal is not None:
        return part.refusal
    if part.type in ("input_text", "output_text", "refusal"):
        field = "refusal" if part.type == "refusal" else "text"
        raise CallError("invalid", f"{param}.{field} is required.", param=f"{param}.{field}")
    kind = part.type[:CAUSE_CHARS_MAX]
    raise CallError("unsupported", f"{param}: the role {role} takes no parts of type {kind!r} here.", param=param)


def _call(item: InputItem, param: str) -> ToolCall:
    name = item.name or ""
    check_tool_name(name, f"{param}.name")
    call_id = check_call_id(item.call_id, f"{param}.call_id")
    if item.arguments is None:
        raise CallError("invalid", f"{param}.arguments is required.", param=f"{param}.arguments")
    return ToolCall(call_id, name, item.arguments)
