"""The answers of Ollama's `POST /api/chat` and `/api/generate`: one object, or a stream of lines of JSON. Pure.

Source: Ollama's API reference, and its Go types (api/types.go): its probabilities have OpenAI's shape. Durations are in
nanoseconds.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from covey.contracts.inference import ChatDelta, ToolCall, Usage
from covey.dialects.base import Gathered, Head
from covey.dialects.call_arguments import arguments_object
from covey.dialects.ollama_problems import error_body
from covey.dialects.openai_shapes import token_logprobs
from covey.errors import CallError

_encode = msgspec.json.Encoder().encode

PING = b'{"message":{"role":"assistant","content":""},"response":"","done":false}\n'
"""A piece without text, for either path: keeps an idle stream open, where NDJSON has no comments."""

YEAR_9999 = 253_402_300_799
"""The last second that RFC 3339 can tell."""


def timestamp(seconds: float) -> str:
    """A Unix time in RFC 3339 with nanoseconds, as Go writes it; one that is out of bounds, as the nearest within."""
    within = min(max(seconds, 0.0), YEAR_9999) if seconds == seconds else 0.0
    whole = int(within)
    nanoseconds = min(int((within - whole) * 1e9), 999_999_999)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


class Fields(Protocol):
    """What a path calls the parts of its answers."""

    def __call__(self, text: str, thinking: str = "", calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        """The fields that hold a piece of the answer, or all of it."""
        ...


def chat_fields(text: str, thinking: str = "", calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
    """Those of `/api/chat`: a message."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = [_call(number, call) for number, call in enumerate(calls)]
    return {"message": message}


def generate_fields(text: str, thinking: str = "", calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
    """Those of `/api/generate`: a response. It takes no tools, so there are no calls."""
    return {"response": text, "thinking": thinking} if thinking else {"response": text}


class LineWriter:
    """See `covey.dialects.base.Writer`. What does not change from line to line is encoded once.

    Args:
        head: what the answer says of itself.
        names: the path's own.
        thinking: whether what the model thinks is shown.
        logprobs: whether the client asked for probabilities.
    """

    def __init__(self, head: Head, *, names: Fields, thinking: bool, logprobs: bool) -> None:
        self._head = head
        self._names = names
        self._thinking = thinking
        self._logprobs = logprobs
        self._fields = {"model": head.model, "created_at": timestamp(head.created)}
        self._first_seconds: float | None = None
        mark = "\0"
        before, _, after = self._line(names(mark)).rpartition(_encode(mark))
        self._around_text = before, after

    def begin(self) -> bytes:
        """Nothing: the first line is the first text."""
        return b""

    def deltas(self, index: int, deltas: Sequence[ChatDelta]) -> bytes:
        """One line for all the text that follows each other. Calls wait for the end: Ollama tells them whole."""
        if self._first_seconds is None:
            self._first_seconds = self._head.elapsed()
        if not any(delta.reasoning or delta.logprobs for delta in deltas):  # nothing but text, as nearly always
            text = "".join([delta.text for delta in deltas])
            return self._around_text[0] + _encode(text) + self._around_text[1] if text else b""
        out: list[bytes] = []
        for delta in deltas:
            told = {"logprobs": token_logprobs(delta.logprobs)} if self._logprobs and delta.logprobs else {}
            if delta.reasoning and self._thinking:
                out.append(self._line(self._names("", delta.reasoning)))
            if delta.text or told:
                out.append(self._line({**self._names(delta.text), **told}))
        return b"".join(out)

    def end(self, answers: Sequence[Gathered], usage: Usage) -> bytes:
        """The calls, and the line that says that it is done; without `answers`, that the model is ready."""
        calls = b""
        if answers and answers[0].tool_calls:
            calls = self._line(self._names("", "", answers[0].tool_calls))
        done = {**self._fields, **self._names(""), **self._done(answers, usage)}
        return calls + _encode(done) + b"\n"

    def failed(self, error: CallError) -> bytes:
        """The last line, in place of the one with `done`."""
        return error_body(error, self._head.model) + b"\n"

    def whole(self, answers: Sequence[Gathered], usage: Usage) -> bytes:
        """One object with all of it; without `answers`, that the model is ready."""
        if not answers:
            return _encode({**self._fields, **self._names(""), **self._done(answers, usage)})
        answer = answers[0]
        thinking = answer.reasoning if self._thinking else ""
        told = {"logprobs": token_logprobs(answer.logprobs)} if self._logprobs else {}
        said = self._names(answer.text, thinking, answer.tool_calls)
        return _encode({**self._fields, **said, **told, **self._done(answers, usage)})

    def _line(self, fields: dict[str, Any]) -> bytes:
        return _encode({**self._fields, **fields, "done": False}) + b"\n"

    def _done(self, answers: Sequence[Gathered], usage: Usage) -> dict[str, Any]:
        if not answers:
            return {"done": True, "done_reason": "load"}
        total = self._head.elapsed()
        first = 0.0 if self._first_seconds is None else self._first_seconds
        return {
            "done": True,
            "done_reason": "length" if answers[0].finish == "length" else "stop",
            "total_duration": _nanoseconds(total),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(first),
            "eval_count": usage.completion_tokens,
            "eval_duration": _nanoseconds(total - first),
        }


def _nanoseconds(seconds: float) -> int:
    return max(round(seconds * 1e9), 0)


def _call(number: int, call: ToolCall) -> dict[str, Any]:
    function = {"index": number, "name": call.name, "arguments": arguments_object(call.arguments)}
    return {"id": call.id, "function": function} if call.id else {"function": function}
