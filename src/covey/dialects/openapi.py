"""`GET /openapi.json`: what there is, from the very types that requests are read into (OpenAPI 3.1). Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from covey.dialects.bodies import Range

OPENAPI_PATH = "/openapi.json"
OPENAPI_VERSION = "3.1.0"
JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"

Schema = dict[str, Any]
_SCHEMAS = "#/components/schemas/{name}"
_KEYS: Mapping[str, Schema] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer cvy_…`"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
}
"""The three headers that a key may be sent in."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    Args:
        path: as in the table of routes; what stands in braces is a parameter.
        method: `GET` or `POST`.
        summary: what it does, in a few words.
        answer: what the answer is.
        body: the type that a request is read into; `None`: it has no body.
        ranges: the bounds of the body's numbers.
        content_types: of the answer; with a stream's, there are two.
        error: the type of an error's body; `None`: plain text.
        needs_key: whether a key is asked for.
    """

    path: str
    method: Literal["GET", "POST"]
    summary: str
    answer: str
    body: type[msgspec.Struct] | None = None
    ranges: Sequence[Range] = ()
    content_types: Sequence[str] = (JSON,)
    error: type[msgspec.Struct] | None = None
    needs_key: bool = True


def openapi(operations: Iterable[Operation], version: str) -> bytes:
    """The document. `version`: of the program."""
    listed = list(operations)
    types = list(dict.fromkeys(kind for one in listed for kind in (one.body, one.error) if kind is not None))
    refs, schemas = msgspec.json.schema_components(types, ref_template=_SCHEMAS)
    ref_of = dict(zip(types, refs, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for one in listed:
        if one.body is not None:
            _bound(schemas[ref_of[one.body]["$ref"].rpartition("/")[2]], one.ranges)
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, ref_of)
    return msgspec.json.encode(
        {
            "openapi": OPENAPI_VERSION,
            "info": {
                "title": "Covey",
                "version": version,
                "summary": "One private AI service on the machines you already own.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/"}],
            "security": [{name: []} for name in _KEYS],
            "paths": paths,
            "components": {"schemas": schemas, "securitySchemes": _KEYS},
        }
    )


def _operation(one: Operation, ref_of: Mapping[type[msgspec.Struct], Schema]) -> dict[str, Any]:
    words = [word.strip("{}") for word in one.path.split("/") if word]
    told: dict[str, Any] = {
        "operationId": "_".join([one.method.lower(), *words]).replace(".", "_"),
        "summary": one.summary,
        "responses": {
            "200": {
                "description": one.answer,
                "content": {kind: {"schema": _shape(kind)} for kind in one.content_types},
            },
            "default": {"description": "An error.", "content": _error(one.error, ref_of)},
        },
    }
    if parameters := [word.strip("{}") for word in one.path.split("/") if word.startswith("{")]:
        told["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
        ]
    if one.body is not None:
        told["requestBody"] = {"required": True, "content": {JSON: {"schema": ref_of[one.body]}}}
    if not one.needs_key:
        told["security"] = []
    return told


def _shape(content_type: str) -> Schema:
    return {"type": "object"} if content_type == JSON else {"type": "string"}


def _error(error: type[msgspec.Struct] | None, ref_of: Mapping[type[msgspec.Struct], Schema]) -> dict[str, Any]:
    if error is None:
        return {"text/plain": {"schema": {"type": "string"}}}
    return {JSON: {"schema": ref_of[error]}}


def _bound(schema: Schema, ranges: Iterable[Range]) -> None:
    """Write each range at the number that it bounds, which may be `null`, too."""
    for name, low, high in ranges:
        field = schema["properties"][name]
        for kind in field.get("anyOf", [field]):
            if kind.get("type") in ("integer", "number"):
                kind |= {"minimum": low, "maximum": high}
