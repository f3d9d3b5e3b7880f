"""The output items of a response: what was thought, what was said, which functions are to be called. Pure.

Source: the OpenAI API reference, "The response object" and "Streaming events".
"""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from covey.contracts.inference import TokenLogprob
from covey.dialects.openai_shapes import encode, token_logprobs

Status = Literal["in_progress", "completed", "incomplete"]
EventFields = tuple[str, dict[str, Any]]
"""The type of an event, and its fields but for `type` and `sequence_number`."""


class Item(Protocol):
    """An output item that grows while it is streamed."""

    status: Status

    def opened(self) -> list[EventFields]:
        """What announces it."""
        ...

    def closed(self, status: Status) -> list[EventFields]:
        """What ends it."""
        ...

    def told(self) -> dict[str, Any]:
        """As it stands in `output`."""
        ...


class MessageItem:
    """What the model says."""

    def __init__(self, item_id: str, output_index: int, *, logprobs: bool) -> None:
        self.item_id = item_id
        self._place = {"item_id": item_id, "output_index": output_index, "content_index": 0}
        self._output_index = output_index
        self.status: Status = "in_progress"
        self._wants_logprobs = logprobs
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._before = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta",' + (
            encode(self._place)[1:-1] + b',"delta":'
        )

    def add(self, text: str, logprobs: Sequence[TokenLogprob], sequence_number: int) -> bytes:
        """The next piece; returns its event, whole: there is one for every token."""
        self._texts.append(text)
        told = b"[]"
        if logprobs and self._wants_logprobs:
            entries = token_logprobs(logprobs)
            self._logprobs += entries
            told = encode(entries)
        return b'%b%b,"logprobs":%b,"sequence_number":%d}\n\n' % (self._before, encode(text), told, sequence_number)

    def opened(self) -> list[EventFields]:
        """See `Item`."""
        item: dict[str, Any] = {**self.told(), "content": []}
        return [
            ("response.output_item.added", {"output_index": self._output_index, "item": item}),
            ("response.content_part.added", {**self._place, "part": self._part()}),
        ]

    def closed(self, status: Status) -> list[EventFields]:
        """See `Item`."""
        self.status = status
        done = {**self._place, "text": "".join(self._texts), "logprobs": self._logprobs}
        return [
            ("response.output_text.done", done),
            ("response.content_part.done", {**self._place, "part": self._part()}),
            ("response.output_item.done", {"output_index": self._output_index, "item": self.told()}),
        ]

    def told(self) -> dict[str, Any]:
        """See `Item`."""
        return {
            "id": self.item_id,
            "type": "message",
            "role": "assistant",
            "status": self.status,
            "content": [self._part()],
        }

    def _part(self) -> dict[str, Any]:
        return {
            "type": "output_text",
            "text": "".join(self._texts),
            "annotations": [],
            "logprobs": list(self._logprobs),
        }


class ReasoningItem:
    """What the model thinks before it speaks, where it shows that."""

    def __init__(self, item_id: str, output_index: int) -> None:
        self._id = item_id
        self._place = {"item_id": item_id, "output_index": output_index, "content_index": 0}
        self._output_index = output_index
        self.status: Status = "in_progress"
        self._texts: list[str] = []

    def add(self, text: str) -> EventFields:
        """The next piece; returns its event."""
        self._texts.append(text)
        return "response.reasoning_text.delta", {**self._place, "delta": text}

    def opened(self) -> list[EventFields]:
        """See `Item`."""
        item: dict[str, Any] = {**self.told(), "content": []}
        return [
            ("response.output_item.added", {"output_index": self._output_index, "item": item}),
            ("response.content_part.added", {**self._place, "part": self._part()}),
        ]

    def closed(self, status: Status) -> list[EventFields]:
        """See `Item`."""
        self.status = status
        return [
            ("response.reasoning_text.done", {**self._place, "text": "".join(self._texts)}),
            ("response.content_part.done", {**self._place, "part": self._part()}),
            ("response.output_item.done", {"output_index": self._output_index, "item": self.told()}),
        ]

    def told(self) -> dict[str, Any]:
        """See `Item`."""
        return {"id": self._id, "type": "reasoning", "status": self.status, "summary": [], "content": [self._part()]}

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": "".join(self._texts)}


class CallItem:
    """A function that the model wishes to be called."""

    def __init__(self, item_id: str, output_index: int, call_id: str, name: str) -> None:
        self._id = item_id
        self._output_index = output_index
        self.status: Status = "in_progress"
        self._call_id = call_id
        self._name = name
        self._arguments: list[str] = []

    def add(self, arguments: str) -> EventFields:
        """The next piece of the arguments; returns its event."""
        self._arguments.append(arguments)
        place = {"item_id": self._id, "output_index": self._output_index}
        return "response.function_call_arguments.delta", {**place, "delta": arguments}

    def opened(self) -> list[EventFields]:
        """See `Item`."""
        item = self.told()
        return [("response.output_item.added", {"output_index": self._output_index, "item": item})]

    def closed(self, status: Status) -> list[EventFields]:
        """See `Item`."""
        self.status = status
        place = {"item_id": self._id, "output_index": self._output_index}
        arguments = "".join(self._arguments)
        return [
            ("response.function_call_arguments.done", {**place, "name": self._name, "arguments": arguments}),
            ("response.output_item.done", {"output_index": self._output_index, "item": self.told()}),
        ]

    def told(self) -> dict[str, Any]:
        """See `Item`."""
        return {
            "id": self._id,
            "type": "function_call",
            "status": self.status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._arguments),
        }
