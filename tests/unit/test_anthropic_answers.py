"""Anthropic's messages out: its own client reads whole answers, streams and errors as it would Anthropic's."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import anthropic as sdk
import httpx2 as httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.contracts.inference import ChatDelta, ToolCallDelta, Usage
from covey.dialects import anthropic
from covey.dialects.base import Gathered, Head
from covey.errors import CallError

HEAD = Head("abc", "m", 1_795_000_000.5)
USAGE = Usage(30, 7, 10)
THINKS = {"type": "enabled", "budget_tokens": 1024}
ASK: dict[str, Any] = {"model": "m", "max_tokens": 99, "messages": [{"role": "user", "content": "hi"}]}

Batches = Sequence[Sequence[ChatDelta]]


def answered(body: bytes, batches: Batches, broken: CallError | None = None) -> tuple[bytes, bool]:
    """What the dialect makes of a request and its answer, and whether as a stream."""
    call = anthropic.parse_messages(body)
    writer, gathered = call.writer(HEAD), Gathered()
    streamed = [writer.begin()]
    for batch in batches:
        gathered.add(batch)
        streamed.append(writer.deltas(0, batch))
    if not call.stream:
        return writer.whole([gathered], USAGE), False
    streamed.append(writer.end([gathered], USAGE) if broken is None else writer.failed(broken))
    return anthropic.PING.join(streamed), True


def serving(batches: Batches, broken: CallError | None = None) -> sdk.Anthropic:
    """A client whose service answers with these deltas."""

    def answer(request: httpx.Request) -> httpx.Response:
        body, is_stream = answered(request.read(), batches, broken)
        kind = "text/event-stream" if is_stream else "application/json"
        return httpx.Response(200, headers={"content-type": kind}, content=body)

    return client(answer)


def client(answer: Callable[[httpx.Request], httpx.Response]) -> sdk.Anthropic:
    transport = httpx.Client(transport=httpx.MockTransport(answer))
    return sdk.Anthropic(api_key="k", base_url="http://covey", http_client=transport, max_retries=0)


def both(batches: Batches, **fields: Any) -> sdk.types.Message:
    """The answer, whole and streamed: the same by either way, but for what a stream cannot take back."""
    with serving(batches) as service:
        whole = service.messages.create(**{**ASK, **fields})
        with service.messages.stream(**{**ASK, **fields}) as stream:
            gathered = stream.get_final_message()
    assert whole.to_dict(exclude_none=True) == gathered.to_dict(exclude_none=True)
    return whole


def text(*pieces: str, **last: Any) -> list[ChatDelta]:
    return [*(ChatDelta(piece, 1) for piece in pieces), ChatDelta(finish="stop", **last)]


def piece(index: int, arguments: str = "", name: str = "", call_id: str = "") -> ChatDelta:
    return ChatDelta(tool_calls=(ToolCallDelta(index, call_id, name, arguments),))


def test_text() -> None:
    answer = both([text("Hel", "lo")[:2], [ChatDelta(" you", 1)], [ChatDelta(finish="stop")]])
    assert answer.id == "msg_abc"
    assert (answer.model, answer.role, answer.type) == ("m", "assistant", "message")
    assert [block.to_dict() for block in answer.content] == [{"type": "text", "text": "Hello you"}]
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert (answer.usage.input_tokens, answer.usage.cache_read_input_tokens, answer.usage.output_tokens) == (20, 10, 7)


def test_nothing_at_all() -> None:
    assert both([text()]).content == []


@pytest.mark.parametrize(
    ("last", "reason", "sequence"),
    [
        (ChatDelta(finish="length"), "max_tokens", None),
        (ChatDelta(finish="content_filter"), "refusal", None),
        (ChatDelta(finish="stop", stopped_by="END"), "stop_sequence", "END"),
    ],
)
def test_why_it_ended(last: ChatDelta, reason: str, sequence: str | None) -> None:
    answer = both([[ChatDelta("x"), last]])
    assert (answer.stop_reason, answer.stop_sequence) == (reason, sequence)


THOUGHT = [ChatDelta(reasoning="Hm", tokens=1), ChatDelta("yes", 1, reasoning="m."), ChatDelta("!", 1)]


@pytest.mark.parametrize("thinking", [THINKS, {"type": "adaptive"}])
def test_what_is_thought_comes_first_for_those_who_ask(thinking: Any) -> None:
    answer = both([THOUGHT, text()], thinking=thinking)
    assert [block.to_dict() for block in answer.content] == [
        {"type": "thinking", "thinking": "Hmm.", "signature": ""},
        {"type": "text", "text": "yes!"},
    ]


@pytest.mark.parametrize(
    "fields", [{}, {"thinking": {"type": "disabled"}}, {"thinking": {"type": "adaptive", "display": "omitted"}}]
)
def test_what_is_thought_is_left_out_for_the_others(fields: Any) -> None:
    assert [block.type for block in both([THOUGHT, text()], **fields).content] == ["text"]


def test_a_call_as_it_comes() -> None:
    first = [ChatDelta("I look."), piece(0, name="weather", call_id="t1"), piece(0, '{"city"')]
    batches = [first, [piece(0, ':"Rome"}')], [ChatDelta(finish="tool_calls")]]
    answer = both(batches)
    assert [block.to_dict() for block in answer.content] == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}},
    ]
    assert answer.stop_reason == "tool_use"
    with serving(batches) as service, service.messages.stream(**ASK) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
    assert pieces == ['{"city"', ':"Rome"}']


def test_calls_whose_pieces_come_in_between_and_without_ids() -> None:
    mixed = [piece(1, '{"b":', "two"), piece(0, "", "one"), piece(1, "2}"), ChatDelta("late"), *text()]
    with serving([mixed]) as service:
        whole = service.messages.create(**ASK)
        with service.messages.stream(**ASK) as stream:
            streamed = stream.get_final_message()
    calls = [
        {"type": "tool_use", "id": "toolu_abc_0", "name": "one", "input": {}},
        {"type": "tool_use", "id": "toolu_abc_1", "name": "two", "input": {"b": 2}},
    ]
    said = {"type": "text", "text": "late"}
    assert [block.to_dict() for block in whole.content] == [said, *calls]
    assert [block.to_dict() for block in streamed.content] == [calls[1], said, calls[0]]
    assert whole.stop_reason == streamed.stop_reason == "tool_use"


@pytest.mark.parametrize("arguments", ['{"city": "Ro', "[1]", "x", "[" * 100_000])
def test_arguments_that_are_no_object_are_kept(arguments: str) -> None:
    with serving([[piece(0, arguments, "n", "t"), ChatDelta(finish="length")]]) as service:
        (call,) = service.messages.create(**ASK).content
    assert call.to_dict()["input"] == {"INVALID_JSON": arguments}


def test_a_stream_that_breaks_raises_and_never_stops() -> None:
    broken = CallError("peer_lost", "The machine went away.")
    batches = [[ChatDelta("Hel")]]
    body, _ = answered(json.dumps({**ASK, "stream": True}).encode(), batches, broken)
    assert b"message_stop" not in body
    assert body.endswith(
        b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"The machine went away."}}\n\n'
    )
    with (
        serving(batches, broken) as service,
        pytest.raises(sdk.APIStatusError, match="The machine went away"),
        service.messages.stream(**ASK) as stream,
    ):
        stream.get_final_message()


def test_a_stream_begins_with_a_guess_at_its_tokens() -> None:
    with serving([text("x")]) as service, service.messages.create(**ASK, stream=True) as stream:
        first = next(iter(stream))
    assert first.type == "message_start"
    assert first.message.usage.input_tokens > 0


def test_refusals_are_the_clients_own_exceptions() -> None:
    error = CallError("not_found", "There is no model x.", reason="model_not_found")
    with (
        client(lambda _: httpx.Response(404, content=anthropic.error_body(error))) as service,
        pytest.raises(sdk.NotFoundError) as caught,
    ):
        service.messages.create(**ASK)
    assert caught.value.type == "not_found_error"


def test_counts() -> None:
    with client(lambda _: httpx.Response(200, content=anthropic.counted(12))) as service:
        assert service.messages.count_tokens(model="m", messages=ASK["messages"]).input_tokens == 12


DELTA = st.builds(
    ChatDelta,
    text=st.text(max_size=5),
    reasoning=st.text(max_size=5),
    tool_calls=st.lists(
        st.builds(ToolCallDelta, st.integers(0, 2), st.just(""), st.just("n"), st.sampled_from(["", "1", "2"])),
        max_size=2,
    ).map(tuple),
)


@given(st.lists(st.lists(DELTA, max_size=4), max_size=5), st.booleans())
@settings(max_examples=150)
def test_a_stream_holds_what_a_whole_answer_does(batches: list[list[ChatDelta]], thinks: bool) -> None:
    """Each block opens, gets pieces, closes; together they are all that was said, thought and called."""
    body, _ = answered(
        json.dumps({**ASK, "stream": True, "thinking": {"type": "adaptive" if thinks else "disabled"}}).encode(),
        [*batches, [ChatDelta(finish="stop")]],
    )
    gathered = Gathered()
    for batch in batches:
        gathered.add(batch)
    told: dict[str, list[str]] = {"text": [], "thinking": [], "partial_json": []}
    opened: int | None = None
    blocks = 0
    for event in [json.loads(part.partition(b"data: ")[2]) for part in body.split(b"\n\n") if part]:
        if event["type"] == "content_block_start":
            assert (opened, event["index"]) == (None, blocks)
            opened, blocks = blocks, blocks + 1
        elif event["type"] == "content_block_delta":
            assert event["index"] == opened
            (name,) = event["delta"].keys() - {"type"}
            told[name].append(event["delta"][name])
        elif event["type"] == "content_block_stop":
            assert event["index"] == opened
            opened = None
    assert opened is None
    assert "".join(told["text"]) == gathered.text
    assert "".join(told["thinking"]) == (gathered.reasoning if thinks else "")
    assert sorted("".join(told["partial_json"])) == sorted("".join(call.arguments for call in gathered.tool_calls))
