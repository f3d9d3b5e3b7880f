"""Chat completions out, whole and streamed, as OpenAI's own client reads them."""

import json
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from covey.contracts.inference import Alternative, ChatDelta, TokenLogprob, ToolCallDelta, Usage
from covey.dialects.base import ChatCall
from covey.dialects.openai import parse_chat
from covey.errors import CallError
from openai_answers import HEAD, broken, client_of, events, streamed, whole, writer

MESSAGES: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [{"type": "function", "function": {"name": "add"}}]
HELLO = [ChatDelta("Hel", tokens=1), ChatDelta("lo", tokens=1), ChatDelta(finish="stop", usage=Usage(2, 2))]
CALLS = [
    ChatDelta(reasoning="Let me ", tokens=2),
    ChatDelta(reasoning="add.", tokens=1),
    ChatDelta("Sure: "),
    ChatDelta(tool_calls=(ToolCallDelta(0, "call_1", "add", ""),)),
    ChatDelta(tool_calls=(ToolCallDelta(0, arguments='{"a":'), ToolCallDelta(0, arguments="1}"))),
    ChatDelta(tool_calls=(ToolCallDelta(1, "call_2", "sub", "{}"),)),
    ChatDelta(finish="tool_calls"),
]
LOGPROBS = [
    ChatDelta("", logprobs=(TokenLogprob("", float("-inf"), b"\xc3"),)),
    ChatDelta("ä", logprobs=(TokenLogprob("ä", -0.5, top=(Alternative("ä", -0.5), Alternative("b", float("nan")))),)),
    ChatDelta(finish="length"),
]


def parse(**fields: Any) -> ChatCall:
    return parse_chat(json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode())


def read(call: ChatCall, sent: bytes, **fields: Any) -> list[ChatCompletionChunk]:
    """What OpenAI's client makes of a stream, each chunk checked in full as well."""
    assert call.stream
    for _, event in events(sent):
        if event != "[DONE]":
            ChatCompletionChunk.model_validate(event)
    client = client_of(sent, stream=True)
    return list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True, **fields))


def test_a_whole_answer() -> None:
    body = whole(parse(), [(0, HELLO)])
    checked = ChatCompletion.model_validate(body)
    read = client_of(json.dumps(body).encode()).chat.completions.create(model="m", messages=MESSAGES)
    assert read == checked
    assert (checked.id, checked.model, checked.created) == ("chatcmpl-1f", 'm"}', 1_700_000_000)
    assert checked.choices[0].message.content == "Hello"
    assert checked.choices[0].finish_reason == "stop"
    assert (checked.choices[0].logprobs, checked.choices[0].message.tool_calls) == (None, None)
    assert checked.usage is not None
    assert (checked.usage.prompt_tokens, checked.usage.completion_tokens, checked.usage.total_tokens) == (2, 3, 5)
    assert checked.usage.prompt_tokens_details is not None
    assert checked.usage.prompt_tokens_details.cached_tokens == 1
    assert body["choices"][0]["message"]["refusal"] is None


def test_an_answer_without_text_is_empty_text() -> None:
    assert whole(parse(), [(0, [ChatDelta(finish="stop")])])["choices"][0]["message"]["content"] == ""


def test_a_whole_answer_that_calls_tools() -> None:
    checked = ChatCompletion.model_validate(whole(parse(tools=TOOLS), [(0, CALLS)]))
    message = checked.choices[0].message
    assert message.content == "Sure: "
    assert message.model_extra == {"reasoning_content": "Let me add."}
    assert checked.choices[0].finish_reason == "tool_calls"
    assert [(call.id, call.type) for call in message.tool_calls or ()] == [
        ("call_1", "function"),
        ("call_2", "function"),
    ]
    functions = [call.function for call in message.tool_calls or () if call.type == "function"]
    assert [(function.name, function.arguments) for function in functions] == [("add", '{"a":1}'), ("sub", "{}")]
    assert checked.usage is not None
    assert checked.usage.completion_tokens_details is not None
    assert checked.usage.completion_tokens_details.reasoning_tokens == 3
    only = whole(parse(tools=TOOLS), [(0, CALLS[3:])])
    assert only["choices"][0]["message"]["content"] is None


def test_a_stream() -> None:
    call = parse(stream=True)
    sent = streamed(call, [(0, HELLO[:1]), (0, []), (0, HELLO[1:])])
    chunks = read(call, sent)
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "Hel", "lo", None]
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", None, None, None]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "stop"]
    assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {("chatcmpl-1f", 1_700_000_000, 'm"}')}
    assert events(sent)[-1] == ("", "[DONE]")
    assert b'"usage"' not in sent


def test_a_stream_that_ends_with_usage() -> None:
    call = parse(stream=True, stream_options={"include_usage": True})
    sent = streamed(call, [(0, HELLO)])
    chunks = read(call, sent)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 5
    payloads = [event for _, event in events(sent)][:-2]
    assert all("usage" in event and event["usage"] is None for event in payloads)


