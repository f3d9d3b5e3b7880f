"""The answer of `POST /v1/responses`: one object, or a stream of events. Pure.

Source: the OpenAI API reference, "The response object" and "Streaming events". A stream ends with
`response.completed`, `response.incomplete` or `response.failed`: there is no `[DONE]`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from covey.contracts.inference import ChatDelta, Finish, ToolCallDelta, Usage
from covey.dialects import sse
from covey.dialects.base import Gathered, Head
from covey.dialects.openai_responses_items import CallItem, EventFields, Item, MessageItem, ReasoningItem, Status
from covey.dialects.openai_shapes import encode
from covey.dialects.problems import openai_problem
from covey.errors import CallError

_REASONS: Mapping[Finish, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}
_CODES = {"rate_limited": "rate_limit_exceeded", "invalid": "invalid_prompt"}
"""The few that a failed response may have; all others are `server_error`."""


class ResponseWriter:
    """See `covey.dialects.base.Writer`; there is but one choice.

    Args:
        asked: what the response repeats of its request.
        logprobs: whether the client asked for probabilities.
    """

    def __init__(self, head: Head, *, asked: dict[str, Any], logprobs: bool) -> None:
        self._head = head
        self._asked = asked
        self._logprobs = logprobs
        self._sequence_number = 0
        self._items: list[Item] = []
        self._message: MessageItem | None = None
        self._reasoning: ReasoningItem | None = None
        self._calls: dict[int, CallItem] = {}
        self._finish: Finish | None = None

    def begin(self) -> bytes:
        """The response, still without output, and that it is being made."""
        response = self._response("in_progress")
        return self._event("response.created", {"response": response}) + self._event(
            "response.in_progress", {"response": response}
        )

    def deltas(self, index: int, deltas: Sequence[ChatDelta]) -> bytes:
        """An event for each piece; items are announced where they begin, and ended where they end."""
        return b"".join(piece for delta in deltas for piece in self._pieces(delta))

    def end(self, answers: Sequence[Gathered], usage: Usage) -> bytes:
        """The whole response."""
        response = self._ended(usage, answers)
        return self._event(f"response.{response['status']}", {"response": response})

    def failed(self, error: CallError) -> bytes:
        """That it failed, and why; the output is what there was by then."""
        problem = openai_problem(error)
        for item in self._items:
            item.status = "incomplete" if item.status == "in_progress" else item.status
        response = self._response("failed")
        response["error"] = {"code": _CODES.get(error.code, "server_error"), "message": error.message}
        told = {"code": problem.code, "message": problem.message, "param": problem.param}
        return self._event("error", told) + self._event("response.failed", {"response": response})

    def whole(self, answers: Sequence[Gathered], usage: Usage) -> bytes:
        """The response object."""
        (answer,) = answers
        calls = [ToolCallDelta(i, call.id, call.name, call.arguments) for i, call in enumerate(answer.tool_calls)]
        # The same items as in a stream; the events are of no use here.
        self.deltas(0, [ChatDelta(reasoning=answer.reasoning)])
        self.deltas(0, [ChatDelta(answer.text, logprobs=tuple(answer.logprobs))])
        self.deltas(0, [ChatDelta(tool_calls=tuple(calls), finish=answer.finish or "stop")])
        return encode(self._ended(usage, answers))

    def _pieces(self, delta: ChatDelta) -> Iterator[bytes]:
        if delta.reasoning:
            yield self._close_message("completed")
            if self._reasoning is None:
                self._reasoning = ReasoningItem(self._item_id("rs"), len(self._items))
                yield self._open(self._reasoning)
            yield self._event(*self._reasoning.add(delta.reasoning))
        if delta.text or delta.logprobs:
            yield self._close_reasoning("completed")
            if self._message is None:
                self._message = self._new_message()
                yield self._open(self._message)
            yield self._message.add(delta.text, delta.logprobs, self._next_number())
        for piece in delta.tool_calls:
            yield from self._call_pieces(piece)
        if delta.finish is not None:
            yield self._close_all(delta.finish)

    def _call_pieces(self, piece: ToolCallDelta) -> Iterator[bytes]:
        yield self._close_reasoning("completed")
        yield self._close_message("completed")
        call = self._calls.get(piece.index)
        if call is None:
            call = CallItem(self._item_id("fc"), len(self._items), piece.id, piece.name)
            self._calls[piece.index] = call
            yield self._open(call)
        if piece.arguments:
            yield self._event(*call.add(piece.arguments))

    def _close_all(self, finish: Finish) -> bytes:
        self._finish = finish
        status: Status = "incomplete" if finish in _REASONS else "completed"
        sent = b""
        if not self._items:  # the model had nothing to say: an empty message says so
            self._message = self._new_message()
            sent = self._open(self._message)
        sent += self._close_reasoning(status) + self._close_message(status)
        # A back end may send the pieces of several calls in turn: all of them end here.
        return sent + b"".join(self._events(call.closed(status)) for call in self._calls.values())

    def _new_message(self) -> MessageItem:
        return MessageItem(self._item_id("msg"), len(self._items), logprobs=self._logprobs)

    def _open(self, item: Item) -> bytes:
        self._items.append(item)
        return self._events(item.opened())

    def _close_reasoning(self, status: Status) -> bytes:
        item, self._reasoning = self._reasoning, None
        return self._events(item.closed(status)) if item else b""

    def _close_message(self, status: Status) -> bytes:
        item, self._message = self._message, None
        return self._events(item.closed(status)) if item else b""

    def _item_id(self, prefix: str) -> str:
        return f"{prefix}_{self._head.id}{len(self._items)}"

    def _next_number(self) -> int:
        self._sequence_number += 1
        return self._sequence_number - 1

    def _events(self, events: Iterable[EventFields]) -> bytes:
        return b"".join(self._event(kind, fields) for kind, fields in events)

    def _event(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        return sse.event(encode({"type": kind, "sequence_number": self._next_number(), **fields}), kind)

    def _ended(self, usage: Usage, answers: Sequence[Gathered]) -> dict[str, Any]:
        """The response at its end, all items closed."""
        reason = _REASONS.get(self._finish or "stop")
        response = self._response("incomplete" if reason else "completed")
        if reason:
            response["incomplete_details"] = {"reason": reason}
        response["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": sum(answer.reasoning_tokens for answer in answers)},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        return response

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": f"resp_{self._head.id}",
            "object": "response",
            "created_at": int(self._head.created),
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._head.model,
            "output": [item.told() for item in self._items],
            "usage": None,
            **self._asked,
        }
