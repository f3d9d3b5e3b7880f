"""Embeddings as servers tell them."""

import base64
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.backends.vectors import INPUTS_EACH, embeds, packed, portions, read_embeddings, shortened
from covey.contracts.inference import Embeddings
from covey.errors import CallError

VECTOR = struct.pack("<2f", 0.5, -0.25)


def answer(*embeddings: object, tokens: int = 7) -> bytes:
    data = [{"index": index, "embedding": one} for index, one in enumerate(embeddings)]
    return json.dumps({"data": data[::-1], "usage": {"prompt_tokens": tokens}}).encode()


def test_numbers_and_base64_are_read_alike_in_the_inputs_order() -> None:
    other = struct.pack("<2f", 1, 2)
    content = answer([0.5, -0.25], base64.b64encode(other).decode())
    assert read_embeddings(content, 2) == Embeddings((VECTOR, other), 7)
    assert read_embeddings(b'{"data": []}', 0) == Embeddings((), 0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        answer(),
        answer([0.5], [0.5]),
        answer([0.5, 0.5], [0.5]) * 2,
        answer([]),
        answer("!"),
        answer("AAAA"),
        answer([1e300]),
        answer(base64.b64encode(struct.pack("<f", float("nan"))).decode()),
        answer([0.5], tokens=-1),
    ],
)
def test_anything_else_is_the_servers_fault(content: bytes) -> None:
    with pytest.raises(CallError) as caught:
        read_embeddings(content, 1)
    assert caught.value.code == "upstream"


def test_vectors_of_different_lengths_are_none() -> None:
    with pytest.raises(CallError):
        read_embeddings(answer([0.5, 0.5], [0.5]), 2)


@given(st.binary())
def test_no_bytes_break_it(content: bytes) -> None:
    try:
        read_embeddings(content, 1)
    except CallError as error:
        assert error.code == "upstream"  # noqa: PT017  either outcome will do


def test_fewer_dimensions_are_of_length_one_again() -> None:
    vector = packed([0.6, 0.0, 0.8])
    assert shortened(vector, None) == shortened(vector, 3) == shortened(vector, 9) == vector
    assert struct.unpack("<2f", shortened(vector, 2)) == (1.0, 0.0)
    assert struct.unpack("<1f", shortened(packed([0.0, 1.0]), 1)) == (0.0,)


def test_inputs_go_in_small_portions_and_in_order() -> None:
    inputs = ("a" * 40, (1,) * 95, "b" * 40, "c" * 4_000, *("d",) * 70)
    found = list(portions(inputs, 100))
    assert tuple(one for some in found for one in some) == inputs
    assert [len(some) for some in found[:4]] == [1, 1, 1, 1]
    assert max(map(len, found)) <= INPUTS_EACH
    assert len(list(portions(("d",) * 70, 8_192))) == 2


@pytest.mark.parametrize(
    ("name", "yes"),
    [
        ("text-embedding-3-small", True),
        ("BAAI/bge-m3", True),
        ("intfloat/multilingual-e5-small", True),
        ("nomic-embed-text:latest", True),
        ("all-MiniLM-L6-v2", True),
        ("gpt-4o", False),
        ("smollm2-135m-instruct", False),
        ("qwen2.5", False),
        ("code5", False),
    ],
)
def test_a_models_name_tells_whether_it_embeds(name: str, yes: bool) -> None:
    assert embeds(name) is yes
