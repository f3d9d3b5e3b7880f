"""The answer of `POST /v1/chat/completions`: one object, or a stream of chunks. Pure.

Source: the OpenAI API reference, "The chat completion object" and "The chat completion chunk object".
`reasoning_content` is what llama.cpp, vLLM and DeepSeek call what a model thinks; OpenAI's own clients ignore it.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from covey.contracts.inference import ChatDelta, Finish, ToolCallDelta, Usage
from covey.dialects.base import Gathered, Head
from covey.dialects.openai_shapes import chat_usage, encode, stream_end, stream_failed, token_logprobs
from covey.errors import CallError

_ROLE = b'{"role":"assistant","content":""}'


class ChatWriter:
    """See `covey.dialects.base.Writer`. What does not change from chunk to chunk is encoded once, if at all.

    Args:
        choices: how many answers there are.
        include_usage: whether the stream ends with a chunk that tells usage.
        logprobs: whether the client asked for probabilities.
        functions: the request is of before there were tools: calls are answered as `function_call`.
    """

    def __init__(self, head: Head, *, choices: int, include_usage: bool, logprobs: bool, functions: bool) -> None:
        self._id = f"chatcmpl-{head.id}"
        self._model = head.model
        self._created = int(head.created)
        self._include_usage = include_usage
        self._logprobs = logprobs
        self._functions = functions
        self._choices = choices
        # With include_usage every chunk but the last carries `"usage": null`.
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    @cached_property
    def _head(self) -> bytes:
        return b"data: " + encode(self._fields("chat.completion.chunk"))[:-1]

    @cached_property
    def _texts(self) -> list[tuple[bytes, bytes, bytes]]:
        return [self._around_text(index) for index in range(self._choices)]

    def begin(self) -> bytes:
        """Who speaks: some engines never say so."""
        return b"".join(self._chunk(index, _ROLE) for index in range(self._choices))

    def deltas(self, index: int, deltas: Sequence[ChatDelta]) -> bytes:
        """A chunk for each piece."""
        pieces: list[bytes] = []
        texts: list[bytes] = []
        for delta in deltas:
            if delta.finish is not None or delta.logprobs or delta.tool_calls or delta.reasoning:
                pieces.append(self._plain(index, texts))
                pieces.extend(self._chunks(index, delta))
                texts = []
            elif delta.text:
                texts.append(encode(delta.text))
        last = self._plain(index, texts)
        return b"".join([*pieces, last]) if pieces else last

    def _plain(self, index: int, texts: list[bytes]) -> bytes:
        """Nothing but text, as nearly always: one join for all of it."""
        before, between, after = self._texts[index]
        return before + between.join(texts) + after if texts else b""

    def end(self, answers: Sequence[Gathered], usage: Usage) -> bytes:
        """See `stream_end`."""
        return stream_end(self._head, answers, usage if self._include_usage else None)

    def failed(self, error: CallError) -> bytes:
        """See `stream_failed`."""
        return stream_failed(error)

    def whole(self, answers: Sequence[Gathered], usage: Usage) -> bytes:
        """The chat completion object."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return encode(
            {**self._fields("chat.completion"), "choices": choices, "usage": chat_usage(usage, answers)},
        )

    def _fields(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": None,
        }

    def _around_text(self, index: int) -> tuple[bytes, bytes, bytes]:
        before, _, after = self._chunk(index, b'{"content":\0}').partition(b"\0")
        return before, after + before, after

    def _chunk(self, index: int, delta: bytes, finish: bytes = b"null", logprobs: bytes = b"null") -> bytes:
        choice = b',"choices":[{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}]' % (
            index,
            delta,
            logprobs,
            finish,
        )
        return self._head + choice + self._tail

    def _chunks(self, index: int, delta: ChatDelta) -> Iterator[bytes]:
        if delta.reasoning:
            yield self._chunk(index, encode({"reasoning_content": delta.reasoning}))
        logprobs = delta.logprobs if self._logprobs else ()
        if delta.text or logprobs:  # a token may be but a part of a character, with no text yet
            told = encode({"content": token_logprobs(logprobs), "refusal": None}) if logprobs else b"null"
            yield self._chunk(index, encode({"content": delta.text}), logprobs=told)
        for piece in delta.tool_calls:
            if call := self._call_delta(piece):
                yield self._chunk(index, encode(call))
        if delta.finish is not None:
            yield self._chunk(index, b"{}", encode(self._finish(delta.finish)))

    def _call_delta(self, piece: ToolCallDelta) -> dict[str, Any]:
        function = {"name": piece.name} if piece.name else {}
        function["arguments"] = piece.arguments
        if self._functions:  # there was but one call
            return {"function_call": function} if piece.index == 0 else {}
        head = {"id": piece.id, "type": "function"} if piece.id else {}
        return {"tool_calls": [{"index": piece.index, **head, "function": function}]}

    def _finish(self, finish: Finish) -> str:
        return "function_call" if finish == "tool_calls" and self._functions else finish

    def _choice(self, index: int, answer: Gathered) -> dict[str, Any]:
        calls = answer.tool_calls
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answer.text or (None if calls else ""),
            "refusal": None,
        }
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if calls and self._functions:
            message["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
        elif calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in calls
            ]
        logprobs = {"content": token_logprobs(answer.logprobs), "refusal": None} if self._logprobs else None
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": self._finish(answer.finish or "stop"),
        }
