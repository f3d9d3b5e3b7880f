"""Tools and answer formats in OpenAI's chat completions, those of before there were tools included. Pure.

Source: the OpenAI API reference, "Create chat completion": `tools`, `tool_choice`, `functions`, `function_call`,
`response_format`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from covey.contracts.inference import TOOLS_MAX, AnswerFormat, Tool
from covey.dialects.bodies import CAUSE_CHARS_MAX, json_text
from covey.errors import CallError

DESCRIPTION_CHARS_MAX = 20_000
TOOLS_CHARS_MAX = 500_000
"""Of all descriptions and schemas together."""
TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Function(msgspec.Struct):
    """What a tool does; `parameters` is the JSON Schema of its arguments."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolEntry(msgspec.Struct):
    """One of `tools`."""

    type: str
    function: Function | None = None


class FunctionName(msgspec.Struct):
    """A function by its name."""

    name: str


class ToolName(msgspec.Struct):
    """One of a choice's allowed tools."""

    type: str
    function: FunctionName | None = None


class AllowedTools(msgspec.Struct):
    """Some of the tools, for this answer."""

    mode: Literal["auto", "required"]
    tools: list[ToolName]


class ToolChoice(msgspec.Struct):
    """One tool that must be called, or some of which one may."""

    type: str
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


class JsonSchemaFormat(msgspec.Struct):
    """The JSON Schema that an answer keeps to."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """What an answer is made of."""

    type: str
    json_schema: JsonSchemaFormat | None = None


Word = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Which tools a model may, must or must not call; as in `ChatRequest`."""

    tools: tuple[Tool, ...] = ()
    use: Word = "auto"
    forced: str = ""


def tool(function: Function, param: str) -> Tool:
    """A function that the model may call.

    Raises:
        CallError: `invalid`: its name, its description or its schema is not as they must be.
    """
    check_tool_name(function.name, f"{param}.name")
    description = function.description or ""
    if len(description) > DESCRIPTION_CHARS_MAX:
        param = f"{param}.description"
        raise CallError("invalid", f"{param} is too long: up to {DESCRIPTION_CHARS_MAX} characters.", param=param)
    parameters = "" if function.parameters is None else json_text(function.parameters, f"{param}.parameters")
    return Tool(function.name, description, parameters, strict=bool(function.strict))


def check_tool_name(name: str, param: str) -> None:
    """See that it can be a function's name.

    Raises:
        CallError: `invalid`.
    """
    if not TOOL_NAME.fullmatch(name):
        raise CallError("invalid", f"{param} must be 1 to 64 letters, digits, - or _.", param=param)


def check_tools(tools: Iterable[Tool], param: str) -> tuple[Tool, ...]:
    """See that there are not too many, together not too long, and no two of one name; stops at what is too much.

    Raises:
        CallError: `invalid`.
    """
    found: dict[str, Tool] = {}
    size = 0
    for one in tools:
        if one.name in found:
            raise CallError("invalid", f"{param} holds two functions of one name.", param=param)
        found[one.name] = one
        size += len(one.description) + len(one.parameters)
        if len(found) > TOOLS_MAX:
            raise CallError("invalid", f"{param} holds more than {TOOLS_MAX} functions.", param=param)
        if size > TOOLS_CHARS_MAX:
            raise CallError(
                "invalid", f"{param} are too long together: up to {TOOLS_CHARS_MAX} characters.", param=param
            )
    return tuple(found.values())


def tool_use(entries: list[ToolEntry] | None, choice: Word | ToolChoice | None) -> ToolUse:
    """`tools` and `tool_choice`.

    Raises:
        CallError: `invalid` or `unsupported`, with the field.
    """
    tools = check_tools((_entry(one, f"tools[{index}]") for index, one in enumerate(entries or ())), "tools")
    if choice is None or isinstance(choice, str):
        return chosen_word(tools, choice or "auto")
    if choice.type == "function":
        if choice.function is None:
            raise CallError("invalid", "tool_choice.function is required.", param="tool_choice.function")
        return chosen_tool(tools, choice.function.name, "tool_choice.function.name")
    if choice.type == "allowed_tools":
        if choice.allowed_tools is None:
            raise CallError("invalid", "tool_choice.allowed_tools is required.", param="tool_choice.allowed_tools")
        names = [_allowed(one, index) for index, one in enumerate(choice.allowed_tools.tools)]
        return allowed(tools, names, choice.allowed_tools.mode, "tool_choice.allowed_tools.tools")
    raise no_such_kind("tool_choice.type", choice.type)


