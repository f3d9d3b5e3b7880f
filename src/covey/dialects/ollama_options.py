"""What Ollama's requests say of how to answer: `options`, `format`, `think`, probabilities. Pure.

Source: Ollama's API reference, and "Valid Parameters and Values" of its Modelfile reference. Ignored, for they say how
Ollama itself is to run a model: `num_ctx`, `num_keep`, `num_batch`, `num_gpu`, `main_gpu`, `num_thread`, `numa`,
`low_vram`, `use_mmap`, `use_mlock`, and `keep_alive`; for they steer samplers that not every back end has:
`repeat_penalty`, `repeat_last_n`, `typical_p`, `tfs_z`, `mirostat`, `mirostat_tau`, `mirostat_eta`, `penalize_newline`.
"""

from typing import Any, Literal

import msgspec

from covey.contracts.inference import LOGPROBS_MAX, AnswerFormat, Capability, Sampling
from covey.dialects.bodies import SEED_MAX, SEED_MIN, TOKEN_COUNT_MAX, Range, check_ranges, json_text, stop_sequences
from covey.errors import CallError

Think = bool | Literal["low", "medium", "high", "max"] | None
FIELDS: dict[Capability, str] = {
    "chat": "model",
    "completion": "raw",
    "embed": "model",
    "tools": "tools",
    "vision": "images",
    "json": "format",
    "logprobs": "logprobs",
}

_RANGES: tuple[Range, ...] = (
    ("num_predict", -2, TOKEN_COUNT_MAX),
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("top_k", -1, 1_000_000),
    ("min_p", 0, 1),
    ("seed", SEED_MIN, SEED_MAX),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
)


class Options(msgspec.Struct):
    """`options`. Whole numbers may come as `8.0`, as from languages that know no other."""

    num_predict: int | float | None = None
    stop: str | list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | float | None = None
    min_p: float | None = None
    seed: int | float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class Answering(msgspec.Struct):
    """What chats and completions have in common."""

    model: str
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    think: Think = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def is_streamed(self) -> bool:
        """Unless the client says no."""
        return self.stream is not False

    @property
    def is_thinking_shown(self) -> bool:
        """Unless the client says no: a model that thinks does so unasked, here as with Ollama."""
        return self.think is not False


class Settings(msgspec.Struct, frozen=True):
    """The same, in our terms."""

    max_tokens: int | None
    stop: tuple[str, ...]
    sampling: Sampling
    format: AnswerFormat
    logprobs: int | None


def settings(sent: Answering) -> Settings:
    """How to answer.

    Raises:
        CallError: `invalid`, with `param` naming the field.
    """
    options = sent.options or Options()
    check_ranges(options, _RANGES, "options.")
    check_ranges(sent, (("top_logprobs", 0, LOGPROBS_MAX),))
    top_k = _whole(options.top_k)
    num_predict = _whole(options.num_predict)
    return Settings(
        # Without a limit: -1; until the context is full: -2. Both are what we do unasked.
        max_tokens=num_predict if num_predict is not None and num_predict > 0 else None,
        stop=stop_sequences(options.stop, "options.stop"),
        sampling=Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=None if top_k is None else max(top_k, 0),
            min_p=options.min_p,
            seed=_whole(options.seed),
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
        ),
        format=_answer_format(sent.format),
        logprobs=(sent.top_logprobs or 0) if sent.logprobs else None,
    )


def _whole(number: float | None) -> int | None:
    """Cut, as Ollama does."""
    return None if number is None else int(number)


def _answer_format(sent: str | dict[str, Any] | None) -> AnswerFormat:
    if isinstance(sent, dict):
        return AnswerFormat("schema", json_text(sent, "format"))
    if sent not in (None, "", "json"):
        raise CallError("invalid", 'format must be "json" or a JSON Schema.', param="format")
    return AnswerFormat("json") if sent else AnswerFormat()
