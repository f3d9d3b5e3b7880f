"""The body of `POST /v1/chat/completions` to our chats. Pure.

Source: the OpenAI API reference, "Create chat completion".
"""

from functools import partial
from typing import Any, Literal

import msgspec

from covey.contracts.inference import LOGPROBS_MAX, Capability, ChatRequest, Sampling
from covey.dialects.base import CHOICES_MAX, ChatCall
from covey.dialects.bodies import (
    SAMPLING_RANGES,
    TOKEN_COUNT_MAX,
    Range,
    check_ranges,
    choices,
    decode,
    logit_bias,
    model_name,
    stop_sequences,
)
from covey.dialects.openai_chat_writer import ChatWriter
from covey.dialects.openai_messages import ChatMessage, read_messages
from covey.dialects.openai_prompts import StreamOptions, wants_usage
from covey.dialects.openai_tools import (
    Function,
    FunctionName,
    ResponseFormat,
    ToolChoice,
    ToolEntry,
    ToolUse,
    Word,
    answer_format,
    function_use,
    tool_use,
)
from covey.errors import CallError


class ChatBody(msgspec.Struct):
    """The body of a request for a chat completion."""

    model: str
    messages: list[ChatMessage]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
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
    tools: list[ToolEntry] | None = None
    tool_choice: Word | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = None
    function_call: Literal["none", "auto"] | FunctionName | None = None
    response_format: ResponseFormat | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(ChatBody)

RANGES: tuple[Range, ...] = (
    *SAMPLING_RANGES,
    ("max_tokens", 1, TOKEN_COUNT_MAX),
    ("max_completion_tokens", 1, TOKEN_COUNT_MAX),
    ("n", 1, CHOICES_MAX),
    ("top_logprobs", 0, LOGPROBS_MAX),
)


def parse_chat(body: bytes) -> ChatCall:
    """A request body to ours: a chat for each of `n`, of which only the seed differs.

    Raises:
        CallError: `invalid`, `unsupported` or `too_large`, with `param` naming the field.
    """
    call = decode(body, _decoder)
    model_name(call.model)
    check_ranges(call, RANGES)
    _refuse_unsupported(call)
    include_usage = wants_usage(call.stream_options, stream=bool(call.stream))
    if call.top_logprobs and not call.logprobs:
        raise CallError("invalid", "top_logprobs is only allowed with logprobs: true.", param="top_logprobs")
    messages, first_picture = read_messages(call.messages)
    use = _tool_use(call)
    chat = ChatRequest(
        model=call.model,
        messages=messages,
        max_tokens=call.max_completion_tokens if call.max_completion_tokens is not None else call.max_tokens,
        stop=stop_sequences(call.stop),
        sampling=_sampling(call),
        tools=use.tools,
        tool_use=use.use,
        forced_tool=use.forced,
        # One call is all that `function_call` can tell.
        parallel_tool_calls=False if call.functions else call.parallel_tool_calls,
        format=answer_format(call.response_format),
        logprobs=(call.top_logprobs or 0) if call.logprobs else None,
    )
    writer = partial(
        ChatWriter,
        choices=call.n or 1,
        include_usage=include_usage,
        logprobs=bool(call.logprobs),
        functions=bool(call.functions),
    )
    return ChatCall(choices(chat, call.n or 1), bool(call.stream), writer, _fields(call, first_picture), call.model)


def _refuse_unsupported(call: ChatBody) -> None:
    asked = {
        "modalities": bool(call.modalities) and call.modalities != ["text"],
        "audio": bool(call.audio),
        "web_search_options": call.web_search_options is not None,
    }
    for name, wanted in asked.items():
        if wanted:
            raise CallError("unsupported", f"{name} is not supported: models here read and write text.", param=name)


def _sampling(call: ChatBody) -> Sampling:
    return Sampling(
        temperature=call.temperature,
        top_p=call.top_p,
        top_k=call.top_k,
        min_p=call.min_p,
        seed=call.seed,
        presence_penalty=call.presence_penalty,
        frequency_penalty=call.frequency_penalty,
        logit_bias=logit_bias(call.logit_bias),
    )


def _tool_use(call: ChatBody) -> ToolUse:
    if not call.functions:
        if call.function_call is not None and call.function_call != "none":
            raise CallError("invalid", "function_call is only allowed with functions.", param="function_call")
        return tool_use(call.tools, call.tool_choice)
    if call.tools:
        raise CallError("invalid", "functions and tools do not go together; send tools.", param="functions")
    return function_use(call.functions, call.function_call)


def _fields(call: ChatBody, first_picture: str) -> dict[Capability, str]:
    return {
        "tools": "functions" if call.functions else "tools",
        "vision": first_picture or "messages",
        "json": "response_format",
        "logprobs": "logprobs",
    }