def function_use(functions: list[Function], choice: Literal["none", "auto"] | FunctionName | None) -> ToolUse:
    """`functions` and `function_call`, as before there were tools.

    Raises:
        CallError: `invalid`, with the field.
    """
    tools = check_tools((tool(one, f"functions[{index}]") for index, one in enumerate(functions)), "functions")
    if choice is None or isinstance(choice, str):
        return chosen_word(tools, choice or "auto")
    return chosen_tool(tools, choice.name, "function_call.name")


def chosen_word(tools: tuple[Tool, ...], word: Word, param: str = "tool_choice") -> ToolUse:
    """A choice among all tools.

    Raises:
        CallError: `invalid`: one is to be called, and there is none.
    """
    if word == "required" and not tools:
        raise CallError("invalid", f"{param} is only allowed with tools.", param=param)
    return ToolUse(tools, word)


def chosen_tool(tools: tuple[Tool, ...], name: str, param: str) -> ToolUse:
    """The one tool that must be called.

    Raises:
        CallError: `invalid`: it is none of them.
    """
    if all(one.name != name for one in tools):
        raise CallError("invalid", f"{param}: there is no function {name[:CAUSE_CHARS_MAX]!r}.", param=param)
    return ToolUse(tools, "required", name)


def allowed(tools: tuple[Tool, ...], names: Sequence[str], mode: Literal["auto", "required"], param: str) -> ToolUse:
    """Some of the tools.

    Raises:
        CallError: `invalid`: one is not among them, or none is left.
    """
    by_name = {one.name: one for one in tools}
    for index, name in enumerate(names):
        if name not in by_name:
            at = f"{param}[{index}]"
            raise CallError("invalid", f"{at}: there is no function {name[:CAUSE_CHARS_MAX]!r}.", param=at)
    if not names:
        raise CallError("invalid", f"{param} must not be empty.", param=param)
    wanted = frozenset(names)  # of which there may be many more than tools
    return ToolUse(tuple(one for one in tools if one.name in wanted), mode)


def answer_format(wanted: ResponseFormat | None) -> AnswerFormat:
    """`response_format`.

    Raises:
        CallError: `invalid` or `unsupported`, with the field.
    """
    if wanted is None or wanted.type == "text":
        return AnswerFormat()
    if wanted.type == "json_object":
        return AnswerFormat("json")
    if wanted.type == "json_schema":
        if wanted.json_schema is None:
            raise CallError("invalid", "response_format.json_schema is required.", param="response_format.json_schema")
        return schema_format(wanted.json_schema, "response_format.json_schema")
    raise no_such_kind("response_format.type", wanted.type)


def schema_format(wanted: JsonSchemaFormat, param: str) -> AnswerFormat:
    """A format with a JSON Schema; every model is held to it, `strict` or not.

    Raises:
        CallError: `invalid`: no name, or no schema.
    """
    for name, value in (("name", wanted.name), ("schema", wanted.schema)):
        if value is None:
            raise CallError("invalid", f"{param}.{name} is required.", param=f"{param}.{name}")
    check_tool_name(wanted.name or "", f"{param}.name")
    return AnswerFormat("schema", json_text(wanted.schema, f"{param}.schema"), wanted.name or "")


def no_such_kind(param: str, kind: str) -> CallError:
    """A `type` that is another service's, or nobody's."""
    return CallError("unsupported", f"{param} {kind[:CAUSE_CHARS_MAX]!r} is not supported.", param=param)


def _entry(entry: ToolEntry, param: str) -> Tool:
    if entry.type != "function":
        raise no_such_kind(f"{param}.type", entry.type)
    if entry.function is None:
        raise CallError("invalid", f"{param}.function is required.", param=f"{param}.function")
    return tool(entry.function, f"{param}.function")


def _allowed(one: ToolName, index: int) -> str:
    param = f"tool_choice.allowed_tools.tools[{index}]"
    if one.type != "function":
        raise no_such_kind(f"{param}.type", one.type)
    if one.function is None:
        raise CallError("invalid", f"{param}.function is required.", param=f"{param}.function")
    return one.function.name
