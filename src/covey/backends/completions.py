"""The OpenAI chat dialect from the client's side: our request to its body, its chunks to our deltas. Pure.

Source: https://platform.openai.com/docs/api-reference/chat-streaming, and what llama.cpp adds to it.
"""

from typing import Any

import msgspec

from covey.contracts.inference import ChatDelta, ChatRequest, Finish, Usage
from covey.errors import CallError
from covey.telemetry.logs import redact

DONE = b"[DONE]"
SYSTEM_PROMPT = "You are a helpful assistant."
_FINISHES: dict[str, Finish] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Timings(msgspec.Struct):
    """llama.cpp: `predicted_n` tokens so far; a character of several tokens arrives as one chunk."""

    predicted_n: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: Any = None


_chunks = msgspec.json.Decoder(_Chunk)


def request_body(
    request: ChatRequest,
    model: str,
    *,
    local: bool,
    system_prompt: bool = False,
    max_tokens_field: str = "max_tokens",
) -> bytes:
    """The body to POST. Always a stream: an answer that is not streamed is cancelled late or never.

    Args:
        request: what was asked.
        model: its name on that server.
        local: it is llama.cpp, whose own fields are understood.
        system_prompt: start with a plain system message where there is none: the model is of no use without.
        max_tokens_field: what the server calls it.
    """
    messages = [
        {"role": m.role, "content": m.content, **({"name": m.name} if m.name else {})} for m in request.messages
    ]
    if system_prompt and all(m.role != "system" for m in request.messages):
        messages.insert(0, {"role": "system", "content": SYSTEM_PROMPT})
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if local:
        # Progress is an event after each batch of the prompt: without one, llama.cpp finds out that nobody listens any
        # more only when the whole prompt is evaluated (measured: 11 s for 1,120 tokens, 0.5 s with it).
        body |= {"timings_per_token": True, "return_progress": True}
    if request.max_tokens is not None:
        body[max_tokens_field] = request.max_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    body |= msgspec.to_builtins(request.sampling)
    return msgspec.json.encode(body)


class AnswerReader:
    """One streamed answer: chunks in, deltas out; the last delta is made by `end`.

    Args:
        prompt_tokens: counted by us, for servers that report no usage.
    """

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens
        self._tokens = 0
        self._finish: Finish | None = None
        self._usage: Usage | None = None

    def receive(self, event: bytes) -> ChatDelta | None:
        """The delta in an event's payload, if it has any text.

        Raises:
            CallError: `upstream`: not a chunk; or the error that the server put in its stream.
        """
        if event.strip() == DONE:
            return None
        try:
            chunk = _chunks.decode(event)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CallError("upstream", "The model server sent something that is not a chat chunk.") from error
        if chunk.error is not None:
            raise refusal(500, event)
        if chunk.usage is not None:
            self._usage = self._counted(chunk.usage)
        text = ""
        for choice in chunk.choices[:1]:
            text = (choice.delta.content or "") if choice.delta else ""
            if choice.finish_reason:
                self._finish = finish_of(choice.finish_reason)
        if not text:
            return None
        counted = chunk.timings.predicted_n if chunk.timings else 0
        fresh = max(counted - self._tokens, 1)
        self._tokens += fresh
        return ChatDelta(text, tokens=fresh)

    def end(self) -> ChatDelta:
        """The last delta, once the server has ended the stream.

        Raises:
            CallError: `upstream` where it never said why the answer ended: then it did not end well.
        """
        if self._finish is None:
            raise CallError("upstream", "The model server's answer ended in the middle.")
        return ChatDelta(finish=self._finish, usage=self._usage or Usage(self._prompt_tokens, self._tokens))

    def _counted(self, usage: _Usage) -> Usage:
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
        return Usage(
            self._prompt_tokens if usage.prompt_tokens is None else usage.prompt_tokens,
            self._tokens if usage.completion_tokens is None else usage.completion_tokens,
            cached or 0,
        )


def finish_of(reason: str) -> Finish:
    """Our word for a server's reason; one we do not know means that the model stopped by itself."""
    if reason in {"error", "abort", "cancelled"}:
        raise CallError("upstream", f"The model server ended its answer with {reason!r}.")
    return _FINISHES.get(reason, "stop")


def refusal(status: int, body: bytes, retry_after: str = "") -> CallError:
    """What a server's error means for our caller."""
    message, kind, known = _error_of(body)
    said = f": {message}" if message else ""
    wait = float(retry_after) if retry_after.isdigit() else None
    if kind in {"exceed_context_size_error", "context_length_exceeded"} or "maximum context length" in message:
        return context_exceeded(known.get("n_ctx", 0), known.get("n_prompt_tokens", 0), message)
    if status == 503 and "loading" in message.lower():
        return CallError("loading", "The model server is still loading the model.", retry_after_seconds=wait or 5.0)
    if status in {400, 422}:
        return CallError("invalid", f"The model server refused the request{said}")
    if status in {401, 403}:
        return CallError("upstream", "The model server refused this node's key; check the back end's `api_key_env`.")
    if status == 404:
        return CallError("not_found", f"The model server does not have this model{said}", reason="model_not_found")
    if status == 413:
        return CallError("too_large", "The model server found the request too large.")
    if status in {429, 503}:
        return CallError("no_capacity", f"The model server is busy{said}", retry_after_seconds=wait or 5.0)
    return CallError("upstream", f"The model server failed (status {status}){said}")


def context_exceeded(context_tokens: int, prompt_tokens: int, said: str = "") -> CallError:
    """The `invalid` that clients recognise by its words."""
    if context_tokens:
        said = (
            f"This model's maximum context length is {context_tokens} tokens, but the messages are {prompt_tokens} "
            "tokens long. Shorten them or choose a model with a longer context."
        )
    elif "This model's maximum context length is" not in said:
        said = f"This model's maximum context length is exceeded: {said}"
    return CallError("invalid", said, reason="context_length_exceeded", param="messages")


def _error_of(body: bytes) -> tuple[str, str, dict[str, int]]:
    """Message, kind and numbers out of an error's body, in any of the shapes that servers use."""
    try:
        found = msgspec.json.decode(body, type=dict[str, Any])
        inner: object = found.get("error", found)
        if isinstance(inner, str):
            return _clean(inner), "", {}
        fields = msgspec.convert(inner, dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return "", "", {}
    numbers = {name: value for name, value in fields.items() if type(value) is int}
    code = fields.get("code")
    kind = code if isinstance(code, str) else str(fields.get("type") or "")
    return _clean(str(fields.get("message") or fields.get("detail") or "")), kind, numbers


def _clean(text: str) -> str:
    return redact(" ".join(text.split()))[:300]
