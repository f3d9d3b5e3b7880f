"""Embeddings and models, in and out, as OpenAI's own client sends and reads them."""

import json
import struct
from typing import Any

import pytest
from openai.types import CreateEmbeddingResponse, Model

from covey.contracts.gateway import ModelSummary
from covey.contracts.inference import EmbedRequest
from covey.dialects.openai import model_list, model_one, parse_embedding
from covey.errors import CallError
from openai_answers import HEAD, client_of, refused

VECTORS = [struct.pack("<3f", 0.1, -1.5, 0), struct.pack("<3f", 1, 2, 3)]


def asked(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "input": "x", **fields}).encode()


@pytest.mark.parametrize(
    ("sent", "inputs"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
        (["x"] * 2048, ("x",) * 2048),
    ],
)
def test_inputs(sent: Any, inputs: tuple[Any, ...]) -> None:
    assert parse_embedding(asked(input=sent)).request == EmbedRequest("m", inputs)
    assert parse_embedding(asked(input=sent, dimensions=64, user="u")).request.dimensions == 64


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": [[]]}, "input[0]"),
        ({"input": [[1], "a"]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 65537}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_what_cannot_be_is_named(fields: dict[str, Any], param: str) -> None:
    error = refused(parse_embedding, asked(**fields))
    assert (error.code, error.param) == ("invalid", param)


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_vectors_reach_the_client_in_either_encoding(encoding_format: Any) -> None:
    body = parse_embedding(asked(encoding_format=encoding_format)).render(HEAD, VECTORS, 7)
    client = client_of(body)
    # Without a format of the caller's, openai-python asks for base64, and decodes it.
    if encoding_format == "base64":
        read = client.embeddings.create(model="m", input="x")
        assert isinstance(json.loads(body)["data"][0]["embedding"], str)
    else:
        read = client.embeddings.create(model="m", input="x", encoding_format="float")
        assert CreateEmbeddingResponse.model_validate(json.loads(body)) == read
    assert [(one.index, one.object) for one in read.data] == [(0, "embedding"), (1, "embedding")]
    assert read.data[0].embedding == pytest.approx([0.1, -1.5, 0])
    assert read.data[1].embedding == [1, 2, 3]
    assert (read.model, read.usage.prompt_tokens, read.usage.total_tokens) == ('m"}', 7, 7)


def test_floats_are_the_default() -> None:
    assert json.loads(parse_embedding(asked()).render(HEAD, VECTORS, 7))["data"][1]["embedding"] == [1, 2, 3]


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_what_is_no_number_is_the_model_s_failure(encoding_format: str) -> None:
    with pytest.raises(CallError) as caught:
        parse_embedding(asked(encoding_format=encoding_format)).render(HEAD, [struct.pack("<2f", 1, float("nan"))], 7)
    assert caught.value.code == "upstream"


def test_models() -> None:
    one = ModelSummary("m", "loaded", ("chat",), ("a",), context_tokens=9, created_at=3)
    other = ModelSummary("n", "remote", ("embed",), ("a",))
    body = model_list([one, other])
    read = list(client_of(body).models.list())
    assert [model.id for model in read] == ["m", "n"]
    listed = json.loads(body)
    assert [Model.model_validate(model) for model in listed["data"]] == read
    assert [model["context_length"] for model in listed["data"]] == [9, None]
    assert json.loads(model_one(one)) == listed["data"][0]
    assert client_of(model_one(one)).models.retrieve("m").owned_by == "covey"
