"""Pieces of answers that several of OpenAI's APIs share: usage, probabilities of tokens, the end of streams. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from covey.contracts.inference import Alternative, TokenLogprob, Usage
from covey.dialects import sse
from covey.dialects.base import Gathered
from covey.dialects.problems import openai_body
from covey.errors import CallError

encode = msgspec.json.Encoder().encode

LOGPROB_MIN = -9999.0
"""What OpenAI writes for "as good as impossible": JSON has no infinity."""


def chat_usage(usage: Usage, answers: Iterable[Gathered]) -> dict[str, Any]:
    """`usage` of chat completions and completions."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": sum(answer.reasoning_tokens for answer in answers),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def finite(logprob: float) -> float:
    """A logarithm that JSON can hold; what is not a number counts as impossible."""
    return max(LOGPROB_MIN, logprob)


def token_logprobs(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat completion, and `logprobs` of a response's text."""
    return [{**_logprob(token), "top_logprobs": [_logprob(one) for one in token.top]} for token in tokens]


def _logprob(token: TokenLogprob | Alternative) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": finite(token.logprob),
        "bytes": list(token.raw or token.token.encode()),
    }


def stream_end(head: bytes, answers: Sequence[Gathered], usage: Usage | None) -> bytes:
    """What ends a stream of chunks: `[DONE]`; before it, where asked for, a chunk of usage, with `choices` empty.

    Args:
        head: with which each chunk begins, up to where its object is open.
        answers: of all choices.
        usage: `None`: it was not asked for.
    """
    if usage is None:
        return sse.DONE
    return head + b',"choices":[],"usage":' + encode(chat_usage(usage, answers)) + b"}\n\n" + sse.DONE


def stream_failed(error: CallError) -> bytes:
    """What ends one that fails: an event of its own, and never `[DONE]`: half an answer must not pass for a whole."""
    return sse.event(openai_body(error), "error")
