"""`POST /v1/embeddings`: the body to ours, and the vectors as OpenAI tells them. Pure.

Source: the OpenAI API reference, "Create embeddings". openai-python asks for base64 unless told otherwise.
"""

import base64
import math
import struct
from collections.abc import Sequence
from functools import partial
from typing import Literal

import msgspec

from covey.contracts.inference import EMBED_INPUTS_MAX, EmbedRequest
from covey.dialects.base import EmbedCall, Head
from covey.dialects.bodies import Range, check_ranges, decode, model_name
from covey.dialects.openai_prompts import Prompts, read_prompts
from covey.dialects.openai_shapes import encode
from covey.errors import CallError

FLOAT_BYTES = 4
DIMENSIONS_MAX = 65_536


class EmbeddingBody(msgspec.Struct):
    """The body of a request for embeddings."""

    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


_decoder = msgspec.json.Decoder(EmbeddingBody)

RANGES: tuple[Range, ...] = (("dimensions", 1, DIMENSIONS_MAX),)


def parse_embedding(body: bytes) -> EmbedCall:
    """A request body to ours.

    Raises:
        CallError: `invalid`, with `param` naming the field.
    """
    call = decode(body, _decoder)
    model_name(call.model)
    check_ranges(call, RANGES)
    inputs = read_prompts(call.input, "input", count_max=EMBED_INPUTS_MAX, empty=False)
    request = EmbedRequest(call.model, tuple(inputs), call.dimensions)
    return EmbedCall(request, partial(render_embeddings, as_base64=call.encoding_format == "base64"))


def render_embeddings(head: Head, vectors: Sequence[bytes], prompt_tokens: int, *, as_base64: bool) -> bytes:
    """The list of embeddings. `vectors`: little-endian 32-bit floats.

    Raises:
        CallError: `upstream`: a vector holds what is not a number.
    """
    entries = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _told(one, as_base64=as_base64),
        }
        for index, one in enumerate(vectors)
    ]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return encode({"object": "list", "data": entries, "model": head.model, "usage": usage})


def _told(vector: bytes, *, as_base64: bool) -> str | msgspec.Raw:
    if as_base64:
        floats(vector)  # nobody would notice there what is no number
        return base64.b64encode(vector).decode()
    return json_numbers(vector)


def json_numbers(vector: bytes) -> msgspec.Raw:
    """A vector as JSON: one by one, for millions of Python's numbers at once take hundreds of megabytes, and the
    interpreter for as long as they are written.

    Raises:
        CallError: as `floats`.
    """
    return msgspec.Raw(encode(floats(vector)))


def floats(vector: bytes) -> tuple[float, ...]:
    """The numbers of a vector.

    Raises:
        CallError: `upstream`: one is not finite: JSON could not tell it.
    """
    numbers: tuple[float, ...] = struct.unpack(f"<{len(vector) // FLOAT_BYTES}f", vector)
    if not math.isfinite(sum(numbers)):  # 32-bit numbers cannot leave a double's range by it; asking each is slow
        raise CallError("upstream", "The model's vector holds something that is not a number.")
    return numbers
