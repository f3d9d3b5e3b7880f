"""What the echo says: the same for the same question, and what was asked for."""

import json
import math
import struct
from typing import Any

import msgspec
import pytest

from covey.backends.capable import check_capable, needs, no_embeddings
from covey.backends.echoing import DIMENSIONS, echo, embedding, instance, prompt_tokens
from covey.contracts.inference import AnswerFormat, ChatRequest, Image, Message, Prompt, Tool
from covey.errors import CallError

CITY = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
ASK = ChatRequest("m", (Message("user", "one two three"),))
TOOLS = msgspec.structs.replace(ASK, tools=(Tool("first", "", CITY), Tool("second")))


def text_of(request: ChatRequest) -> str:
    return "".join(piece.text for piece in echo(request).pieces)


def test_it_says_the_last_question_or_the_prompt_again() -> None:
    assert text_of(ASK) == "one two three"
    assert text_of(ChatRequest("m", (Message("system", "x"),))) == ""
    assert text_of(msgspec.structs.replace(ASK, prompt=Prompt("go on"))) == "go on"
    tokens = msgspec.structs.replace(ASK, prompt=Prompt(tokens=(1, 2)))
    assert text_of(tokens) == "1 2"
    assert prompt_tokens(tokens) == 5


def test_a_stop_sequence_and_a_limit_end_it() -> None:
    stopped = echo(msgspec.structs.replace(ASK, stop=("three", " two", "")))
    assert ([piece.text for piece in stopped.pieces], stopped.stopped_by, stopped.finish) == (["one"], " two", "stop")
    assert echo(msgspec.structs.replace(ASK, max_tokens=1)).finish == "length"


def test_pictures_are_counted() -> None:
    seen = Message("user", "hi", images=(Image("image/png", b"123"), Image("image/gif", b"")))
    assert text_of(ChatRequest("m", (seen,))) == "[image: image/png, 3 bytes] [image: image/gif, 0 bytes] hi"


def test_a_required_tool_is_called_with_an_instance_of_its_schema() -> None:
    answer = echo(msgspec.structs.replace(TOOLS, tool_use="required", logprobs=1))
    assert answer.finish == "tool_calls"
    first, *rest = (piece.tool_calls[0] for piece in answer.pieces)
    assert (first.name, bool(first.id)) == ("first", True)
    assert json.loads("".join(piece.arguments for piece in rest)) == {"city": "one two three"}
    assert all(piece.logprobs for piece in answer.pieces)
    forced = echo(msgspec.structs.replace(TOOLS, tool_use="required", forced_tool="second"))
    assert forced.pieces[0].tool_calls[0].name == "second"
    with pytest.raises(CallError):
        echo(msgspec.structs.replace(TOOLS, tool_use="required", forced_tool="third"))


def test_a_tool_that_the_question_names_is_called_until_it_has_answered() -> None:
    assert text_of(TOOLS) == "one two three"
    named = msgspec.structs.replace(TOOLS, messages=(Message("user", "use second"),))
    assert echo(named).finish == "tool_calls"
    assert echo(msgspec.structs.replace(named, tool_use="none")).finish == "stop"
    answered = msgspec.structs.replace(named, messages=(*named.messages, Message("tool", "42", tool_call_id="c")))
    assert text_of(answered) == "use second"
    assert echo(msgspec.structs.replace(named, messages=(), prompt=Prompt("second"))).finish == "tool_calls"


def test_formats_are_kept_to() -> None:
    assert json.loads(text_of(msgspec.structs.replace(ASK, format=AnswerFormat("json")))) == {"answer": "one two three"}
    schema = AnswerFormat("schema", CITY)
    assert json.loads(text_of(msgspec.structs.replace(ASK, format=schema))) == {"city": "one two three"}
    with pytest.raises(CallError) as caught:
        text_of(msgspec.structs.replace(ASK, format=AnswerFormat("schema", "[]")))
    assert (caught.value.code, caught.value.param) == ("invalid", "response_format")


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"const": 7}, 7),
        ({"enum": ["b", "a"]}, "b"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, 0),
        ({"oneOf": [{"type": ["null", "string"]}]}, None),
        ({"type": []}, None),
        ({"enum": []}, {}),
        ({"type": "array", "items": {"type": "boolean"}}, [False]),
        ({"type": "array"}, ["x"]),
        ({"type": "object", "properties": 3, "required": ["a"]}, {"a": "x"}),
        ({"properties": {"a": {"properties": {}}}, "required": ["a"]}, {"a": {}}),
        ({"type": "strange"}, "x"),
        (True, "x"),
    ],
)
def test_an_instance_is_the_simplest_one(schema: Any, value: Any) -> None:
    assert instance(schema, "x") == value


def test_an_instance_ends_somewhere() -> None:
    nested: dict[str, Any] = {}
    nested |= {"type": "array", "items": nested}
    assert "x" in json.dumps(instance(nested, "x"))


def test_probabilities_are_the_best_first() -> None:
    answer = echo(msgspec.structs.replace(ASK, logprobs=3))
    for piece in answer.pieces:
        (one,) = piece.logprobs
        assert [other.token for other in one.top] == [piece.text, f"{piece.text}~1", f"{piece.text}~2"]
        assert sorted(one.top, key=lambda other: -other.logprob) == list(one.top)
        assert sum(math.exp(other.logprob) for other in one.top) <= 1
    assert echo(msgspec.structs.replace(ASK, logprobs=0)).pieces[0].logprobs[0].top == ()


def test_an_embedding_is_of_length_one_and_its_inputs_own() -> None:
    for one in ("text", "", (1, 2)):
        numbers = struct.unpack(f"<{DIMENSIONS}f", embedding(one, DIMENSIONS))
        assert sum(number * number for number in numbers) == pytest.approx(1)
    assert embedding("a", 8) == embedding("a", 8) != embedding("b", 8)


# What a request needs


def test_each_need_is_found_with_its_field() -> None:
    picture = Message("user", "", images=(Image("image/png", b""),))
    request = ChatRequest("m", (picture,), tools=(Tool("t"),), format=AnswerFormat("json"), logprobs=0)
    assert dict(needs(request)) == {
        "chat": "messages",
        "vision": "messages",
        "tools": "tools",
        "json": "response_format",
        "logprobs": "logprobs",
    }
    assert dict(needs(msgspec.structs.replace(ASK, prompt=Prompt("x"), messages=()))) == {"completion": "prompt"}
    assert dict(needs(msgspec.structs.replace(TOOLS, tool_use="none"))) == {"chat": "messages"}
    check_capable(request, {"chat", "vision", "tools", "json", "logprobs"})
    with pytest.raises(CallError, match="m cannot call tools") as caught:
        check_capable(request, {"chat", "vision"})
    assert (caught.value.code, caught.value.reason, caught.value.param) == ("unsupported", "capability", "tools")
    assert no_embeddings("m").param == "model"
