"""Completions of a raw prompt, in and out, as OpenAI's own client sends and reads them."""

import json
from typing import Any

import openai
import pytest
from openai.types import Completion

from covey.contracts.inference import Alternative, ChatDelta, Prompt, TokenLogprob
from covey.dialects.base import ChatCall
from covey.dialects.openai import parse_completion
from covey.dialects.openai_completions import RANGES
from covey.errors import CallError
from openai_answers import broken, client_of, events, only_chat, refused, streamed, whole

HELLO = [ChatDelta("Hel"), ChatDelta("lo"), ChatDelta(finish="length")]


def parse(prompt: Any = "Once", **fields: Any) -> ChatCall:
    return parse_completion(json.dumps({"model": "m", "prompt": prompt, **fields}).encode())


def refusal(**fields: Any) -> CallError:
    return refused(parse_completion, {"model": "m", "prompt": "Once", **fields})


def read(sent: bytes) -> list[Completion]:
    """What OpenAI's client makes of a stream, each object checked in full as well."""
    for _, event in events(sent):
        if event != "[DONE]":
            # OpenAI's own streams have `null` here until the end, as its reference says; its client's type does not.
            ended = [{**choice, "finish_reason": choice["finish_reason"] or "stop"} for choice in event["choices"]]
            Completion.model_validate({**event, "choices": ended})
    return list(client_of(sent, stream=True).completions.create(model="m", prompt="x", stream=True))


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Once", [Prompt("Once")]),
        ("", [Prompt("")]),
        (["a", "b"], [Prompt("a"), Prompt("b")]),
        ([1, 2], [Prompt(tokens=(1, 2))]),
        ([[1, 2], [3]], [Prompt(tokens=(1, 2)), Prompt(tokens=(3,))]),
    ],
)
def test_prompts(prompt: Any, prompts: list[Prompt]) -> None:
    chats = parse(prompt).chats
    assert [chat.prompt for chat in chats] == prompts
    assert all(chat.max_tokens == 16 and chat.messages == () and chat.logprobs is None for chat in chats)


def test_everything_that_is_understood() -> None:
    chat = only_chat(
        parse(
            suffix="end", max_tokens=5, stop="x", temperature=0.5, top_p=0.25, top_k=3, min_p=0.1, seed=7, user="u",
            presence_penalty=1, frequency_penalty=-1, logit_bias={"5": 3}, logprobs=2, best_of=1, echo=False,
        )
    )  # fmt: skip
    assert (chat.prompt, chat.max_tokens, chat.stop, chat.logprobs) == (Prompt("Once", suffix="end"), 5, ("x",), 2)
    sampling = chat.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed) == (
        0.5,
        0.25,
        3,
        0.1,
        7,
    )
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.logit_bias) == (1, -1, {"5": 3})


def test_choices_of_one_prompt_share_it() -> None:
    chats = parse(["a", "b"], n=2, seed=5, best_of=2).chats
    assert [(chat.prompt.text, chat.sampling.seed) for chat in chats if chat.prompt] == [
        ("a", 5), ("a", 6), ("b", 5), ("b", 6),
    ]  # fmt: skip
    assert chats[0].prompt is chats[1].prompt
    assert chats[1].prompt is not chats[2].prompt


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": None}, "invalid", "prompt"),
        ({"prompt": 5}, "invalid", "prompt"),
        ({"prompt": {}}, "invalid", "prompt"),
        ({"prompt": []}, "invalid", "prompt"),
        ({"prompt": ["a"] * 129}, "invalid", "prompt"),
        ({"prompt": ["a", 5]}, "invalid", "prompt[1]"),
        ({"prompt": [5, "a"]}, "invalid", "prompt[1]"),
        ({"prompt": [5, [5]]}, "invalid", "prompt[1]"),
        ({"prompt": ["a", [5]]}, "invalid", "prompt"),
        ({"prompt": [[5], []]}, "invalid", "prompt[1]"),
        ({"prompt": [[5], [-1]]}, "invalid", "prompt[1][0]"),
        ({"prompt": [1, 2, 2**31]}, "invalid", "prompt[2]"),
        ({"prompt": [2**31]}, "invalid", "prompt[0]"),
        ({"prompt": [1.5]}, "invalid", "prompt[0]"),
        ({"prompt": [True]}, "invalid", "prompt[0]"),
        ({"prompt": ["a", "b"], "n": 65}, "invalid", "n"),
        ({"n": 3, "best_of": 2}, "invalid", "best_of"),
        ({"best_of": 2}, "unsupported", "best_of"),
        ({"echo": True, "logprobs": 1}, "unsupported", "echo"),
        ({"echo": True, "prompt": [5]}, "unsupported", "echo"),
        # A gigabyte for each megabyte that was sent, before any model has seen it.
        ({"echo": True, "prompt": "x" * 8_000_000, "n": 128}, "too_large", "echo"),
        ({"suffix": 5}, "invalid", "suffix"),
        ({"stream_options": {}}, "invalid", "stream_options"),
        ({"logprobs": True}, "invalid", "logprobs"),
    ],
)
def test_what_cannot_be_is_named(fields: dict[str, Any], code: str, param: str) -> None:
    error = refusal(**fields)
    assert (error.code, error.param) == (code, param)
    assert error.message.startswith(param.partition("[")[0])


