"""Tools for models that know none: what they are told, what they are held to, and the call found in the answer."""

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.backends.completion_requests import SYSTEM_PROMPT
from covey.backends.forced_tools import HEAD_CHARACTERS_MAX, CallFinder, call_head, plain_request
from covey.contracts.inference import (
    AnswerFormat,
    ChatDelta,
    ChatRequest,
    Image,
    Message,
    TokenLogprob,
    Tool,
    ToolCall,
    Usage,
)
from covey.errors import CallError

TREE = {
    "type": "object",
    "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#/$defs/leaf"}, "other": {"$ref": "https://x.example/s"}},
    "$defs": {"leaf": {"anyOf": [{"type": "string"}, {"type": "null"}]}},
}
WEATHER = Tool("get_weather", "Tells the weather.", '{"type": "object", "properties": {"city": {"type": "string"}}}')
PLANT = Tool("plant", "", json.dumps(TREE))
ASK = ChatRequest("m", (Message("user", "hi"),), stop=("\n",), tools=(WEATHER, PLANT))
ROME = '{"city": "Rome"}'
END = ChatDelta(finish="stop", usage=Usage(1, 1))
LENGTH = ChatDelta(finish="length", usage=Usage(1, 1))
CALL = '{"name": "get_weather", "arguments": {"city": "a \\"}\\" [b]", "n": [1, {}]}}'


def schema_of(request: ChatRequest) -> dict[str, Any]:
    assert request.format.kind == "schema"
    schema: dict[str, Any] = json.loads(request.format.schema)
    return schema


# Requests


def test_a_required_call_is_forced_by_the_union_of_all() -> None:
    plain = plain_request(msgspec.structs.replace(ASK, tool_use="required", parallel_tool_calls=True))
    assert (plain.tools, plain.tool_use, plain.stop, plain.parallel_tool_calls) == ((), "auto", (), None)
    schema = schema_of(plain)
    assert [shape["properties"]["name"]["const"] for shape in schema["anyOf"]] == ["get_weather", "plant"]
    plant = schema["$defs"]["tool1"]
    assert plant["properties"]["left"] == {"$ref": "#/$defs/tool1"}
    assert plant["properties"]["right"] == {"$ref": "#/$defs/tool1/$defs/leaf"}
    assert plant["properties"]["other"] == {"$ref": "https://x.example/s"}
    system, user = plain.messages
    assert system.role == "system"
    assert system.content.startswith(SYSTEM_PROMPT)
    assert "Tells the weather." in system.content
    assert user.content == "hi"


def test_a_forced_tool_is_the_only_one_that_is_told() -> None:
    plain = plain_request(msgspec.structs.replace(ASK, tool_use="required", forced_tool="plant"))
    assert schema_of(plain)["properties"]["name"] == {"const": "plant"}
    assert "get_weather" not in plain.messages[0].content
    with pytest.raises(CallError) as caught:
        plain_request(msgspec.structs.replace(ASK, tool_use="required", forced_tool="other"))
    assert (caught.value.code, caught.value.param) == ("invalid", "tool_choice")


def test_a_free_choice_forces_nothing_but_the_format_that_was_asked_for() -> None:
    plain = plain_request(ASK)
    assert plain.format == AnswerFormat()
    assert plain.stop == ("\n",)
    asked = AnswerFormat("schema", '{"type": "object", "properties": {"a": {"$ref": "#"}}}')
    schema = schema_of(plain_request(msgspec.structs.replace(ASK, format=asked)))
    assert schema["anyOf"][-1] == {"$ref": "#/$defs/answer"}
    assert schema["$defs"]["answer"]["properties"]["a"] == {"$ref": "#/$defs/answer"}


def test_tools_that_must_not_be_called_are_not_told() -> None:
    own = (Message("system", "Be kind."), Message("user", "hi"))
    plain = plain_request(msgspec.structs.replace(ASK, tool_use="none", messages=own))
    assert plain.messages == own
    told = plain_request(msgspec.structs.replace(ASK, messages=own))
    assert told.messages[0].content.startswith("Be kind.\n\nYou can call these tools:")


def test_earlier_calls_and_results_are_words() -> None:
    past = (
        Message("user", "weather?", "ann"),
        Message("assistant", "Let me see.", tool_calls=(ToolCall("1", "get_weather", ROME), ToolCall("2", "x"))),
        Message("tool", "rain", tool_call_id="1"),
        Message("tool", "sun", name="y", tool_call_id="2"),
        Message("user", "and now?"),
        Message("user", "again"),
        Message("tool", "fog", tool_call_id="gone"),
        Message("user", "look", images=(Image("image/png", b"x"),)),
    )  # fmt: skip
    user, assistant, results, again, fog, picture = plain_request(ChatRequest("m", past)).messages
    assert user == past[0]
    assert assistant.content == (
        'Let me see.\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n{"name": "x", "arguments": {}}'
    )
    assert not assistant.tool_calls
    assert (results.role, results.content) == (
        "user",
        "Result of get_weather: rain\nResult of y: sun\nand now?",
    )
    assert again.content == "again"
    assert picture.images
    assert fog.content == "Result of the tool: fog"


