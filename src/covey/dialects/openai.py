"""OpenAI's chat completions, as a server speaks them.

Source: the OpenAI API reference, "Create chat completion" and "Streaming events". Unknown fields are ignored, as
OpenAI does; a known one that we cannot honour is refused by name: never silently dropped.
"""

import re
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from covey.contracts.gateway import ModelSummary
from covey.contracts.inference import MESSAGES_MAX, STOP_MAX, ChatRequest, Finish, Message, Sampling, Speaker, Usage
from covey.errors import CallError

STOP_CHARS_MAX = 512
MODEL_CHARS_MAX = 200
CAUSE_CHARS_MAX = 200


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


class _ChatCompletion(msgspec.Struct):
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


class ChatCall(msgspec.Struct, frozen=True):
    """A parsed request: what to run, and how to answer."""

    chat: ChatRequest
    stream: bool
    include_usage: bool


_decoder = msgspec.json.Decoder(_ChatCompletion)
_encode = msgspec.json.Encoder().encode

_RANGES: tuple[tuple[str, int, int], ...] = (
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("top_k", 0, 1_000_000),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("seed", -(2**63), 2**63 - 1),
    ("max_tokens", 1, 2**31 - 1),
    ("max_completion_tokens", 1, 2**31 - 1),
    ("n", 1, 128),
)


def parse_chat(body: bytes) -> ChatCall:
    """A request body to ours.

    Raises:
        CallError: `invalid` or `unsupported`, with `param` naming the field.
    """
    call = decode(body, _decoder)
    if not 0 < len(call.model) <= MODEL_CHARS_MAX:
        raise CallError("invalid", f"model must have 1 to {MODEL_CHARS_MAX} characters.", param="model")
    _check_ranges(call)
    _refuse_unsupported(call)
    if not call.messages:
        raise CallError("invalid", "messages must not be empty.", param="messages")
    if len(call.messages) > MESSAGES_MAX:
        raise CallError("invalid", f"messages holds more than {MESSAGES_MAX} messages.", param="messages")
    chat = ChatRequest(
        model=call.model,
        messages=tuple(_message(message, index) for index, message in enumerate(call.messages)),
        max_tokens=call.max_completion_tokens if call.max_completion_tokens is not None else call.max_tokens,
        stop=_stop(call.stop),
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
    return ChatCall(chat, bool(call.stream), include_usage)


def decode(body: bytes, decoder: msgspec.json.Decoder[_ChatCompletion]) -> _ChatCompletion:
    """JSON to a typed request, with an error that names the field in the client's own terms."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        param = path.rstrip("`").lstrip(".")
        if missing := re.search(r"missing required field `(\w+)`", message):
            param = f"{param}.{missing[1]}".lstrip(".")
            raise CallError("invalid", f"{param} is required.", param=param) from error
        where = param or "The request body"
        raise CallError("invalid", f"{where} is of the wrong kind: {_plain(message)}.", param=param) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        cause = _cause(error) if body.strip() else "it is empty"
        raise CallError("invalid", f"The request body is not JSON that can be read: {cause}.") from error


def _cause(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return _plain(str(error))


def _plain(message: str) -> str:
    text = message.replace("`", "").rstrip(".")[:CAUSE_CHARS_MAX]
    return text if text.startswith("JSON") else text[:1].lower() + text[1:]


def _check_ranges(call: _ChatCompletion) -> None:
    for name, low, high in _RANGES:
        value = getattr(call, name)
        if value is not None and not low <= value <= high:  # NaN fails this too
            raise CallError("invalid", f"{name} must be between {low} and {high}.", param=name)


def _refuse_unsupported(call: _ChatCompletion) -> None:
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


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > STOP_MAX or any(not 0 < len(text) <= STOP_CHARS_MAX for text in stops):
        raise CallError(
            "invalid", f"stop takes up to {STOP_MAX} strings of 1 to {STOP_CHARS_MAX} characters.", param="stop"
        )
    return stops


class Chunks:
    """The chunks of one streamed completion; all that does not change is encoded once."""

    def __init__(self, completion_id: str, model: str, created: int, *, include_usage: bool) -> None:
        head = _encode(
            {
                "id": completion_id,
                "object": "chat.completion.chunk",
                "created": created,
                "model": model,
                "system_fingerprint": None,
            }
        )
        self._head = b"data: " + head[:-1]
        # With include_usage every chunk but the last carries `"usage": null`.
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        empty = self._chunk(b'{"content":}', b"null")
        cut = empty.index(b"}", len(self._head))
        self._before_text, self._after_text = empty[:cut], empty[cut:]

    def role(self) -> bytes:
        """The first one: some engines never say who speaks."""
        return self._chunk(b'{"role":"assistant","content":""}', b"null")

    def texts(self, texts: Iterable[str]) -> bytes:
        """Pieces of the answer, at least one, each in a chunk of its own."""
        between = self._after_text + self._before_text
        return self._before_text + between.join(map(_encode, texts)) + self._after_text

    def finish(self, reason: Finish) -> bytes:
        """The last one with a choice."""
        return self._chunk(b"{}", _encode(reason))

    def usage(self, usage: Usage) -> bytes:
        """After the last choice: `choices` is empty."""
        return self._head + b',"choices":[],"usage":' + _encode(_usage(usage)) + b"}\n\n"

    def _chunk(self, delta: bytes, finish: bytes) -> bytes:
        choice = b',"choices":[{"index":0,"delta":' + delta + b',"logprobs":null,"finish_reason":' + finish + b"}]"
        return self._head + choice + self._tail


def completion(completion_id: str, model: str, created: int, text: str, finish: Finish, usage: Usage) -> bytes:
    """A whole completion."""
    return _encode(
        {
            "id": completion_id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "logprobs": None,
                    "finish_reason": finish,
                }
            ],
            "usage": _usage(usage),
            "system_fingerprint": None,
        }
    )


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def model_object(model: ModelSummary) -> dict[str, Any]:
    """One model, with a few fields of ours behind OpenAI's."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_at,
        "owned_by": "covey",
        "state": model.state,
        "capabilities": model.capabilities,
        "context_length": model.context_tokens or None,
    }


def model_list(models: Iterable[ModelSummary]) -> bytes:
    """The answer of `GET /v1/models`."""
    return _encode({"object": "list", "data": [model_object(model) for model in models]})


def model_one(model: ModelSummary) -> bytes:
    """The answer of `GET /v1/models/{id}`."""
    return _encode(model_object(model))
