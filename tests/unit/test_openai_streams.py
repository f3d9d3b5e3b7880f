"""However an answer falls into pieces: its stream, put together, is the answer that is not streamed."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk

from covey.contracts.inference import ChatDelta, TokenLogprob, ToolCallDelta
from covey.dialects.base import Gathered
from covey.dialects.openai import parse_chat, parse_completion, parse_response
from openai_answers import check_event, events, gather, gathered, streamed, whole

texts = st.text(max_size=4)
pieces = (
    st.builds(ChatDelta, texts)
    | st.builds(lambda text: ChatDelta(reasoning=text, tokens=1), texts)
    | st.builds(lambda text: ChatDelta(text, logprobs=(TokenLogprob(text, -0.5),)), texts)
    | st.builds(
        lambda index, arguments: ChatDelta(
            tool_calls=(
                ToolCallDelta(index, f"call_{index}", f"f{index}", ""),
                ToolCallDelta(index, arguments=arguments),
            )
        ),
        st.integers(0, 2),
        texts,
    )
)
answers = st.tuples(st.lists(pieces, max_size=8), st.sampled_from(["stop", "length", "tool_calls"])).map(
    lambda both: [*both[0], ChatDelta(finish=both[1])]
)


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[int, list[ChatDelta]]]:
    """One answer, as a gateway takes it from the bus: a few deltas at a time."""
    left = draw(answers)
    found: list[tuple[int, list[ChatDelta]]] = []
    while left:
        count = draw(st.integers(1, len(left)))
        found.append((0, left[:count]))
        left = left[count:]
    return found


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def regathered(said: list[tuple[int, list[ChatDelta]]]) -> Gathered:
    return gather(said)[0]


@given(batches())
@settings(max_examples=60)
def test_chat_completions(said: list[tuple[int, list[ChatDelta]]]) -> None:
    messages = [{"role": "user", "content": "x"}]
    sent = [
        event for _, event in events(streamed(parse_chat(body(messages=messages, stream=True, logprobs=True)), said))
    ]
    assert sent.pop() == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate(event).choices[0] for event in sent]
    message: Any = whole(parse_chat(body(messages=messages, logprobs=True)), said)["choices"][0]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == (message["message"]["content"] or "")
    thought = "".join((chunk.delta.model_extra or {}).get("reasoning_content", "") for chunk in chunks)
    assert thought == message["message"].get("reasoning_content", "")
    told = [one.model_dump() for chunk in chunks if chunk.logprobs for one in chunk.logprobs.content or ()]
    assert [one["token"] for one in told] == [one["token"] for one in message["logprobs"]["content"]]
    calls: dict[int, dict[str, str]] = {}
    for piece in (piece for chunk in chunks for piece in chunk.delta.tool_calls or ()):
        assert piece.function is not None
        call = calls.setdefault(piece.index, {"id": piece.id or "", "name": piece.function.name or "", "arguments": ""})
        call["arguments"] += piece.function.arguments or ""
    assert [calls[index] for index in sorted(calls)] == [
        {"id": call["id"], **call["function"]} for call in message["message"].get("tool_calls", ())
    ]
    assert chunks[-1].finish_reason == message["finish_reason"]
    assert all(chunk.finish_reason is None for chunk in chunks[:-1])


@given(batches())
@settings(max_examples=60)
def test_completions(said: list[tuple[int, list[ChatDelta]]]) -> None:
    sent = [event for _, event in events(streamed(parse_completion(body(prompt="x", stream=True, logprobs=0)), said))]
    assert sent.pop() == "[DONE]"
    choice = whole(parse_completion(body(prompt="x", logprobs=0)), said)["choices"][0]
    pieces = [event["choices"][0] for event in sent]
    assert "".join(piece["text"] for piece in pieces) == choice["text"] == regathered(said).text
    for name in ("tokens", "text_offset"):
        told = [one for piece in pieces if piece["logprobs"] for one in piece["logprobs"][name]]
        assert told == choice["logprobs"][name]


@given(batches())
@settings(max_examples=60)
def test_responses(said: list[tuple[int, list[ChatDelta]]]) -> None:
    sent = [event for _, event in events(streamed(parse_response(body(input="x", stream=True)), said))]
    opened: dict[int, dict[str, Any]] = {}
    done: dict[int, dict[str, Any]] = {}
    pieces: dict[int, str] = {}
    for number, event in enumerate(sent):
        check_event(event)
        assert event["sequence_number"] == number
        index = event.get("output_index", -1)
        assert index not in done
        if event["type"] == "response.output_item.added":
            assert index == len(opened)
            opened[index], pieces[index] = event["item"], ""
        elif event["type"] == "response.output_item.done":
            done[index] = event["item"]
        elif event["type"].endswith(".delta"):
            assert event["item_id"] == opened[index]["id"]
            pieces[index] += event["delta"]
    last = sent[-1]["response"]
    assert [done[index] for index in range(len(opened))] == last["output"]
    for index, item in done.items():
        assert item["id"] == opened[index]["id"]
        assert pieces[index] == (item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"])
    answer = regathered(said)
    texts = [item["content"][0]["text"] for item in last["output"] if item["type"] == "message"]
    assert "".join(texts) == answer.text
    calls = [item for item in last["output"] if item["type"] == "function_call"]
    assert sorted((item["call_id"], item["arguments"]) for item in calls) == [
        (call.id, call.arguments) for call in answer.tool_calls
    ]
    assert last["usage"] == whole(parse_response(body(input="x")), said)["usage"]


def test_what_was_thought_is_counted_where_it_was_counted() -> None:
    answer = gathered(
        ChatDelta(reasoning="a", tokens=2), ChatDelta("b", reasoning="c", tokens=1), ChatDelta("d", tokens=1)
    )
    assert answer.reasoning_tokens == 2
