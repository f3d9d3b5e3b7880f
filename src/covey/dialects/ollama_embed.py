"""Ollama's `POST /api/embed`, and the older `/api/embeddings`: bodies to ours, and their answers. Pure.

Source: Ollama's API reference, "Generate Embeddings", "Generate Embedding". An input is never cut: one that is too long
is refused, whatever `truncate` says.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from covey.contracts.inference import EMBED_INPUTS_MAX, EmbedRequest
from covey.dialects.base import EmbedCall, Head
from covey.dialects.bodies import check_ranges, decode, model_name
from covey.dialects.openai_embeddings import DIMENSIONS_MAX, json_numbers
from covey.errors import CallError

_encode = msgspec.json.Encoder().encode


class EmbedBody(msgspec.Struct):
    """What a client sends."""

    model: str
    input: str | list[str]
    dimensions: int | None = None


class EmbeddingsBody(msgspec.Struct):
    """What a client of the older path sends."""

    model: str
    prompt: str


_embed_decoder = msgspec.json.Decoder(EmbedBody)
_embeddings_decoder = msgspec.json.Decoder(EmbeddingsBody)


def parse_embed(body: bytes) -> EmbedCall:
    """A text, or up to `EMBED_INPUTS_MAX`, to embed.

    Raises:
        CallError: `invalid`, with `param` naming the field.
    """
    sent = decode(body, _embed_decoder)
    model_name(sent.model)
    check_ranges(sent, (("dimensions", 1, DIMENSIONS_MAX),))
    inputs = (sent.input,) if isinstance(sent.input, str) else tuple(sent.input)
    if not inputs or not all(inputs):
        raise CallError("invalid", "input must not be empty.", param="input")
    if len(inputs) > EMBED_INPUTS_MAX:
        raise CallError("invalid", f"input holds more than {EMBED_INPUTS_MAX} texts.", param="input")
    return EmbedCall(EmbedRequest(sent.model, inputs, sent.dimensions), _embed_answer)


def parse_embeddings(body: bytes) -> EmbedCall:
    """The older form: one `prompt`.

    Raises:
        CallError: as `parse_embed`.
    """
    sent = decode(body, _embeddings_decoder)
    model_name(sent.model)
    if not sent.prompt:
        raise CallError("invalid", "prompt must not be empty.", param="prompt")
    return EmbedCall(EmbedRequest(sent.model, (sent.prompt,)), _embeddings_answer)


def _embed_answer(head: Head, vectors: Sequence[bytes], prompt_tokens: int) -> bytes:
    told: dict[str, Any] = {
        "model": head.model,
        "embeddings": [json_numbers(vector) for vector in vectors],
        "total_duration": round(head.elapsed() * 1e9),
        "load_duration": 0,
        "prompt_eval_count": prompt_tokens,
    }
    return _encode(told)


def _embeddings_answer(_head: Head, vectors: Sequence[bytes], _prompt_tokens: int) -> bytes:
    return _encode({"embedding": json_numbers(vectors[0])})
