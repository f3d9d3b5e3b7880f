"""Ollama's requests in: whatever comes, either a request or one error that names the field."""

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from covey.contracts.inference import (
    EMBED_INPUTS_MAX,
    IMAGES_MAX,
    MESSAGES_MAX,
    TOOLS_MAX,
    AnswerFormat,
    ChatRequest,
    EmbedRequest,
    Image,
    Message,
    Prompt,
    Sampling,
    Tool,
    ToolCall,
)
from covey.dialects import ollama
from covey.dialects.base import ChatCall
from covey.errors import CODES, CallError

PNG = b"\x89PNG\r\n\x1a\n and so on"
PICTURE = base64.b64encode(PNG).decode()
HI = {"role": "user", "content": "hi"}


def encoded(fields: dict[str, Any]) -> bytes:
    return json.dumps({"model": "m", **fields}).encode()


def chat_call(**fields: Any) -> ChatCall:
    return ollama.parse_chat(encoded({"messages": [HI], **fields}))


def chat(**fields: Any) -> ChatRequest:
    (only,) = chat_call(**fields).chats
    return only


def generate_call(**fields: Any) -> ChatCall:
    return ollama.parse_generate(encoded({"prompt": "hi", **fields}))


def generate(**fields: Any) -> ChatRequest:
    (only,) = generate_call(**fields).chats
    return only


def outcome(parse: Callable[[], Any]) -> Any:
    try:
        return parse()
    except CallError as error:
        return error


def refusal(parse: Callable[..., Any], **fields: Any) -> CallError:
    with pytest.raises(CallError) as caught:
        parse(**fields)
    return caught.value


def test_only_what_is_needed() -> None:
    call = chat_call()
    assert (call.stream, call.model) == (True, "m")
    assert call.chats == (ChatRequest(model="m", messages=(Message("user", "hi"),)),)
    assert generate_call().chats == call.chats
    assert generate_call().stream


def test_everything_that_is_understood() -> None:
    call = chat_call(
        stream=False, format="json", think=True, logprobs=True, top_logprobs=3, keep_alive="5m", nonsense=[{}],
        options={
            "num_predict": 9.0, "stop": ["a", "b"], "temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0.5,
            "seed": 7.0, "presence_penalty": -2, "frequency_penalty": 2.0, "num_ctx": 4096, "mirostat": "?",
        },
        tools=[
            {"type": "function", "function": {"name": "a", "description": "A.", "parameters": {"type": "object"}}},
            {"function": {"name": "b"}},
        ],
    )  # fmt: skip
    assert not call.stream
    (only,) = call.chats
    assert (only.max_tokens, only.stop, only.logprobs) == (9, ("a", "b"), 3)
    assert only.sampling == Sampling(0, 1, 0, 0.5, 7, -2, 2.0)
    assert only.tools == (Tool("a", "A.", '{"type":"object"}'), Tool("b"))
    assert only.format == AnswerFormat("json")


@pytest.mark.parametrize(
    ("sent", "max_tokens"), [(-1, None), (-2, None), (0, None), (None, None), (1, 1), (2**31 - 1, 2**31 - 1)]
)
def test_how_many_tokens(sent: int | None, max_tokens: int | None) -> None:
    assert chat(options={"num_predict": sent}).max_tokens == max_tokens


@pytest.mark.parametrize(
    ("sent", "understood"),
    [(None, AnswerFormat()), ("", AnswerFormat()), ({"type": "object"}, AnswerFormat("schema", '{"type":"object"}'))],
)
def test_formats(sent: Any, understood: AnswerFormat) -> None:
    assert chat(format=sent).format == understood


def test_probabilities_without_alternatives_and_none_unasked() -> None:
    assert chat(logprobs=True).logprobs == 0
    assert chat(top_logprobs=3).logprobs is None
    assert chat(options={"stop": "x"}).stop == ("x",)


def test_nothing_to_answer_only_asks_that_the_model_be_ready() -> None:
    for messages in ([], None):
        assert (chat_call(messages=messages).chats, chat_call(messages=messages).model) == ((), "m")
    for prompt in ("", None):
        assert (generate_call(prompt=prompt).chats, generate_call(prompt=prompt).model) == ((), "m")


def test_a_turn_with_tools_finds_the_calls_that_results_belong_to() -> None:
    called = {
        "role": "assistant",
        "tool_calls": [
            {"function": {"name": "a", "arguments": {"x": 1}}}, {"function": {"name": "b"}},
            {"id": "mine", "function": {"name": "c", "arguments": {}}},
        ],
    }  # fmt: skip
    only = chat(
        messages=[
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "See", "images": [PICTURE]}, called,
            {"role": "tool", "content": "B", "tool_name": "b"},
            {"role": "tool", "content": "C", "tool_call_id": "mine"},
            {"role": "tool", "content": "A"}, {"role": "tool", "content": "?"},
            {"role": "tool", "content": "X", "tool_call_id": "x"},
        ]
    )  # fmt: skip
    calls = (ToolCall("call_2_0", "a", '{"x":1}'), ToolCall("call_2_1", "b", "{}"), ToolCall("mine", "c", "{}"))
    assert only.messages == (
        Message("system", "Be brief."),
        Message("user", "See", images=(Image("image/png", PNG),)),
        Message("assistant", "", tool_calls=calls),
        Message("tool", "B", "b", tool_call_id="call_2_1"),
        Message("tool", "C", tool_call_id="mine"),
        Message("tool", "A", tool_call_id="call_2_0"),
        Message("tool", "?"),
        Message("tool", "X", tool_call_id="x"),
    )


