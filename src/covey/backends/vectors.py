"""Embeddings as servers tell them, and which models make them. Pure."""

import base64
import binascii
import math
import re
import struct
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Annotated

import msgspec

from covey.contracts.inference import Embeddings, EmbedRequest
from covey.dialects.counting import estimated_input_tokens
from covey.errors import CallError

_EMBEDS = re.compile(r"embed|(?:^|[-_/])(?:bge|gte|e5|nomic-bert|minilm|mpnet)(?:$|[-_.:/])", re.IGNORECASE)


INPUTS_EACH = 64
TOKENS_EACH = 512


class _Usage(msgspec.Struct):
    prompt_tokens: Annotated[int, msgspec.Meta(le=2**31)] = 0


class _Item(msgspec.Struct):
    embedding: str | list[float]
    index: int = 0


class _Answer(msgspec.Struct):
    data: list[_Item]
    usage: _Usage = msgspec.field(default_factory=_Usage)


_answers = msgspec.json.Decoder(_Answer)


def embeds(model: str) -> bool:
    """Whether a model's name says that it embeds: servers list no capabilities."""
    return _EMBEDS.search(model) is not None


def portions(inputs: Sequence[str | tuple[int, ...]], tokens_max: int) -> Iterator[tuple[str | tuple[int, ...], ...]]:
    """The inputs in order, a few at a time: some `tokens_max` tokens of them, or a single longer one.

    A request for embeddings is no stream: a server ends what it was given, whoever has left meanwhile.
    """
    some: list[str | tuple[int, ...]] = []
    tokens = 0
    for one in inputs:
        cost = estimated_input_tokens(EmbedRequest("", (one,)))
        if some and (tokens + cost > tokens_max or len(some) == INPUTS_EACH):
            yield tuple(some)
            some, tokens = [], 0
        some.append(one)
        tokens += cost
    yield tuple(some)


def packed(vector: Sequence[float]) -> bytes:
    """Little-endian 32-bit floats.

    Raises:
        CallError: `upstream`: no numbers that fit.
    """
    try:
        made = struct.pack(f"<{len(vector)}f", *vector)
    except (struct.error, OverflowError) as error:
        raise _strange() from error
    return _checked(made)


def shortened(vector: bytes, dimensions: int | None) -> bytes:
    """The first `dimensions` numbers, again of length 1 (some models are made for it); `None`: all as they are."""
    if dimensions is None or 4 * dimensions >= len(vector):
        return vector
    numbers = struct.unpack(f"<{dimensions}f", vector[: 4 * dimensions])
    length = math.sqrt(sum(number * number for number in numbers)) or 1.0
    return struct.pack(f"<{dimensions}f", *(number / length for number in numbers))


def read_embeddings(content: bytes, count: int) -> Embeddings:
    """OpenAI's answer to a request with `count` inputs, its vectors in base64 or as numbers.

    Raises:
        CallError: `upstream`: it is something else.
    """
    try:
        answer = _answers.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _strange() from error
    items = sorted(answer.data, key=lambda item: item.index)
    if [item.index for item in items] != list(range(count)):
        raise _strange()
    vectors = tuple(_vector(item.embedding) for item in items)
    if len(set(map(len, vectors))) > 1 or not all(chain(vectors, (answer.usage.prompt_tokens >= 0,))):
        raise _strange()
    return Embeddings(vectors, answer.usage.prompt_tokens)


def _vector(found: str | list[float]) -> bytes:
    if isinstance(found, list):
        return packed(found)
    try:
        return _checked(base64.b64decode(found, validate=True))
    except (binascii.Error, ValueError) as error:
        raise _strange() from error


def _checked(vector: bytes) -> bytes:
    if not vector or len(vector) % 4 or not all(map(math.isfinite, struct.unpack(f"<{len(vector) // 4}f", vector))):
        raise _strange()
    return vector


def _strange() -> CallError:
    return CallError("upstream", "The model server sent something that is not a list of embeddings.")
