"""What the echo says. Pure.

- A chat is answered with the words of its last user message, a raw prompt with its own words (or its tokens' numbers).
  Pictures are counted: each puts `[image: image/png, 123 bytes]` before the words.
- `tool_use` `required` calls the forced or the first tool; `auto` calls a tool that the question names, unless the last
  message already is a tool's result. The arguments are an instance of the tool's schema.
- `json` is `{"answer": <the words>}`; `schema` an instance of the schema. Instances: the first of `enum`, the `const`,
  the words for a string, 0, false, null, one of each item; required properties alone.
- A token's probability is 1 / (2 + its place modulo 5), the alternatives are the token with `~1`, `~2`, … behind it.
- An embedding is a unit vector that its input alone decides.
"""

import hashlib
import math
import re
import struct
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from covey.contracts.inference import Alternative, ChatDelta, ChatRequest, Finish, TokenLogprob, Tool, ToolCallDelta
from covey.errors import CallError

DIMENSIONS = 256
DEPTH_MAX = 8
_TOKENS = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True, slots=True)
class Echo:
    """An answer: its pieces, a token each, why it ends, and the stop sequence that ended it."""

    pieces: list[ChatDelta]
    finish: Finish
    stopped_by: str = ""


def split_tokens(text: str) -> list[str]:
    """Words, each with the space before it; joined they are the text again."""
    return _TOKENS.findall(text)


def prompt_tokens(request: ChatRequest) -> int:
    """How many the request has: words, pictures' notes not among them."""
    prompt = request.prompt
    asked = 0 if prompt is None else len(prompt.tokens) + len(split_tokens(prompt.text))
    return asked + sum(len(split_tokens(message.content)) for message in request.messages)


def echo(request: ChatRequest) -> Echo:
    """The whole answer.

    Raises:
        CallError: `invalid`: a schema is no JSON object.
    """
    said = _said(request)
    if (tool := _chosen(request, said)) is not None:
        arguments = _json(instance(_schema(tool.parameters, "tools"), said))
        pieces = _pieces(request, split_tokens(arguments))
        call = ToolCallDelta(0, f"call_{hashlib.sha256(arguments.encode()).hexdigest()[:12]}", tool.name)
        deltas = [ChatDelta(tokens=1, tool_calls=(call,), logprobs=_logprobs(request, 0, tool.name))]
        deltas += [
            ChatDelta(tokens=1, tool_calls=(ToolCallDelta(0, arguments=piece.text),), logprobs=piece.logprobs)
            for piece in pieces
        ]
        return _cut(request, deltas, "tool_calls")
    stopped_by = ""
    if request.format.kind == "schema":
        said = _json(instance(_schema(request.format.schema, "response_format"), said))
    elif request.format.kind == "json":
        said = _json({"answer": said})
    if cuts := [(at, stop) for stop in request.stop if stop and (at := said.find(stop)) >= 0]:
        at, stopped_by = min(cuts)
        said = said[:at]
    return _cut(request, _pieces(request, split_tokens(said)), "stop", stopped_by)


def _cut(request: ChatRequest, pieces: list[ChatDelta], finish: Finish, stopped_by: str = "") -> Echo:
    if request.max_tokens is not None and len(pieces) > request.max_tokens:
        return Echo(pieces[: request.max_tokens], "length")
    return Echo(pieces, finish, stopped_by)


def _said(request: ChatRequest) -> str:
    if request.prompt is not None:
        return request.prompt.text or " ".join(map(str, request.prompt.tokens))
    asked = next((message for message in reversed(request.messages) if message.role == "user"), None)
    if asked is None:
        return ""
    notes = [f"[image: {image.media_type}, {len(image.data)} bytes]" for image in asked.images]
    return " ".join([*notes, asked.content]) if notes else asked.content


def _chosen(request: ChatRequest, said: str) -> Tool | None:
    if not request.tools or request.tool_use == "none":
        return None
    if request.tool_use == "required":
        wanted = request.forced_tool or request.tools[0].name
        if (tool := next((tool for tool in request.tools if tool.name == wanted), None)) is None:
            raise CallError("invalid", f"There is no tool {wanted[:100]!r} among the tools.", param="tool_choice")
        return tool
    if request.messages and request.messages[-1].role == "tool":
        return None
    return next((tool for tool in request.tools if tool.name in said), None)


def _pieces(request: ChatRequest, tokens: list[str]) -> list[ChatDelta]:
    return [ChatDelta(token, tokens=1, logprobs=_logprobs(request, place, token)) for place, token in enumerate(tokens)]


def _logprobs(request: ChatRequest, place: int, token: str) -> tuple[TokenLogprob, ...]:
    if request.logprobs is None:
        return ()
    own = 1 / (2 + place % 5)
    others = [(token, own), *((f"{token}~{rank}", own / 2**rank) for rank in range(1, request.logprobs))]
    top = tuple(Alternative(other, math.log(probability)) for other, probability in others[: request.logprobs])
    return (TokenLogprob(token, math.log(own), top=top),)


def _json(value: object) -> str:
    # Spaces between the tokens, so that there are several.
    return msgspec.json.format(msgspec.json.encode(value), indent=0).decode()


def _schema(text: str, param: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise CallError("invalid", "A schema is not a JSON object.", param=param) from error


def instance(schema: object, said: str, depth: int = 0) -> Any:
    """A value that a simple JSON Schema allows: types, `enum`, `const`, `required`, the first of `anyOf`, `oneOf`."""
    if not isinstance(schema, dict) or depth > DEPTH_MAX:
        return said
    known = cast("dict[str, Any]", schema)
    if "const" in known:
        return known["const"]
    for word in ("enum", "anyOf", "oneOf"):
        if choices := _items(known.get(word)):
            return choices[0] if word == "enum" else instance(choices[0], said, depth + 1)
    kind: object = known.get("type", "object" if "properties" in known or depth == 0 else "string")
    if isinstance(kind, list):
        kind = next(iter(_items(cast("object", kind))), "null")
    if kind == "object":
        found = known.get("properties")
        properties = cast("dict[str, object]", found) if isinstance(found, dict) else {}
        return {
            str(name): instance(properties.get(str(name)), said, depth + 1) for name in _items(known.get("required"))
        }
    if kind == "array":
        return [instance(known.get("items"), said, depth + 1)]
    return {"integer": 0, "number": 0, "boolean": False, "null": None}.get(str(kind), said)


def _items(value: object) -> list[Any]:
    return cast("list[object]", value) if isinstance(value, list) else []


def embedding(one: str | tuple[int, ...], dimensions: int) -> bytes:
    """A unit vector of little-endian 32-bit floats."""
    seed = one if isinstance(one, str) else " ".join(map(str, one))
    drawn = hashlib.shake_256(seed.encode()).digest(2 * dimensions)
    numbers = [value - 32767.5 for value in struct.unpack(f"<{dimensions}H", drawn)]
    length = math.sqrt(sum(number * number for number in numbers))
    return struct.pack(f"<{dimensions}f", *(number / length for number in numbers))