def test_a_completion_with_a_template() -> None:
    only = generate(system="Be brief.", images=[PICTURE], raw=False, context=[1, 2])
    assert only.messages == (
        Message("system", "Be brief."),
        Message("user", "hi", images=(Image("image/png", PNG),)),
    )
    assert only.prompt is None


def test_a_completion_without() -> None:
    raw = generate_call(raw=True)
    assert raw.chats == (ChatRequest(model="m", messages=(), prompt=Prompt("hi")),)
    assert raw.fields["completion"] == "raw"
    gap = generate_call(suffix="end")
    assert gap.chats[0].prompt == Prompt("hi", suffix="end")
    assert gap.fields["completion"] == "suffix"


def test_embeddings() -> None:
    def request(**fields: Any) -> EmbedRequest:
        return ollama.parse_embed(encoded(fields)).request

    assert request(input="a", truncate=True, options={}) == EmbedRequest("m", ("a",))
    assert request(input=["a", "b"], dimensions=8) == EmbedRequest("m", ("a", "b"), 8)
    assert ollama.parse_embeddings(encoded({"prompt": "a"})).request == EmbedRequest("m", ("a",))


def embed(**fields: Any) -> Any:
    return ollama.parse_embed(encoded({"input": "x", **fields}))


def embeddings(**fields: Any) -> Any:
    return ollama.parse_embeddings(encoded({"prompt": "x", **fields}))


def show(**fields: Any) -> str:
    return ollama.parse_show(json.dumps(fields).encode())


def test_which_model_is_shown() -> None:
    assert show(model="m") == show(name="m") == show(model="m", name="n", verbose=True) == "m"
    assert show(model="m:latest") == "m:latest"


CALL = {"function": {"name": "n", "arguments": {}}}
TOOL = {"type": "function", "function": {"name": "n"}}


@pytest.mark.parametrize(
    ("parse", "fields", "code", "param"),
    [
        (chat, {"model": ""}, "invalid", "model"),
        (chat, {"model": None}, "invalid", "model"),
        (chat, {"stream": 1}, "invalid", "stream"),
        (chat, {"format": "xml"}, "invalid", "format"),
        (chat, {"format": 1}, "invalid", "format"),
        (chat, {"think": "a lot"}, "invalid", "think"),
        (chat, {"logprobs": 1}, "invalid", "logprobs"),
        (chat, {"top_logprobs": 21}, "invalid", "top_logprobs"),
        (chat, {"options": []}, "invalid", "options"),
        (chat, {"options": {"num_predict": -3}}, "invalid", "options.num_predict"),
        (chat, {"options": {"num_predict": 1e300}}, "invalid", "options.num_predict"),
        (chat, {"options": {"temperature": "hot"}}, "invalid", "options.temperature"),
        (chat, {"options": {"temperature": 2.1}}, "invalid", "options.temperature"),
        (chat, {"options": {"top_p": 2}}, "invalid", "options.top_p"),
        (chat, {"options": {"seed": 2**63}}, "invalid", "options.seed"),
        (chat, {"options": {"stop": [""]}}, "invalid", "options.stop"),
        (chat, {"messages": [HI] * (MESSAGES_MAX + 1)}, "invalid", "messages"),
        (chat, {"messages": [{"role": "user", "images": [PICTURE] * (IMAGES_MAX + 1)}]}, "invalid", "messages"),
        (chat, {"messages": [{"role": "developer"}]}, "invalid", "messages[0].role"),
        (chat, {"messages": [{"content": "x"}]}, "invalid", "messages[0].role"),
        (chat, {"messages": [{"role": "user", "content": []}]}, "invalid", "messages[0].content"),
        (chat, {"messages": [{"role": "user", "images": ["!"]}]}, "invalid", "messages[0].images[0]"),
        (chat, {"messages": [{"role": "user", "tool_calls": [CALL]}]}, "invalid", "messages[0].tool_calls"),
        (chat, {"messages": [{"role": "assistant", "tool_calls": [CALL] * (TOOLS_MAX + 1)}]}, "invalid",
         "messages[0].tool_calls"),
        (chat, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}]}, "invalid",
         "messages[0].tool_calls[0].function.name"),
        (chat, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "n", "arguments": "{}"}}]}]},
         "invalid", "messages[0].tool_calls[0].function.arguments"),
        (chat, {"tools": [TOOL] * (TOOLS_MAX + 1)}, "invalid", "tools"),
        (chat, {"tools": [{"type": "web_search", "function": {"name": "n"}}]}, "unsupported", "tools[0].type"),
        (chat, {"tools": [{"function": {"name": "n" * 129}}]}, "invalid", "tools[0].function.name"),
        (chat, {"tools": [{"function": {"name": "n", "parameters": []}}]}, "invalid", "tools[0].function.parameters"),
        (generate, {"model": ""}, "invalid", "model"),
        (generate, {"prompt": ["x"]}, "invalid", "prompt"),
        (generate, {"template": "{{ .Prompt }}"}, "unsupported", "template"),
        (generate, {"raw": True, "system": "x"}, "unsupported", "system"),
        (generate, {"suffix": "x", "images": [PICTURE]}, "unsupported", "images"),
        (generate, {"images": [PICTURE] * (IMAGES_MAX + 1)}, "invalid", "images"),
        (generate, {"images": ["!"]}, "invalid", "images[0]"),
        (embed, {"model": ""}, "invalid", "model"),
        (embed, {"input": ""}, "invalid", "input"),
        (embed, {"input": []}, "invalid", "input"),
        (embed, {"input": ["a", ""]}, "invalid", "input"),
        (embed, {"input": [1]}, "invalid", "input[0]"),
        (embed, {"input": ["a"] * (EMBED_INPUTS_MAX + 1)}, "invalid", "input"),
        (embed, {"dimensions": 0}, "invalid", "dimensions"),
        (embeddings, {"model": ""}, "invalid", "model"),
        (embeddings, {"prompt": ""}, "invalid", "prompt"),
        (embeddings, {"prompt": None}, "invalid", "prompt"),
        (show, {}, "invalid", "model"),
        (show, {"model": 1}, "invalid", "model"),
        (show, {"model": "x" * 201}, "invalid", "model"),
    ],
)  # fmt: skip
def test_what_is_refused_names_its_field(
    parse: Callable[..., Any], fields: dict[str, Any], code: str, param: str
) -> None:
    error = refusal(parse, **fields)
    assert (error.code, error.param) == (code, param)
    assert param in error.message