@pytest.mark.parametrize(("name", "low", "high"), RANGES)
def test_ranges(name: str, low: int, high: int) -> None:
    for value in (low - 1, high + 1):
        assert refusal(**{name: value}).param == name
    parse(**{name: low})


def test_a_whole_answer() -> None:
    body = whole(parse(n=2), [(0, HELLO), (1, HELLO[1:])])
    checked = Completion.model_validate(body)
    assert client_of(json.dumps(body).encode()).completions.create(model="m", prompt="x") == checked
    assert (checked.id, checked.object, checked.created) == ("cmpl-1f", "text_completion", 1_700_000_000)
    assert [(one.index, one.text, one.finish_reason) for one in checked.choices] == [
        (0, "Hello", "length"), (1, "lo", "length"),
    ]  # fmt: skip
    assert checked.usage is not None
    assert checked.usage.total_tokens == 5


def test_a_stream() -> None:
    call = parse(stream=True, stream_options={"include_usage": True})
    chunks = read(streamed(call, [(0, HELLO[:2]), (0, []), (0, HELLO[2:])]))
    assert [chunk.choices[0].text for chunk in chunks[:-1]] == ["Hel", "lo", ""]
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert events(streamed(parse(stream=True), [(0, HELLO)]))[-1] == ("", "[DONE]")


def test_a_raw_prompt_ends_by_itself_whatever_the_engine_calls_it() -> None:
    assert whole(parse(), [(0, [ChatDelta(finish="tool_calls")])])["choices"][0]["finish_reason"] == "stop"


def test_the_prompt_is_echoed() -> None:
    fields: Any = {"prompt": ["Once ", "Twice "], "echo": True, "n": 2}
    said = [(index, HELLO) for index in range(4)]
    body = Completion.model_validate(whole(parse(**fields), said))
    assert [one.text for one in body.choices] == ["Once Hello", "Once Hello", "Twice Hello", "Twice Hello"]
    texts = dict.fromkeys(range(4), "")
    for chunk in read(streamed(parse(stream=True, **fields), said)):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert list(texts.values()) == [one.text for one in body.choices]


def test_probabilities_tell_where_each_token_stands_in_the_text() -> None:
    said = [
        ChatDelta("Hi", logprobs=(TokenLogprob("Hi", -0.5, top=(Alternative("Ho", -1.0),)),)),
        ChatDelta("", logprobs=(TokenLogprob("", -0.1, b"\xc3"),)),
        ChatDelta("ä!", logprobs=(TokenLogprob("", -0.2, b"\xa4"), TokenLogprob("!", float("-inf")))),
        ChatDelta(finish="stop"),
    ]
    told = Completion.model_validate(whole(parse(logprobs=1), [(0, said)])).choices[0].logprobs
    assert told is not None
    assert told.tokens == ["Hi", "", "", "!"]
    assert told.token_logprobs == [-0.5, -0.1, -0.2, -9999.0]
    assert told.text_offset == [0, 2, 2, 3]
    assert told.top_logprobs is not None
    assert told.top_logprobs[0] == {"Ho": -1.0, "Hi": -0.5}
    chunks = read(streamed(parse(stream=True, logprobs=1), [(0, said)]))
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [offset for part in parts for offset in part.text_offset or ()] == [0, 2, 2, 3]
    assert all(chunk.choices[0].logprobs is None for chunk in read(streamed(parse(stream=True), [(0, said)])))


def test_a_stream_that_fails_never_says_done() -> None:
    sent = broken(parse(stream=True), [(0, HELLO[:1])], CallError("upstream", "It died."))
    assert b"[DONE]" not in sent
    with pytest.raises(openai.APIError, match="It died"):
        list(client_of(sent, stream=True).completions.create(model="m", prompt="x", stream=True))
