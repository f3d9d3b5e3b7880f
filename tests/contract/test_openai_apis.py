"""OpenAI's own client on the paths beside chats, and on what chats can do beyond text: the real gateway, the echo."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
import trio
from gateway_harness import gateway
from openai import OpenAI
from pydantic import BaseModel

from covey.bus.replies import Emit
from covey.contracts.inference import ChatDelta, ChatRequest
from covey.errors import CallError

MESSAGES: Any = [{"role": "user", "content": "one two three"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOLS: Any = [{"type": "function", "function": {"name": "add", "parameters": SCHEMA}}]
RESPONSE_TOOLS: Any = [{"type": "function", "name": "add", "parameters": SCHEMA, "strict": False}]


class Said(BaseModel):
    """What an answer is to be."""

    text: str


async def breaks(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
    await emit(ChatDelta("half ", tokens=1))
    raise CallError("upstream", "The engine has died.")


@asynccontextmanager
async def client() -> AsyncGenerator[OpenAI, None]:
    async with gateway() as node:
        node.inference.script = breaks
        with OpenAI(base_url=f"{node.served.url}/v1", api_key=node.key, max_retries=0, timeout=10) as made:
            yield made


async def in_thread(ask: Callable[[], Any]) -> Any:
    with trio.fail_after(30):
        return await trio.to_thread.run_sync(ask, abandon_on_cancel=True)


async def test_a_tool_is_called_whole_and_streamed() -> None:
    def whole() -> Any:
        return made.chat.completions.create(model="echo", messages=MESSAGES, tools=TOOLS, tool_choice="required")

    def streamed() -> Any:
        asked: Any = {"model": "echo", "messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"}
        with made.chat.completions.stream(**asked) as stream:
            return stream.get_final_completion()

    async with client() as made:
        for answer in (await in_thread(whole), await in_thread(streamed)):
            (choice,) = answer.choices
            assert choice.finish_reason == "tool_calls"
            (call,) = choice.message.tool_calls
            assert (call.type, call.function.name) == ("function", "add")
            assert call.id


async def test_an_answer_is_parsed_into_a_type_of_the_caller_s() -> None:
    def ask() -> Any:
        return made.chat.completions.parse(model="echo", messages=MESSAGES, response_format=Said)

    async with client() as made:
        assert (await in_thread(ask)).choices[0].message.parsed == Said(text="one two three")
        read = await in_thread(lambda: made.responses.parse(model="echo", input="one two", text_format=Said))
        assert read.output_parsed == Said(text="one two")


async def test_completions() -> None:
    def streamed() -> str:
        return "".join(one.choices[0].text for one in made.completions.create(model="echo", prompt="a b", stream=True))

    async with client() as made:
        answer = await in_thread(lambda: made.completions.create(model="echo", prompt=["a b", "c"], n=2, echo=True))
        assert [(one.index, one.text) for one in answer.choices] == [(0, "a ba b"), (1, "a ba b"), (2, "cc"), (3, "cc")]
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 6)  # a prompt counts once
        assert await in_thread(streamed) == "a b"
        told = await in_thread(lambda: made.completions.create(model="echo", prompt="a b", logprobs=1))
        assert told.choices[0].logprobs.text_offset == [0, 1]


async def test_embeddings_are_the_same_in_either_encoding() -> None:
    def ask(**fields: Any) -> Any:
        return made.embeddings.create(model="echo", input=["a", "b c"], dimensions=4, **fields)

    async with client() as made:
        packed, plain = await in_thread(ask), await in_thread(lambda: ask(encoding_format="float"))
        assert [one.embedding for one in packed.data] == [one.embedding for one in plain.data]
        assert len(packed.data[0].embedding) == 4
        assert packed.usage.total_tokens == 3


async def test_responses() -> None:
    def streamed() -> tuple[list[str], Any]:
        with made.responses.stream(model="echo", input="one two") as stream:
            return [event.type for event in stream], stream.get_final_response()

    async with client() as made:
        answer = await in_thread(lambda: made.responses.create(model="echo", input="one two", instructions="Be brief."))
        assert (answer.output_text, answer.status, answer.usage.output_tokens) == ("one two", "completed", 2)
        kinds, final = await in_thread(streamed)
        assert (kinds[0], kinds[-1], final.output_text) == ("response.created", "response.completed", "one two")
        assert kinds.count("response.output_text.delta") == 2
        cut = await in_thread(lambda: made.responses.create(model="echo", input="a b c", max_output_tokens=2))
        assert (cut.status, cut.incomplete_details.reason, cut.output_text) == (
            "incomplete",
            "max_output_tokens",
            "a b",
        )


async def test_a_response_s_call_is_answered_with_what_the_response_held() -> None:
    def first() -> Any:
        return made.responses.create(model="echo", input="x", tools=RESPONSE_TOOLS, tool_choice="required")

    async with client() as made:
        output = (await in_thread(first)).output
        given: Any = {"type": "function_call_output", "call_id": output[-1].call_id, "output": "4"}
        items: Any = [{"role": "user", "content": "y"}, *output, given]
        answer = await in_thread(lambda: made.responses.create(model="echo", input=items, tools=RESPONSE_TOOLS))
        assert answer.output_text == "y"


async def test_what_was_never_stored_cannot_be_referred_to() -> None:
    def ask() -> Any:
        return made.responses.create(model="echo", input="x", previous_response_id="resp_1")

    async with client() as made:
        with pytest.raises(openai.BadRequestError, match="nothing is stored here") as caught:
            await in_thread(ask)
        assert caught.value.param == "previous_response_id"


async def test_a_stream_that_breaks_off_is_no_answer() -> None:
    def chat() -> list[Any]:
        return list(made.chat.completions.create(model="scripted", messages=MESSAGES, stream=True))

    def completion() -> list[Any]:
        return list(made.completions.create(model="scripted", prompt="x", stream=True))

    def response() -> list[Any]:
        return list(made.responses.create(model="scripted", input="x", stream=True))

    async with client() as made:
        with pytest.raises(openai.APIError, match="died"):
            await in_thread(chat)
        *_, told, failed = await in_thread(response)
        assert (told.type, told.code) == ("error", "upstream_failed")
        assert (failed.type, failed.response.status) == ("response.failed", "failed")
        assert failed.response.output[0].content[0].text == "half "
        assert failed.response.error.message == "The engine has died."
        with pytest.raises(openai.BadRequestError, match="scripted"):  # it converses, and does no more
            await in_thread(completion)