@pytest.mark.parametrize("code", CODES)
def test_errors(code: Any) -> None:
    assert json.loads(ollama.error_body(CallError(code, "So it is."))) == {"error": "So it is."}


def test_a_model_that_is_not_there_in_ollamas_words() -> None:
    error = CallError("not_found", "There is no model x.", reason="model_not_found")
    assert json.loads(ollama.error_body(error, "x")) == {"error": "model 'x' not found"}
    assert json.loads(ollama.error_body(error)) == {"error": "There is no model x."}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=5,
)
NUMBER = st.none() | st.integers() | st.floats() | JSON
OPTIONS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("num_predict", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "x"), NUMBER),
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"])},
    optional={
        "content": st.text(), "images": st.lists(st.just(PICTURE) | JSON, max_size=2),
        "tool_calls": st.lists(st.just(CALL) | JSON, max_size=2), "tool_name": st.just("n") | JSON,
    },
)  # fmt: skip
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "options": OPTIONS | JSON, "messages": st.lists(MESSAGE | JSON, max_size=4) | JSON,
        "tools": st.lists(st.just(TOOL) | JSON, max_size=2) | JSON,
        **dict.fromkeys(("model", "stream", "format", "think", "logprobs", "top_logprobs", "prompt", "suffix",
                         "system", "template", "raw", "images", "input", "dimensions", "keep_alive", "name"), JSON),
    },
)  # fmt: skip


@given(st.sampled_from([chat_call, generate_call, embed, embeddings, show]), FIELDS)
@settings(max_examples=100)
def test_any_value_of_any_field_is_read_or_refused(parse: Callable[..., Any], fields: dict[str, Any]) -> None:
    found = outcome(lambda: parse(**fields))
    if isinstance(found, CallError):
        assert found.code in ("invalid", "unsupported", "too_large")
        assert found.message.isprintable()
    else:
        assert found is not None


@given(st.binary(max_size=200))
@example(b"")
@example(b'{"options": ' + b"[" * 100_000)
@example(b'{"model": "\\ud800"}')
@example(b'{"model": "\xff"}')
@example(b'{"model": NaN}')
@example(b'{"model": "m", "options": {"seed": ' + b"9" * 5_000 + b"}}")
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    parsers: tuple[Callable[[bytes], Any], ...] = (
        ollama.parse_chat, ollama.parse_generate, ollama.parse_embed, ollama.parse_embeddings, ollama.parse_show
    )  # fmt: skip
    for parse in parsers:
        found = outcome(lambda parse=parse: parse(body))
        assert found is not None
        assert not isinstance(found, CallError) or found.code == "invalid"
