"""The body of `POST /v1/responses` to our chat. Pure.

Source: the OpenAI API reference, "Create a model response". Nothing is stored here: what refers to something that was
is refused, and every answer says `"store": false`.
"""

from functools import partial
from typing import Any, Literal

import msgspec

from covey.contracts.inference import LOGPROBS_MAX, AnswerFormat, Capability, ChatRequest, Message, Sampling, Tool
from covey.dialects.base import ChatCall
from covey.dialects.bodies import TOKEN_COUNT_MAX, Range, check_ranges, decode, model_name
from covey.dialects.openai_input import InputItem, InputReader
from covey.dialects.openai_responses_writer import ResponseWriter
from covey.dialects.openai_tools import (
    Function,
    JsonSchemaFormat,
    ToolUse,
    Word,
    allowed,
    check_tools,
    chosen_tool,
    chosen_word,
    no_such_kind,
    schema_format,
    tool,
)
from covey.errors import CallError

METADATA_MAX = 16
METADATA_KEY_CHARS_MAX = 64
METADATA_VALUE_CHARS_MAX = 512
WANTS_LOGPROBS = "message.output_text.logprobs"


class ResponseTool(msgspec.Struct):
    """One of `tools`: a function of the client's own."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseToolName(msgspec.Struct, omit_defaults=True):
    """One of a choice's allowed tools."""

    type: str
    name: str | None = None


class ResponseToolChoice(msgspec.Struct, omit_defaults=True):
    """One tool that must be called, or some of which one may."""

    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[ResponseToolName] | None = None


class TextFormat(msgspec.Struct, omit_defaults=True):
    """What an answer is made of."""

    type: str
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseText(msgspec.Struct):
    """How the answer's text is to be."""

    format: TextFormat | None = None


class ResponseBody(msgspec.Struct):
    """The body of a request for a response."""

    model: str
    input: str | list[InputItem]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: Word | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    prompt: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(ResponseBody)

RANGES: tuple[Range, ...] = (
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("max_output_tokens", 1, TOKEN_COUNT_MAX),
    ("top_logprobs", 0, LOGPROBS_MAX),
)


def parse_response(body: bytes) -> ChatCall:
    """A request body to ours.

    Raises:
        CallError: `invalid`, `unsupported` or `too_large`, with `param` naming the field.
    """
    call = decode(body, _decoder)
    model_name(call.model)
    check_ranges(call, RANGES)
    _refuse_unsupported(call)
    _check_metadata(call.metadata or {})
    reader = InputReader()
    if call.instructions:
        reader.messages.append(Message("system", call.instructions))
    reader.read(call.input)
    use = _tool_use(call)
    answer_format = _format(call.text)
    logprobs = WANTS_LOGPROBS in (call.include or ()) or bool(call.top_logprobs)
    chat = ChatRequest(
        model=call.model,
        messages=tuple(reader.messages),
        max_tokens=call.max_output_tokens,
        sampling=Sampling(temperature=call.temperature, top_p=call.top_p),
        tools=use.tools,
        tool_use=use.use,
        forced_tool=use.forced,
        parallel_tool_calls=call.parallel_tool_calls,
        format=answer_format,
        logprobs=(call.top_logprobs or 0) if logprobs else None,
    )
    fields: dict[Capability, str] = {
        "tools": "tools",
        "vision": reader.first_picture or "input",
        "json": "text.format",
        "logprobs": "top_logprobs" if call.top_logprobs else "include",
    }
    writer = partial(ResponseWriter, asked=_echo(call, answer_format), logprobs=logprobs)
    return ChatCall((chat,), bool(call.stream), writer, fields, call.model)


def _refuse_unsupported(call: ResponseBody) -> None:
    stored = "nothing is stored here; send all of the conversation as input."
    asked = {
        "previous_response_id": (call.previous_response_id is not None, stored),
        "conversation": (call.conversation is not None, stored),
        "prompt": (call.prompt is not None, "no prompts are kept here; send instructions and input."),
        "background": (bool(call.background), "an answer is sent while it is made, and not kept."),
    }
    for name, (wanted, why) in asked.items():
        if wanted:
            raise CallError("unsupported", f"{name} is not supported: {why}", param=name)


def _check_metadata(metadata: dict[str, str]) -> None:
    if (
        len(metadata) > METADATA_MAX
        or any(len(key) > METADATA_KEY_CHARS_MAX for key in metadata)
        or any(len(value) > METADATA_VALUE_CHARS_MAX for value in metadata.values())
    ):
        raise CallError(
            "invalid",
            f"metadata takes up to {METADATA_MAX} pairs of up to {METADATA_KEY_CHARS_MAX} and "
            f"{METADATA_VALUE_CHARS_MAX} characters.",
            param="metadata",
        )


def _tool(one: ResponseTool, param: str) -> Tool:
    if one.type != "function":
        raise no_such_kind(f"{param}.type", one.type)
    return tool(Function(one.name or "", one.description, one.parameters, one.strict), param)


def _tool_use(call: ResponseBody) -> ToolUse:
    tools = check_tools((_tool(one, f"tools[{index}]") for index, one in enumerate(call.tools or ())), "tools")
    choice = call.tool_choice
    if choice is None or isinstance(choice, str):
        return chosen_word(tools, choice or "auto")
    if choice.type == "function":
        return chosen_tool(tools, choice.name or "", "tool_choice.name")
    if choice.type == "allowed_tools":
        names: list[str] = []
        for index, one in enumerate(choice.tools or ()):
            if one.type != "function":
                raise no_such_kind(f"tool_choice.tools[{index}].type", one.type)
            names.append(one.name or "")
        return allowed(tools, names, choice.mode or "auto", "tool_choice.tools")
    raise no_such_kind("tool_choice.type", choice.type)


def _format(text: ResponseText | None) -> AnswerFormat:
    wanted = text.format if text else None
    if wanted is None or wanted.type == "text":
        return AnswerFormat()
    if wanted.type == "json_object":
        return AnswerFormat("json")
    if wanted.type == "json_schema":
        schema = JsonSchemaFormat(wanted.name, wanted.description, wanted.schema, wanted.strict)
        return schema_format(schema, "text.format")
    raise no_such_kind("text.format.type", wanted.type)


def _echo(call: ResponseBody, answer_format: AnswerFormat) -> dict[str, Any]:
    """What a response repeats of its request, with OpenAI's defaults."""
    tools = [
        {
            "type": "function",
            "name": one.name,
            "description": one.description,
            "parameters": one.parameters,
            "strict": bool(one.strict),
        }
        for one in call.tools or ()
    ]
    text = {"type": "text"} if answer_format.kind == "text" or call.text is None else call.text.format
    return {
        "background": False,
        "instructions": call.instructions,
        "max_output_tokens": call.max_output_tokens,
        "metadata": call.metadata or {},
        "parallel_tool_calls": call.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": 1.0 if call.temperature is None else call.temperature,
        "text": {"format": text},
        "tool_choice": call.tool_choice or "auto",
        "tools": tools,
        "top_logprobs": call.top_logprobs or 0,
        "top_p": 1.0 if call.top_p is None else call.top_p,
        "truncation": call.truncation or "disabled",
    }
