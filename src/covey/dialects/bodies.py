"""What all dialects read alike: JSON to a typed request, ranges, stop sequences, the model's name. Pure.

Unknown fields are ignored, as the services do that clients were written for. Every error names the field in the
client's own terms: `messages[2].content[0].text`.
"""

import re
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import msgspec
from msgspec.structs import replace

from covey.contracts.inference import STOP_MAX, ChatRequest
from covey.errors import CallError

STOP_CHARS_MAX = 512
MODEL_CHARS_MAX = 200
CAUSE_CHARS_MAX = 200
"""How much of what a decoder says, or a client sent, is shown in an error."""
TOKEN_COUNT_MAX = 2**31 - 1
SCHEMA_BYTES_MAX = 100_000
LOGIT_BIAS_MAX = 1_024
LEVELS_MAX = 64
"""How deep a schema may nest: whatever reads it further on may do so by recursion."""
SEED_MIN, SEED_MAX = -(2**63), 2**63 - 1

_SEPARATORS = (b",", b"[", b"{")
_TOKEN_ID = re.compile(r"[0-9]{1,10}")

VALUES_MAX = 300_000
"""How many values a body may hold, roughly: what separates them is counted. Beyond any model's context (OpenAI embeds
up to 300,000 tokens at once), and far below what keeps the loop busy for a second."""

Range = tuple[str, float, float]
"""The name of a field, and the least and the greatest that it may be."""

SAMPLING_RANGES: tuple[Range, ...] = (
    ("temperature", 0, 2),
    ("top_p", 0, 1),
    ("min_p", 0, 1),
    ("top_k", 0, 1_000_000),
    ("presence_penalty", -2, 2),
    ("frequency_penalty", -2, 2),
    ("seed", SEED_MIN, SEED_MAX),
)
"""Of OpenAI's paths."""

T = TypeVar("T")


def decode(body: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """JSON to a typed request.

    Raises:
        CallError: `invalid`, with `param` where it is about one field; `too_large` where it holds too much.
    """
    if len(body) > VALUES_MAX and sum(map(body.count, _SEPARATORS)) > VALUES_MAX:
        raise CallError("too_large", f"The request body holds more than {VALUES_MAX} values; send less at once.")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _misfit(error) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        cause = _cause(error) if body.strip() else "it is empty"
        raise CallError("invalid", f"The request body is not JSON that can be read: {cause}.") from error


def _misfit(error: msgspec.ValidationError) -> CallError:
    # The path stands last: what is before it may quote the client, who can write the same words.
    message, _, path = str(error).rpartition(" - at `$")
    param = path.rstrip("`").lstrip(".") if message else ""
    message = message or path
    if missing := re.match(r"Object missing required field `(\w+)`", message):
        param = f"{param}.{missing[1]}".lstrip(".")
        return CallError("invalid", f"{param} is required.", param=param)
    where = param or "The request body"
    return CallError("invalid", f"{where} is of the wrong kind: {_plain(message)}.", param=param)


def _cause(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return _plain(str(error))


def _plain(message: str) -> str:
    text = message.replace("`", "").rstrip(".")[:CAUSE_CHARS_MAX]
    return text if text.startswith("JSON") else text[:1].lower() + text[1:]


def model_name(model: str, param: str = "model") -> str:
    """The name that the client gave; whether there is such a model is the gateway's business.

    Raises:
        CallError: `invalid`: it is empty or too long.
    """
    if not 0 < len(model) <= MODEL_CHARS_MAX:
        raise CallError("invalid", f"{param} must have 1 to {MODEL_CHARS_MAX} characters.", param=param)
    return model


def check_ranges(call: object, ranges: Iterable[Range], prefix: str = "") -> None:
    """See that each of these attributes is `None` or within its range; `prefix`: what they stand in (`options.`).

    Raises:
        CallError: `invalid`: one is not.
    """
    for name, low, high in ranges:
        value = getattr(call, name)
        if value is not None and not low <= value <= high:  # NaN fails this too
            param = prefix + name
            raise CallError("invalid", f"{param} must be between {low} and {high}.", param=param)


def stop_sequences(stop: str | list[str] | None, param: str = "stop") -> tuple[str, ...]:
    """What ends the answer.

    Raises:
        CallError: `invalid`: too many, an empty one, or one that is too long.
    """
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > STOP_MAX or any(not 0 < len(text) <= STOP_CHARS_MAX for text in stops):
        raise CallError(
            "invalid", f"{param} takes up to {STOP_MAX} strings of 1 to {STOP_CHARS_MAX} characters.", param=param
        )
    return stops


def json_text(value: Any, param: str, *, bytes_max: int = SCHEMA_BYTES_MAX) -> str:
    """What a client sent as JSON (a schema, a call's arguments), as text.

    Raises:
        CallError: `invalid`: it is nested too deeply or too long.
    """
    text = msgspec.json.encode(value)
    if len(text) > bytes_max:
        raise CallError("invalid", f"{param} is too long: up to {bytes_max} bytes.", param=param)
    if not _is_shallow(value, LEVELS_MAX):
        raise CallError("invalid", f"{param} is nested too deeply: up to {LEVELS_MAX} levels.", param=param)
    return text.decode()


def _is_shallow(value: Any, levels: int) -> bool:
    inner = cast("Iterable[Any]", value.values() if isinstance(value, dict) else value)
    # Only what can hold more is looked into: a long list of numbers must cost no more than to read it.
    nested: list[Any] = [one for one in inner if isinstance(one, (dict, list))]
    return levels > 0 and all(_is_shallow(one, levels - 1) for one in nested)


def logit_bias(bias: dict[str, float] | None, param: str = "logit_bias") -> dict[str, float] | None:
    """Biases by token id, as clients of OpenAI send them.

    Raises:
        CallError: `invalid`: too many, a key that is no token's id, or a bias beyond -100 to 100.
    """
    if not bias:
        return None
    if len(bias) > LOGIT_BIAS_MAX:
        raise CallError("invalid", f"{param} holds more than {LOGIT_BIAS_MAX} tokens.", param=param)
    for token, value in bias.items():
        if not _TOKEN_ID.fullmatch(token):
            raise CallError("invalid", f"{param}: keys are ids of tokens, in decimal digits.", param=param)
        if not -100 <= value <= 100:
            at = f"{param}.{token}"
            raise CallError("invalid", f"{at} must be between -100 and 100.", param=at)
    return bias


def choices(chat: ChatRequest, count: int) -> tuple[ChatRequest, ...]:
    """The same chat for each of several answers; a seed counts up from one to the next, so that they differ."""
    seed = chat.sampling.seed
    if seed is None or count == 1:
        return (chat,) * count
    return tuple(
        replace(chat, sampling=replace(chat.sampling, seed=(seed + index - SEED_MIN) % 2**64 + SEED_MIN))
        for index in range(count)
    )
