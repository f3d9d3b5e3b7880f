"""The answer of `POST /v1/completions`: one object, or a stream of them. Pure.

Source: the OpenAI API reference, "The completion object (legacy)".
"""

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

from covey.contracts.inference import ChatDelta, TokenLogprob, Usage
from covey.dialects.base import Gathered, Head
from covey.dialects.openai_shapes import chat_usage, encode, finite, stream_end, stream_failed
from covey.errors import CallError


class TokenOffsets:
    """`logprobs` of a completion. `text_offset` counts characters of the answer, whatever prompt was echoed."""

    def __init__(self) -> None:
        self._offset = 0
        # A token may be but a part of a character.
        self._text = codecs.getincrementaldecoder("utf-8")("replace")

    def told(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The next tokens of the answer."""
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._text.decode(token.raw or token.token.encode()))
        return {
            "tokens": [token.token for token in tokens],
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "top_logprobs": [
                {one.token: finite(one.logprob) for one in token.top} | {token.token: finite(token.logprob)}
                for token in tokens
            ],
            "text_offset": offsets,
        }


class CompletionWriter:
    """See `covey.dialects.base.Writer`.

    Args:
        choices: how many answers there are.
        include_usage: whether the stream ends with an object that tells usage.
        logprobs: whether the client asked for probabilities.
        echoes: the prompt before each answer; empty: none.
    """

    def __init__(
        self, head: Head, *, choices: int, include_usage: bool, logprobs: bool, echoes: tuple[str, ...]
    ) -> None:
        self._fields = {
            "id": f"cmpl-{head.id}",
            "object": "text_completion",
            "created": int(head.created),
            "model": head.model,
            "system_fingerprint": None,
        }
        self._include_usage = include_usage
        self._logprobs = logprobs
        self._echoes = echoes
        self._head = b"data: " + encode(self._fields)[:-1]
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._texts = [self._around_text(index) for index in range(choices)]
        self._offsets = [TokenOffsets() for _ in range(choices)]

    def begin(self) -> bytes:
        """The prompts, where they are to be echoed."""
        return b"".join(self._chunk(index, encode(text)) for index, text in enumerate(self._echoes))

    def deltas(self, index: int, deltas: Sequence[ChatDelta]) -> bytes:
        """An object for each piece."""
        for delta in deltas:
            if delta.finish is not None or delta.logprobs:
                return b"".join(chunk for one in deltas for chunk in self._chunks(index, one))
        texts = [encode(delta.text) for delta in deltas if delta.text]
        before, between, after = self._texts[index]
        return before + between.join(texts) + after if texts else b""

    def end(self, answers: Sequence[Gathered], usage: Usage) -> bytes:
        """See `stream_end`."""
        return stream_end(self._head, answers, usage if self._include_usage else None)

    def failed(self, error: CallError) -> bytes:
        """See `stream_failed`."""
        return stream_failed(error)

    def whole(self, answers: Sequence[Gathered], usage: Usage) -> bytes:
        """The completion object."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return encode({**self._fields, "choices": choices, "usage": chat_usage(usage, answers)})

    def _around_text(self, index: int) -> tuple[bytes, bytes, bytes]:
        before, _, after = self._chunk(index, b"\0").partition(b"\0")
        return before, after + before, after

    def _chunk(self, index: int, text: bytes, finish: bytes = b"null", logprobs: bytes = b"null") -> bytes:
        choice = b',"choices":[{"index":%d,"text":%b,"logprobs":%b,"finish_reason":%b}]' % (
            index,
            text,
            logprobs,
            finish,
        )
        return self._head + choice + self._tail

    def _chunks(self, index: int, delta: ChatDelta) -> Iterator[bytes]:
        logprobs = delta.logprobs if self._logprobs else ()
        if delta.text or logprobs:
            told = encode(self._offsets[index].told(logprobs)) if logprobs else b"null"
            yield self._chunk(index, encode(delta.text), logprobs=told)
        if delta.finish is not None:
            yield self._chunk(index, b'""', encode(_finish(delta.finish)))

    def _choice(self, index: int, answer: Gathered) -> dict[str, Any]:
        return {
            "index": index,
            "text": (self._echoes[index] if self._echoes else "") + answer.text,
            "logprobs": TokenOffsets().told(answer.logprobs) if self._logprobs else None,
            "finish_reason": _finish(answer.finish),
        }


def _finish(finish: str | None) -> str:
    """A raw prompt has no tools."""
    return finish if finish in ("length", "content_filter") else "stop"