def test_a_stream_of_several_choices() -> None:
    call = parse(stream=True, n=2)
    chunks = read(call, streamed(call, [(1, HELLO[:1]), (0, HELLO), (1, HELLO[1:])]))
    said = {0: "", 1: ""}
    for chunk in chunks:
        said[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert said == {0: "Hello", 1: "Hello"}
    assert [chunk.choices[0].index for chunk in chunks[:2]] == [0, 1]
    assert sum(chunk.choices[0].finish_reason == "stop" for chunk in chunks) == 2
    body = ChatCompletion.model_validate(whole(parse(n=2), [(0, HELLO), (1, HELLO)]))
    assert [choice.index for choice in body.choices] == [0, 1]


def test_a_stream_that_calls_tools_as_the_client_s_own_helper_puts_it_together() -> None:
    call = parse(stream=True, tools=TOOLS)
    sent = streamed(call, [(0, CALLS)])
    assert [chunk.choices[0].delta.model_extra for chunk in read(call, sent)][1:3] == [
        {"reasoning_content": "Let me "}, {"reasoning_content": "add."},
    ]  # fmt: skip
    with client_of(sent, stream=True).chat.completions.stream(model="m", messages=MESSAGES, tools=TOOLS) as stream:
        for _ in stream:
            pass
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Sure: "
    assert [(one.id, one.function.name, one.function.arguments) for one in choice.message.tool_calls or ()] == [
        ("call_1", "add", '{"a":1}'), ("call_2", "sub", "{}"),
    ]  # fmt: skip


def test_who_asked_with_functions_is_answered_so() -> None:
    fields: Any = {"functions": [{"name": "add"}]}
    message = ChatCompletion.model_validate(whole(parse(**fields), [(0, CALLS)])).choices[0]
    assert message.finish_reason == "function_call"
    assert message.message.tool_calls is None
    assert message.message.function_call is not None
    assert (message.message.function_call.name, message.message.function_call.arguments) == ("add", '{"a":1}')
    call = parse(stream=True, **fields)
    pieces = [chunk.choices[0] for chunk in read(call, streamed(call, [(0, CALLS)]), functions=[{"name": "add"}])]
    calls = [piece.delta.function_call for piece in pieces if piece.delta.function_call]
    assert [(one.name, one.arguments) for one in calls] == [("add", ""), (None, '{"a":'), (None, "1}")]
    assert pieces[-1].finish_reason == "function_call"


def test_probabilities() -> None:
    expected = [("", -9999.0, [0xC3], []), ("ä", -0.5, [0xC3, 0xA4], [("ä", -0.5), ("b", -9999.0)])]
    body = ChatCompletion.model_validate(whole(parse(logprobs=True, top_logprobs=2), [(0, LOGPROBS)]))
    assert body.choices[0].finish_reason == "length"
    told = body.choices[0].logprobs
    assert told is not None
    assert [
        (one.token, one.logprob, one.bytes, [(top.token, top.logprob) for top in one.top_logprobs])
        for one in told.content or ()
    ] == expected
    call = parse(stream=True, logprobs=True, top_logprobs=2)
    chunks = read(call, streamed(call, [(0, LOGPROBS)]))
    found = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [one.token for logprobs in found for one in logprobs.content or ()] == ["", "ä"]
    unasked = parse(stream=True)
    assert all(chunk.choices[0].logprobs is None for chunk in read(unasked, streamed(unasked, [(0, LOGPROBS)])))
    assert whole(parse(), [(0, LOGPROBS)])["choices"][0]["logprobs"] is None


def test_a_stream_that_fails_raises_in_the_client_and_never_says_done() -> None:
    call = parse(stream=True)
    sent = broken(call, [(0, HELLO[:1])], CallError("peer_lost", "The machine went away."))
    assert b"[DONE]" not in sent
    assert events(sent)[-1] == (
        "error",
        {"error": {"message": "The machine went away.", "type": "api_error", "param": None, "code": "upstream_lost"}},
    )
    stream = client_of(sent, stream=True).chat.completions.create(model="m", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="went away"):
        list(stream)


@given(st.lists(st.text()))
def test_text_survives_every_shape(texts: list[str]) -> None:
    deltas = [ChatDelta(text) for text in texts]
    for fields in ({}, {"stream_options": {"include_usage": True}}):
        rendering = writer(parse(stream=True, **fields))
        sent = rendering.deltas(0, deltas)
        payloads = [event for _, event in events(sent)] if sent else []
        assert [event["choices"][0]["delta"]["content"] for event in payloads] == [text for text in texts if text]
        assert all(("usage" in event) == bool(fields) for event in payloads)
        last = [*deltas, ChatDelta(finish="stop")]
        mixed = [event for _, event in events(rendering.deltas(0, last))]
        assert [event["choices"][0]["delta"].get("content") for event in mixed[:-1]] == [text for text in texts if text]
    body = whole(parse(), [(0, [*deltas, ChatDelta(finish="stop")])])
    assert body["choices"][0]["message"]["content"] == "".join(texts)


def test_the_head_is_the_call_s() -> None:
    assert writer(parse()).begin().count(HEAD.id.encode()) == 1
