"""The body of `POST /v1/chat/completions` to our chats. Pure.

Source: the OpenAI API reference, "Create chat completion".
"""

from functools import partial
from typing import Any, Literal

import msgspec

from covey.contracts.inference import MESSAGES_MAX, ChatRequest, Message, Sampling, Speaker
from covey.dialects.base import CHOICES_MAX, ChatCall
from covey.dialects.bodies import (
    CAUSE_CHARS_MAX,
    SEED_MAX,
    SEED_MIN,
    TOKEN_COUNT_MAX,
    Range,
    check_ranges,
    decode,
    model_name,
    stop_sequences,
)
from covey.dialects.openai_chat_writer import ChatWriter
from covey.errors import CallError


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


class _Message(msgspec.Struct):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: list[Any] | None = None
    function_call: dict[str, Any] | None = None
    audio: dict[str, Any] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _ResponseFormat(msgspec.Struct):
    type: str


class ChatBody(msgspec.Struct):
    """What a client sends."""

    model: str
    messages: list[_Message]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: _ResponseFormat | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(ChatBody)

RANGES: tuple[Range, ...] = (
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("top_k", 0, 1_000_000),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("seed", SEED_MIN, SEED_MAX),
    ("max_tokens", 1, TOKEN_COUNT_MAX),
    ("max_completion_tokens", 1, TOKEN_COUNT_MAX),
    ("n", 1, CHOICES_MAX),
)


def parse_chat(body: bytes) -> ChatCall:
    """A request body to ours.

    Raises:
        CallError: `invalid` or `unsupported`, with `param` naming the field.
    """
    call = decode(body, _decoder)
    model_name(call.model)
    check_ranges(call, RANGES)
    _refuse_unsupported(call)
    if not call.messages:
        raise CallError("invalid", "messages must not be empty.", param="messages")
    if len(call.messages) > MESSAGES_MAX:
        raise CallError("invalid", f"messages holds more than {MESSAGES_MAX} messages.", param="messages")
    chat = ChatRequest(
        model=call.model,
        messages=tuple(_message(message, index) for index, message in enumerate(call.messages)),
        max_tokens=call.max_completion_tokens if call.max_completion_tokens is not None else call.max_tokens,
        stop=stop_sequences(call.stop),
        sampling=Sampling(
            temperature=call.temperature,
            top_p=call.top_p,
            top_k=call.top_k,
            min_p=call.min_p,
            seed=call.seed,
            presence_penalty=call.presence_penalty,
            frequency_penalty=call.frequency_penalty,
        ),
    )
    include_usage = bool(call.stream_options and call.stream_options.include_usage)
    if call.stream_options is not None and not call.stream:
        raise CallError("invalid", "stream_options is only allowed with stream: true.", param="stream_options")
    writer = partial(ChatWriter, choices=1, include_usage=include_usage, logprobs=False, functions=False)
    return ChatCall((chat,), bool(call.stream), writer)


def _refuse_unsupported(call: ChatBody) -> None:
    asked = {
        "n": call.n is not None and call.n > 1,
        "logprobs": bool(call.logprobs),
        "top_logprobs": bool(call.top_logprobs),
        "logit_bias": bool(call.logit_bias),
        "tools": bool(call.tools),
        "functions": bool(call.functions),
        "response_format": call.response_format is not None and call.response_format.type != "text",
        "modalities": bool(call.modalities) and call.modalities != ["text"],
        "audio": bool(call.audio),
        "web_search_options": call.web_search_options is not None,
    }
    for name, wanted in asked.items():
        if wanted:
            raise CallError("unsupported", f"{name} is not supported by the model {call.model!r} yet.", param=name)


def _message(message: _Message, index: int) -> Message:
    content = message.content
    for name in ("tool_calls", "function_call", "audio"):
        if getattr(message, name):
            param = f"messages[{index}].{name}"
            raise CallError("unsupported", f"{param} is not supported by this model yet.", param=param)
    if isinstance(content, list):
        for number, part in enumerate(content):
            param = f"messages[{index}].content[{number}]"
            if part.type != "text":
                kind = part.type[:CAUSE_CHARS_MAX]
                raise CallError(
                    "unsupported", f"{param}: parts of type {kind!r} are not supported by this model.", param=param
                )
            if part.text is None:
                raise CallError("invalid", f"{param}.text is required.", param=f"{param}.text")
        content = "".join(part.text or "" for part in content)
    if content is None and message.role != "assistant":
        param = f"messages[{index}].content"
        raise CallError("invalid", f"{param} must not be null for the role {message.role}.", param=param)
    role: Speaker
    if message.role == "developer":
        role = "system"  # OpenAI's newer name for it
    elif message.role == "function":
        role = "tool"
    else:
        role = message.role
    return Message(role, content or "", message.name or "")