@pytest.mark.parametrize("text", ["[]", "{", "3"])
def test_a_schema_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(CallError) as caught:
        plain_request(msgspec.structs.replace(ASK, tools=(Tool("a", "", text),)))
    assert (caught.value.code, caught.value.param) == ("invalid", "tools")


# Answers


def found(pieces: list[str], *, required: bool = False, end: ChatDelta = END) -> tuple[list[ChatDelta], bool]:
    finder = CallFinder(frozenset({"get_weather", "plant"}), "call_1", required=required)
    deltas = [delta for piece in pieces if (delta := finder.receive(ChatDelta(piece, tokens=1)))]
    return [*deltas, *finder.end(end)], finder.over


@given(st.lists(st.integers(1, len(CALL) - 1), max_size=20), st.booleans(), st.sampled_from(["", "\n", " and so on"]))
def test_a_call_is_found_however_it_is_cut(cuts: list[int], required: bool, after: str) -> None:
    text = " " + CALL + after
    marks = sorted({0, *cuts, len(text)})
    deltas, over = found([text[a:b] for a, b in pairwise(marks)], required=required)
    pieces = [piece for delta in deltas for piece in delta.tool_calls]
    assert over
    assert (pieces[0].id, pieces[0].name) == ("call_1", "get_weather")
    assert json.loads("".join(piece.arguments for piece in pieces)) == {"city": 'a "}" [b]', "n": [1, {}]}
    assert "".join(delta.text for delta in deltas) == ""
    assert deltas[-1].finish == "tool_calls"


@pytest.mark.parametrize(
    "text",
    [
        "Hello.",
        "{",
        '{"na',
        '{"name": "other", "arguments": {}}',
        '{"name": 3}',
        '{"name": "get_weather", "other": {}}',
        '{"name": "get_weather", "arguments": 3}',
        '{"name": "get_weather", "arguments":',
        '{"name": "' + "x" * HEAD_CHARACTERS_MAX,
        '[{"name": "get_weather"}]',
        "",
    ],
)
@given(st.data())
def test_any_other_answer_is_passed_on_whole(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    deltas, over = found([text[:cut], text[cut:], " Bye."])
    assert not over
    assert "".join(delta.text for delta in deltas) == text + " Bye."
    assert sum(delta.tokens for delta in deltas) == 3
    assert deltas[-1] == END


def test_the_start_of_a_call_that_never_came_is_words() -> None:
    deltas, _ = found(['{"na', 'me"'])
    assert [delta.text for delta in deltas] == ['{"name"', ""]
    assert deltas[0].tokens == 2


def test_a_call_that_was_cut_off_is_told_as_far_as_it_came() -> None:
    deltas, over = found([CALL[:40]], required=True, end=LENGTH)
    assert not over
    assert deltas[0].tool_calls[0].name == "get_weather"
    assert deltas[-1] == LENGTH
    assert found([CALL[:10]], required=True, end=LENGTH)[0] == [LENGTH]


@pytest.mark.parametrize("text", ["Hello.", '{"name"', ""])
def test_a_required_call_that_does_not_come_is_the_models_failure(text: str) -> None:
    with pytest.raises(CallError) as caught:
        found([text], required=True)
    assert caught.value.code == "upstream"


def test_what_comes_after_a_call_or_beside_the_text_is_told_apart() -> None:
    finder = CallFinder(frozenset({"get_weather"}), "c", required=False)
    thought = ChatDelta(reasoning="hm", tokens=1)
    assert finder.receive(thought) == thought
    told = (TokenLogprob("x", -1.0),)
    assert finder.receive(ChatDelta('{"name": "get_weather", ', tokens=2, logprobs=told)) is None
    delta = finder.receive(ChatDelta('"arguments": {}} so', tokens=1, logprobs=told))
    assert delta is not None
    assert (delta.tokens, delta.logprobs, delta.tool_calls[0].arguments) == (3, told + told, "{}")
    assert finder.receive(ChatDelta("more", tokens=1)) is None


@given(st.text(alphabet='{}":,name argumetsx \n', max_size=60))
def test_a_head_never_changes_its_mind(text: str) -> None:
    decided = None
    for end in range(len(text) + 1):
        head = call_head(text[:end], frozenset({"a", "get_weather"}))
        if decided is False:
            assert head is False
        decided = head


def test_a_call_that_never_begins_is_given_up() -> None:
    """Mutation: wait for the head of a required call for as long as the answer lasts."""
    finder = CallFinder(frozenset({"f"}), "id", required=True)
    assert finder.receive(ChatDelta('{"name": "', tokens=1)) is None
    with pytest.raises(CallError, match="did not call a tool"):
        finder.receive(ChatDelta("x" * HEAD_CHARACTERS_MAX, tokens=1))


@pytest.mark.parametrize("name", ["[1]", "{}", "1" * 5000, "[" * 100_000])
def test_a_name_that_is_no_text_is_no_call(name: str) -> None:
    """Mutation: have a decoder read it, and look for what it made among the names."""
    assert call_head('{"name": ' + name + ', "arguments": {', frozenset({"f"})) is False
