"""The answer of `POST /v1/messages`: one message, or a stream of events. Pure.

Source: the Anthropic API reference, "Create a Message", "Streaming Messages".
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from covey.contracts.inference import ChatDelta, ChatRequest, Finish, ToolCall, ToolCallDelta, Usage
from covey.dialects import sse
from covey.dialects.anthropic_problems import error_body
from covey.dialects.base import Gathered, Head
from covey.dialects.call_arguments import arguments_object
from covey.dialects.counting import estimated_tokens
from covey.errors import CallError

_encode = msgspec.json.Encoder().encode

PING = sse.event(b'{"type":"ping"}', "ping")
"""Keeps an idle stream open while a prompt is evaluated."""
_MESSAGE_STOP = sse.event(b'{"type":"message_stop"}', "message_stop")
_STOP_REASONS: dict[Finish, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "content_filter": "refusal",
    "tool_calls": "tool_use",
}

_TEXT = "text"
_THINKING = "thinking"
_TOOL = "tool_use"


def counted(tokens: int) -> bytes:
    """The answer of `POST /v1/messages/count_tokens`."""
    return _encode({"input_tokens": tokens})


class MessageWriter:
    """See `covey.dialects.base.Writer`. A message has one content block after another, and one open at a time.

    So of several calls the first one is streamed as it comes, and the others, whose pieces may come in between, follow
    whole at the end; so does text that comes after a call.

    Args:
        head: what the answer says of itself.
        chat: what was asked: a stream begins with a guess at its tokens.
        thinking: whether the client asked to see what the model thinks.
    """

    def __init__(self, head: Head, *, chat: ChatRequest, thinking: bool) -> None:
        self._head = head
        self._chat = chat
        self._thinking = thinking
        self._blocks = 0
        self._open = ""
        self._around = (b"", b"")
        self._calls: list[int] = []  # in the order of their coming: the first is the one that is streamed
        self._late: list[tuple[str, str]] = []

    def begin(self) -> bytes:
        """`message_start`, with nothing in it yet."""
        usage = _usage(Usage(estimated_tokens(self._chat), 0))
        return _event("message_start", {"message": self._message([], None, None, usage)})

    def deltas(self, index: int, deltas: Sequence[ChatDelta]) -> bytes:
        """One event for all the text that follows each other."""
        out: list[bytes] = []
        kind, pieces = _TEXT, list[str]()
        for delta in deltas:
            if delta.reasoning and self._thinking:
                kind = self._turn(_THINKING, kind, pieces, out)
                pieces.append(delta.reasoning)
            if delta.text:
                kind = self._turn(_TEXT, kind, pieces, out)
                pieces.append(delta.text)
            if delta.tool_calls:
                self._flush(kind, pieces, out)
                for piece in delta.tool_calls:
                    self._call_piece(piece, out)
        self._flush(kind, pieces, out)
        return b"".join(out)

    def end(self, answers: Sequence[Gathered], usage: Usage) -> bytes:
        """What had to wait, why the message ends, and usage."""
        (answer,) = answers
        out: list[bytes] = []
        self._close(out)
        for kind, text in self._late:
            self._say(kind, text, out)
        for number, call in zip(sorted(self._calls), answer.tool_calls, strict=True):
            if number != self._calls[0]:
                self._open_call(number, call.id, call.name, out)
                out.append(self._around[0] + _encode(call.arguments) + self._around[1])
        self._close(out)
        reason, sequence = _stop_reason(answer)
        out.append(
            _event(
                "message_delta",
                {"delta": {"stop_reason": reason, "stop_sequence": sequence}, "usage": _usage(usage)},
            )
        )
        out.append(_MESSAGE_STOP)
        return b"".join(out)

    def failed(self, error: CallError) -> bytes:
        """An `error` event, and never `message_stop`: half an answer must not pass for a whole one."""
        return sse.event(error_body(error), "error")

    def whole(self, answers: Sequence[Gathered], usage: Usage) -> bytes:
        """The message object."""
        (answer,) = answers
        content: list[dict[str, Any]] = []
        if answer.reasoning and self._thinking:
            content.append({"type": _THINKING, "thinking": answer.reasoning, "signature": ""})
        if answer.text:
            content.append({"type": _TEXT, "text": answer.text})
        content += [self._tool_use(number, call) for number, call in enumerate(answer.tool_calls)]
        return _encode(self._message(content, *_stop_reason(answer), _usage(usage)))

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, sequence: str | None, usage: dict[str, Any]
    ) -> dict[str, Any]:
        return {
            "id": f"msg_{self._head.id}",
            "type": "message",
            "role": "assistant",
            "model": self._head.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage,
        }

    def _tool_use(self, number: int, call: ToolCall) -> dict[str, Any]:
        return {
            "type": _TOOL,
            "id": self._call_id(number, call.id),
            "name": call.name,
            "input": arguments_object(call.arguments),
        }

    def _call_id(self, number: int, call_id: str) -> str:
        return call_id or f"toolu_{self._head.id}_{number}"

    def _turn(self, kind: str, before: str, pieces: list[str], out: list[bytes]) -> str:
        if kind != before:
            self._flush(before, pieces, out)
        return kind

    def _flush(self, kind: str, pieces: list[str], out: list[bytes]) -> None:
        if pieces:
            self._say(kind, "".join(pieces), out)
            pieces.clear()

    def _say(self, kind: str, text: str, out: list[bytes]) -> None:
        """Text, or what is thought, into its block; a new one where another kind's is open."""
        if self._open == _TOOL:
            self._late.append((kind, text))
            return
        if self._open != kind:
            block = {"type": kind, kind: ""}
            self._begin_block(
                kind, {**block, "signature": ""} if kind == _THINKING else block, f"{kind}_delta", kind, out
            )
        out.append(self._around[0] + _encode(text) + self._around[1])

    def _call_piece(self, piece: ToolCallDelta, out: list[bytes]) -> None:
        if piece.index not in self._calls:
            self._calls.append(piece.index)
            if len(self._calls) == 1:
                self._open_call(piece.index, piece.id, piece.name, out)
        if piece.index == self._calls[0] and piece.arguments:
            out.append(self._around[0] + _encode(piece.arguments) + self._around[1])

    def _open_call(self, number: int, call_id: str, name: str, out: list[bytes]) -> None:
        block = {"type": _TOOL, "id": self._call_id(number, call_id), "name": name, "input": dict[str, Any]()}
        self._begin_block(_TOOL, block, "input_json_delta", "partial_json", out)

    def _begin_block(self, kind: str, block: dict[str, Any], delta: str, name: str, out: list[bytes]) -> None:
        self._close(out)
        index = self._blocks
        self._blocks += 1
        self._open = kind
        before = f'{{"type":"content_block_delta","index":{index},"delta":{{"type":"{delta}","{name}":'
        self._around = (b"event: content_block_delta\ndata: " + before.encode(), b"}}\n\n")
        out.append(_event("content_block_start", {"index": index, "content_block": block}))

    def _close(self, out: list[bytes]) -> None:
        if self._open:
            self._open = ""
            out.append(_event("content_block_stop", {"index": self._blocks - 1}))


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return sse.event(_encode({"type": name, **fields}), name)


def _stop_reason(answer: Gathered) -> tuple[str, str | None]:
    finish = answer.finish or "stop"
    if finish == "stop" and answer.stopped_by:
        return "stop_sequence", answer.stopped_by
    if finish == "stop" and answer.tool_calls:
        return "tool_use", None  # some engines say how the text ended, not why
    return _STOP_REASONS[finish], None


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic's `input_tokens` are those that were not cached."""
    return {
        "input_tokens": max(usage.prompt_tokens - usage.cached_tokens, 0),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
