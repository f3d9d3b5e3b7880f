"""The body of `POST /v1/completions` to chats that go on from a raw prompt. Pure.

Source: the OpenAI API reference, "Create completion" (legacy).
"""

from functools import partial

import msgspec

from covey.contracts.inference import ChatRequest, Prompt, Sampling
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
from covey.dialects.openai_completions_writer import CompletionWriter
from covey.dialects.openai_prompts import Prompts, StreamOptions, read_prompts, wants_usage
from covey.errors import CallError

MAX_TOKENS = 16
"""OpenAI's default."""
COMPLETION_LOGPROBS_MAX = 5
ECHO_CHARS_MAX = 10_000_000
"""Of all prompts that an answer repeats: more than any body holds, and less than its prompts a hundred times."""


class CompletionBody(msgspec.Struct):
    """The body of a request for a completion."""

    model: str
    prompt: Prompts
    suffix: str | None = None
    max_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: int | None = None
    echo: bool | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None


_decoder = msgspec.json.Decoder(CompletionBody)

RANGES: tuple[Range, ...] = (
    *SAMPLING_RANGES,
    ("max_tokens", 1, TOKEN_COUNT_MAX),
    ("n", 1, CHOICES_MAX),
    ("best_of", 1, CHOICES_MAX),
    ("logprobs", 0, COMPLETION_LOGPROBS_MAX),
)


def parse_completion(body: bytes) -> ChatCall:
    """A request body to ours: `n` chats for each prompt, those of the first prompt first.

    Raises:
        CallError: `invalid` or `unsupported`, with `param` naming the field.
    """
    call = decode(body, _decoder)
    model_name(call.model)
    check_ranges(call, RANGES)
    include_usage = wants_usage(call.stream_options, stream=bool(call.stream))
    count = call.n or 1
    _check_best_of(call.best_of, count)
    prompts = read_prompts(call.prompt, "prompt", count_max=CHOICES_MAX, empty=True)
    if len(prompts) * count > CHOICES_MAX:
        raise CallError("invalid", f"n answers to each prompt make more than {CHOICES_MAX}.", param="n")
    chats = [chat for prompt in prompts for chat in choices(_chat(call, prompt), count)]
    writer = partial(
        CompletionWriter,
        choices=len(chats),
        include_usage=include_usage,
        logprobs=call.logprobs is not None,
        echoes=_echoes(call, prompts),
    )
    return ChatCall(
        tuple(chats), bool(call.stream), writer, {"completion": "prompt", "logprobs": "logprobs"}, call.model
    )


def _check_best_of(best_of: int | None, count: int) -> None:
    if best_of is None or best_of == count:
        return
    if best_of < count:
        raise CallError("invalid", "best_of must not be less than n.", param="best_of")
    raise CallError("unsupported", "best_of beyond n is not supported: every answer is sent.", param="best_of")


def _chat(call: CompletionBody, prompt: str | tuple[int, ...]) -> ChatRequest:
    suffix = call.suffix or ""
    return ChatRequest(
        model=call.model,
        messages=(),
        max_tokens=MAX_TOKENS if call.max_tokens is None else call.max_tokens,
        stop=stop_sequences(call.stop),
        sampling=Sampling(
            temperature=call.temperature,
            top_p=call.top_p,
            top_k=call.top_k,
            min_p=call.min_p,
            seed=call.seed,
            presence_penalty=call.presence_penalty,
            frequency_penalty=call.frequency_penalty,
            logit_bias=logit_bias(call.logit_bias),
        ),
        logprobs=call.logprobs,
        prompt=Prompt(text=prompt, suffix=suffix) if isinstance(prompt, str) else Prompt(tokens=prompt, suffix=suffix),
    )


def _echoes(call: CompletionBody, prompts: list[str | tuple[int, ...]]) -> tuple[str, ...]:
    """What stands before each answer; empty: nothing."""
    if not call.echo:
        return ()
    if call.logprobs is not None:
        raise CallError("unsupported", "echo with logprobs is not supported: a prompt's are not told.", param="echo")
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    if len(texts) < len(prompts):
        raise CallError("unsupported", "echo is only supported where the prompt is text.", param="echo")
    if sum(map(len, texts)) * (call.n or 1) > ECHO_CHARS_MAX:
        raise CallError("too_large", f"echo repeats up to {ECHO_CHARS_MAX} characters over all answers.", param="echo")
    return tuple(text for text in texts for _ in range(call.n or 1))
