"""Responses out, whole and streamed, as OpenAI's own client reads them."""

import json
from typing import Any

from openai.types.responses import Response

from covey.contracts.inference import ChatDelta, TokenLogprob, ToolCallDelta
from covey.dialects.base import ChatCall
from covey.dialects.openai import parse_response
from covey.errors import CallError
from openai_answers import Said, broken, check_event, client_of, events, streamed, whole

TOOLS: Any = [
    {"type": "function", "name": "add", "description": "Adds.", "parameters": {"type": "object"}, "strict": True}
]
HELLO = [ChatDelta("Hel"), ChatDelta("lo"), ChatDelta(finish="stop")]
THINKS_AND_CALLS = [
    ChatDelta(reasoning="Let me ", tokens=2),
    ChatDelta(reasoning="add.", tokens=1),
    ChatDelta("Sure."),
    ChatDelta(tool_calls=(ToolCallDelta(0, "call_1", "add", ""),)),
    ChatDelta(tool_calls=(ToolCallDelta(1, "call_2", "sub", "{"), ToolCallDelta(0, arguments='{"a":1}'))),
    ChatDelta(tool_calls=(ToolCallDelta(1, arguments="}"),)),
    ChatDelta(finish="tool_calls"),
]


def parse(**fields: Any) -> ChatCall:
    return parse_response(json.dumps({"model": "m", "input": "hi", **fields}).encode())


def checked_events(sent: bytes) -> list[dict[str, Any]]:
    """Each event, checked in full, named as its type, and numbered without a gap."""
    found = events(sent)
    for number, (name, event) in enumerate(found):
        assert name == event["type"]
        assert event["sequence_number"] == number
        check_event(event)
    return [event for _, event in found]


def same_either_way(said: Said, **fields: Any) -> dict[str, Any]:
    """The response at a stream's end, which is the one that is not streamed."""
    last = checked_events(streamed(parse(stream=True, **fields), said))[-1]["response"]
    assert last == whole(parse(**fields), said)
    return last


def test_a_whole_response() -> None:
    body = whole(parse(), [(0, HELLO)])
    checked = Response.model_validate(body)
    read = client_of(json.dumps(body).encode()).responses.create(model="m", input="hi")
    assert read == checked
    assert read.output_text == "Hello"
    assert (read.id, read.status, read.model, read.created_at) == ("resp_1f", "completed", 'm"}', 1_700_000_000)
    assert (read.error, read.incomplete_details, read.previous_response_id) == (None, None, None)
    assert (read.temperature, read.top_p, read.tool_choice, read.tools, read.truncation) == (
        1.0,
        1.0,
        "auto",
        [],
        "disabled",
    )
    assert read.usage is not None
    assert (read.usage.input_tokens, read.usage.output_tokens, read.usage.total_tokens) == (2, 3, 5)
    assert read.usage.input_tokens_details.cached_tokens == 1
    assert body["store"] is False


def test_a_response_repeats_what_was_asked() -> None:
    wanted = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    asked: dict[str, Any] = {
        "instructions": "Be brief.", "max_output_tokens": 9, "metadata": {"a": "b"}, "parallel_tool_calls": False,
        "temperature": 0.0, "top_p": 0.5, "truncation": "auto", "tools": TOOLS, "tool_choice": "required",
        "top_logprobs": 2,
    }  # fmt: skip
    body = whole(parse(**asked, text={"format": wanted}), [(0, HELLO)])
    checked = Response.model_validate(body)
    assert {name: body[name] for name in asked} == asked
    assert checked.text is not None
    assert checked.text.format is not None
    assert checked.text.format.model_dump(by_alias=True, exclude_none=True) == wanted
    for choice in (
        {"type": "function", "name": "add"},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "add"}]},
    ):
        body = whole(parse(tools=TOOLS, tool_choice=choice), [(0, HELLO)])
        Response.model_validate(body)
        assert body["tool_choice"] == choice
    body = whole(parse(text={"format": {"type": "json_object"}}), [(0, HELLO)])
    assert body["text"] == {"format": {"type": "json_object"}}


def test_a_stream_of_text_has_every_event_in_order() -> None:
    found = checked_events(streamed(parse(stream=True), [(0, HELLO[:1]), (0, []), (0, HELLO[1:])]))
    assert [event["type"] for event in found] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.delta", "response.output_text.delta", "response.output_text.done",
        "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert found[0]["response"]["status"] == "in_progress"
    assert found[0]["response"]["output"] == []
    assert found[0]["response"]["usage"] is None
    assert found[2]["item"]["content"] == []
    assert (found[4]["delta"], found[4]["logprobs"]) == ("Hel", [])
    assert found[6]["text"] == "Hello"
    assert {event["item_id"] for event in found if "item_id" in event} == {found[2]["item"]["id"]}
    assert found[8]["item"]["status"] == "completed"


