"""The description of the API: valid, and made of the types and ranges that requests are held to."""

import json
from typing import Any

import msgspec
from openapi_spec_validator import OpenAPIV31SpecValidator

from covey.dialects.openai_chat import RANGES, ChatBody
from covey.dialects.openai_operations import OPERATIONS
from covey.dialects.openapi import LINES, Operation, openapi


class Tally(msgspec.Struct):
    """Made up."""

    count: int
    share: float | None = None


class Refused(msgspec.Struct):
    """Made up."""

    error: str


MADE_UP = (
    Operation("/api/count", "POST", "Count.", "Lines.", Tally, (("count", 1, 5), ("share", 0, 1)), (LINES,), Refused),
    Operation("/healthz", "GET", "Live?", "Yes.", content_types=("text/plain",), needs_key=False),
)


def described(*operations: Operation) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(openapi(operations, "1.2.3"))
    OpenAPIV31SpecValidator(document).validate()
    return document


def test_the_description_of_openai_s_paths_is_valid_and_complete() -> None:
    document = described(*OPERATIONS, *MADE_UP)
    assert document["info"]["version"] == "1.2.3"
    assert {(path, method) for path, methods in document["paths"].items() for method in methods} == {
        (one.path, one.method.lower()) for one in (*OPERATIONS, *MADE_UP)
    }
    identifiers = [one["operationId"] for methods in document["paths"].values() for one in methods.values()]
    assert len(set(identifiers)) == len(identifiers)
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert set(chat["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatBody"}
    assert document["paths"]["/v1/models/{id}"]["get"]["parameters"][0]["name"] == "id"


def test_every_field_is_there_with_the_bounds_that_hold() -> None:
    schema = described(*OPERATIONS)["components"]["schemas"]["ChatBody"]
    assert set(schema["properties"]) == set(ChatBody.__struct_fields__)
    assert schema["required"] == ["model", "messages"]
    for name, low, high in RANGES:
        number = schema["properties"][name]["anyOf"][0]
        assert (number["minimum"], number["maximum"]) == (low, high)


def test_another_family_s_types_and_errors() -> None:
    document = described(*MADE_UP)
    tally = document["components"]["schemas"]["Tally"]["properties"]
    assert tally["count"] == {"type": "integer", "minimum": 1, "maximum": 5}
    count = document["paths"]["/api/count"]["post"]
    assert count["responses"]["default"]["content"]["application/json"]["schema"]["$ref"].endswith("/Refused")
    health = document["paths"]["/healthz"]["get"]
    assert health["security"] == []
    assert health["responses"]["default"]["content"] == {"text/plain": {"schema": {"type": "string"}}}
    assert document["security"] == [{"bearer": []}, {"x-api-key": []}, {"api-key": []}]