def test_the_client_s_own_helper_reads_a_stream() -> None:
    sent = streamed(parse(stream=True), [(0, HELLO)])
    with client_of(sent, stream=True).responses.stream(model="m", input="hi") as stream:
        texts = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert texts == ["Hel", "Hello"]
    assert final.output_text == "Hello"
    plain = list(client_of(sent, stream=True).responses.create(model="m", input="hi", stream=True))
    assert [event.type for event in plain] == [event["type"] for event in checked_events(sent)]


def test_what_was_thought_said_and_called_are_items_of_their_own() -> None:
    body = same_either_way([(0, THINKS_AND_CALLS)], tools=TOOLS)
    thought, said, first, second = body["output"]
    assert (thought["type"], thought["content"]) == ("reasoning", [{"type": "reasoning_text", "text": "Let me add."}])
    assert said["content"][0]["text"] == "Sure."
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_1", "add", '{"a":1}')
    assert (second["call_id"], second["name"], second["arguments"]) == ("call_2", "sub", "{}")
    assert len({item["id"] for item in body["output"]}) == 4
    assert {item["status"] for item in body["output"]} == {"completed"}
    assert body["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}


def test_the_client_s_own_helper_reads_calls() -> None:
    sent = streamed(parse(stream=True, tools=TOOLS), [(0, THINKS_AND_CALLS)])
    with client_of(sent, stream=True).responses.stream(model="m", input="hi", tools=TOOLS) as stream:
        arguments = [event.snapshot for event in stream if event.type == "response.function_call_arguments.delta"]
        final = stream.get_final_response()
    assert arguments == ["{", '{"a":1}', "{}"]
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    done = [event for event in checked_events(sent) if event["type"] == "response.function_call_arguments.done"]
    assert [(event["name"], event["arguments"]) for event in done] == [("add", '{"a":1}'), ("sub", "{}")]


def test_a_model_may_think_again_after_it_spoke() -> None:
    said = [ChatDelta("A"), ChatDelta(reasoning="B"), ChatDelta("C"), ChatDelta(finish="stop")]
    found = checked_events(streamed(parse(stream=True), [(0, said)]))
    assert [item["type"] for item in found[-1]["response"]["output"]] == ["message", "reasoning", "message"]
    only_calls = same_either_way([(0, THINKS_AND_CALLS[3:])], tools=TOOLS)
    assert [item["type"] for item in only_calls["output"]] == ["function_call", "function_call"]
    straight_on = same_either_way([(0, [*THINKS_AND_CALLS[:2], *THINKS_AND_CALLS[3:]])], tools=TOOLS)
    assert [item["type"] for item in straight_on["output"]] == ["reasoning", "function_call", "function_call"]


def test_a_response_that_was_cut_is_incomplete() -> None:
    for finish, reason in (("length", "max_output_tokens"), ("content_filter", "content_filter")):
        said = [(0, [ChatDelta("Hel"), ChatDelta(finish=finish)])]  # type: ignore[arg-type]
        body = same_either_way(said)
        assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": reason})
        assert body["output"][0]["status"] == "incomplete"
        assert checked_events(streamed(parse(stream=True), said))[-1]["type"] == "response.incomplete"


def test_a_model_that_has_nothing_to_say_says_so() -> None:
    body = same_either_way([(0, [ChatDelta(finish="stop")])])
    assert [(item["type"], item["content"][0]["text"]) for item in body["output"]] == [("message", "")]
    thought = same_either_way([(0, [ChatDelta(reasoning="Hm."), ChatDelta(finish="length")])])
    assert [(item["type"], item["status"]) for item in thought["output"]] == [("reasoning", "incomplete")]


def test_probabilities() -> None:
    said = [ChatDelta("ä", logprobs=(TokenLogprob("ä", -0.5),)), ChatDelta(finish="stop")]
    told = [{"token": "ä", "logprob": -0.5, "bytes": [195, 164], "top_logprobs": []}]
    body = same_either_way([(0, said)], include=["message.output_text.logprobs"])
    assert body["output"][0]["content"][0]["logprobs"] == told
    found = checked_events(streamed(parse(stream=True, top_logprobs=1), [(0, said)]))
    assert [event["logprobs"] for event in found if event["type"].startswith("response.output_text")] == [told, told]
    assert same_either_way([(0, said)])["output"][0]["content"][0]["logprobs"] == []


def test_a_stream_that_fails_says_so_twice_and_never_that_it_is_complete() -> None:
    sent = broken(parse(stream=True), [(0, HELLO[:1])], CallError("peer_lost", "The machine went away."))
    *_, told, failed = checked_events(sent)
    assert (told["type"], told["code"], told["message"]) == ("error", "upstream_lost", "The machine went away.")
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": "The machine went away."}
    assert [item["status"] for item in failed["response"]["output"]] == ["incomplete"]
    read = list(client_of(sent, stream=True).responses.create(model="m", input="hi", stream=True))
    assert read[-1].type == "response.failed"
    for code, said in (("rate_limited", "rate_limit_exceeded"), ("invalid", "invalid_prompt")):
        late = broken(parse(stream=True), [(0, HELLO)], CallError(code, "No."))  # type: ignore[arg-type]
        last = checked_events(late)[-1]["response"]
        assert last["error"]["code"] == said
        assert last["output"][0]["status"] == "completed"
