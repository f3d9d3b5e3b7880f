"""The clients that people have, unchanged, against a real node with a real model: they must not be able to tell.

docs/clients.md is what a run of this file says; `make clients` writes it anew.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest
from clients import shows
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from running import NodeProcess, running_node, wait_for

pytestmark = [pytest.mark.model, pytest.mark.slow]
MODEL = "smollm2-135m-instruct"
EMBEDDER = "multilingual-e5-small"
FRANCE = "What is the capital of France?"
ASK: Any = [{"role": "user", "content": FRANCE}]
CONFIG = '[inference]\nbackends = ["embedded", "embedder"]\n'
MODEL_SECONDS = 180.0
WEATHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather of a city.", "parameters": WEATHER_SCHEMA},
}
WANTS_WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris? Call the tool."}]


class City(BaseModel):
    """What a structured answer is to hold."""

    name: str
    population: int


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with running_node(tmp_path_factory.mktemp("clients"), config=CONFIG) as running:
        running.add_user()
        wait_for(lambda: httpx.get(f"{running.url}/readyz").status_code == 200, MODEL_SECONDS, running.said)
        yield running


@pytest.fixture(scope="module")
def key(node: NodeProcess) -> str:
    return node.create_key()


@pytest.fixture(scope="module")
def embedder(node: NodeProcess) -> str:
    """The embedding model, fetched."""
    node.covey("models", "pull", EMBEDDER)
    return EMBEDDER


# openai


@pytest.fixture(scope="module")
def client(node: NodeProcess, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0) as made:
        yield made


@shows("openai", "chat")
def test_openai_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASK, temperature=0, max_tokens=40)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


@shows("openai", "chat, streamed, with the helper that gathers")
def test_openai_chat_stream(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=ASK, temperature=0, max_tokens=40) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert "Paris" in (final.choices[0].message.content or "")


@shows("openai", "several choices, seeds, stop sequences, probabilities")
def test_openai_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK, n=2, seed=7, stop=["Paris"], logprobs=True, top_logprobs=3, max_tokens=20
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert "Paris" not in (choice.message.content or "")
        assert choice.logprobs is not None
        assert choice.logprobs.content
        for token in choice.logprobs.content:
            assert token.logprob <= 0
            assert 1 <= len(token.top_logprobs) <= 3


@shows("openai", "a tool that must be called")
@pytest.mark.parametrize("stream", [False, True])
def test_openai_tools(client: openai.OpenAI, stream: bool) -> None:
    fields: Any = {
        "model": MODEL, "messages": WANTS_WEATHER, "tools": [WEATHER], "tool_choice": "required", "max_tokens": 100,
    }  # fmt: skip
    if stream:
        with client.chat.completions.stream(**fields) as events:
            choice = events.get_final_completion().choices[0]
    else:
        choice = client.chat.completions.create(**fields).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls or []
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    assert call.id


@shows("openai", "a tool's result, and an answer to it")
def test_openai_tool_results(client: openai.OpenAI) -> None:
    call: Any = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
    messages: Any = [
        *WANTS_WEATHER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny, 21 degrees"},
    ]
    answer = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        tools=[WEATHER],
        tool_choice="none",
        max_tokens=60,  # type: ignore[list-item]
    )
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.tool_calls


@shows("openai", "structured output, parsed")
def test_openai_structured(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Tell the name and population of the capital of France as JSON."}],
        response_format=City,
        max_tokens=100,
    )
    parsed = answer.choices[0].message.parsed
    assert isinstance(parsed, City)
    assert parsed.name


@shows("openai", "JSON mode")
def test_openai_json(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Name a colour, as a JSON object with the key colour."}],
        response_format={"type": "json_object"},
        max_tokens=200,
        temperature=0,
    )
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


@shows("openai", "completions of plain text")
def test_openai_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=["Once upon", "The end"], max_tokens=5)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert all(choice.text for choice in answer.choices)
    pieces = list(client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=5, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices)


@shows("openai", "embeddings: float and base64, one and many")
def test_openai_embeddings(client: openai.OpenAI, embedder: str) -> None:
    packed = client.embeddings.create(model=embedder, input=["a cat", "eine Katze", "the stock market"])
    plain = client.embeddings.create(model=embedder, input="a cat", encoding_format="float")
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert packed.usage.prompt_tokens > 0
    cat, katze, market = (one.embedding for one in packed.data)
    assert similarity(cat, katze) > similarity(cat, market)


def similarity(one: list[float], other: list[float]) -> float:
    """Of unit vectors."""
    return sum(a * b for a, b in zip(one, other, strict=True))


@shows("openai", "responses")
def test_openai_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input=FRANCE, temperature=0, max_output_tokens=40)
    assert "Paris" in answer.output_text
    assert answer.status == "completed"
    assert answer.usage
    assert answer.usage.output_tokens > 3


@shows("openai", "responses, streamed, with every event")
def test_openai_responses_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model=MODEL, input=FRANCE, temperature=0, max_output_tokens=40) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "Paris" in final.output_text
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert {"response.output_item.added", "response.content_part.added", "response.output_text.delta"} <= set(kinds)
    assert {"response.output_text.done", "response.content_part.done", "response.output_item.done"} <= set(kinds)


@shows("openai", "responses: tools and parsed output")
def test_openai_responses_tools(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "name": "weather", "parameters": WEATHER_SCHEMA, "strict": True}
    answer = client.responses.create(
        model=MODEL, input=WANTS_WEATHER, tools=[tool], tool_choice="required", max_output_tokens=100
    )
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "weather"
    assert set(json.loads(call.arguments)) == {"city"}
    parsed = client.responses.parse(
        model=MODEL, input="The name and population of Paris, as JSON.", text_format=City, max_output_tokens=100
    )
    assert isinstance(parsed.output_parsed, City)


@shows("openai", "the list of models")
def test_openai_models(client: openai.OpenAI) -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL


@shows("openai", "errors as its own exceptions")
def test_openai_errors(node: NodeProcess, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nope", messages=ASK)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages=ASK, temperature=9)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 20_000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="cvy_wrong").models.list()
    bound = client.with_options(api_key=node.create_key("ann", "--model", "other"))
    with pytest.raises(openai.PermissionDeniedError) as may_not:
        bound.chat.completions.create(model=MODEL, messages=ASK)
    assert may_not.value.code == "model_not_allowed"
    limited = client.with_options(api_key=node.create_key("ann", "--requests-per-minute", "1"))
    limited.chat.completions.create(model=MODEL, messages=ASK, max_tokens=1)
    with pytest.raises(openai.RateLimitError) as often:
        limited.chat.completions.create(model=MODEL, messages=ASK, max_tokens=1)
    assert often.value.code == "requests"
    assert 0 < int(often.value.response.headers["retry-after"]) <= 60


@shows("openai", "retries when it is told to")
def test_openai_retries(node: NodeProcess, client: openai.OpenAI) -> None:
    limited = client.with_options(api_key=node.create_key("ann", "--requests-per-minute", "30"), max_retries=5)
    for _ in range(40):  # the limit, and a few that wait for their turn
        answer = limited.chat.completions.with_raw_response.create(model=MODEL, messages=ASK, max_tokens=1)
        assert answer.status_code == 200
        if answer.retries_taken:
            return
    pytest.fail("It was never told to wait.")


# anthropic


@pytest.fixture(scope="module")
def claude(node: NodeProcess, key: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=node.url, api_key=key, max_retries=0) as made:
        yield made


@shows("anthropic", "messages")
def test_anthropic(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model=MODEL, max_tokens=40, messages=ASK, extra_body={"temperature": 0})
    assert answer.content[0].type == "text"
    assert "Paris" in answer.content[0].text
    assert answer.stop_reason == "end_turn"
    assert answer.usage.output_tokens > 3


@shows("anthropic", "messages, streamed, with the helper that gathers")
def test_anthropic_stream(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(
        model=MODEL, max_tokens=40, system="You are a helpful assistant.", messages=ASK, extra_body={"temperature": 0}
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert "Paris" in text
    assert final.usage.output_tokens > 3


@shows("anthropic", "a tool that must be called")
@pytest.mark.parametrize("stream", [False, True])
def test_anthropic_tools(claude: anthropic.Anthropic, stream: bool) -> None:
    fields: Any = {
        "model": MODEL, "max_tokens": 100, "messages": WANTS_WEATHER,
        "tools": [{"name": "weather", "description": "The weather.", "input_schema": WEATHER_SCHEMA}],
        "tool_choice": {"type": "any"},
    }  # fmt: skip
    if stream:
        with claude.messages.stream(**fields) as events:
            answer: Any = events.get_final_message()
    else:
        answer = claude.messages.create(**fields)
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert answer.stop_reason == "tool_use"
    assert call.name == "weather"
    assert set(call.input) == {"city"}


@shows("anthropic", "errors as its own exceptions")
def test_anthropic_errors(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="nope", max_tokens=5, messages=ASK)
    with pytest.raises(anthropic.BadRequestError) as wrong:
        claude.messages.create(model=MODEL, max_tokens=5, messages=ASK, extra_body={"temperature": 9})
    assert wrong.value.request_id
    with pytest.raises(anthropic.AuthenticationError):
        claude.with_options(api_key="cvy_wrong").messages.create(model=MODEL, max_tokens=5, messages=ASK)


# ollama


@pytest.fixture(scope="module")
def llama(node: NodeProcess, key: str) -> Iterator[ollama.Client]:
    with ollama.Client(node.url, headers={"Authorization": f"Bearer {key}"}) as made:
        yield made


@shows("ollama", "chat")
def test_ollama_chat(llama: ollama.Client) -> None:
    answer = llama.chat(MODEL, ASK, options={"temperature": 0, "num_predict": 40})
    assert "Paris" in (answer.message.content or "")
    assert answer.done_reason == "stop"
    assert answer.eval_count
    assert answer.eval_count > 3


@shows("ollama", "chat, streamed")
def test_ollama_stream(llama: ollama.Client) -> None:
    parts = list(llama.chat(f"{MODEL}:latest", ASK, stream=True, options={"temperature": 0, "num_predict": 40}))
    assert "Paris" in "".join(part.message.content or "" for part in parts)
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


@shows("ollama", "tools")
def test_ollama_tools(llama: ollama.Client) -> None:
    answer = llama.chat(MODEL, WANTS_WEATHER, tools=[WEATHER], options={"num_predict": 100, "temperature": 0})
    for call in answer.message.tool_calls or []:  # it may rather talk: this dialect cannot demand a call
        assert call.function.name == "weather"
    assert answer.message.tool_calls or answer.message.content


@shows("ollama", "structured output")
def test_ollama_format(llama: ollama.Client) -> None:
    answer = llama.chat(MODEL, ASK, format=City.model_json_schema(), options={"num_predict": 100, "temperature": 0})
    City.model_validate_json(answer.message.content or "")


@shows("ollama", "generate, from a template and raw")
def test_ollama_generate(llama: ollama.Client) -> None:
    assert "Paris" in llama.generate(MODEL, FRANCE, options={"temperature": 0, "num_predict": 40}).response
    parts = list(llama.generate(MODEL, "Once upon a time", raw=True, stream=True, options={"num_predict": 5}))
    assert "".join(part.response for part in parts)


@shows("ollama", "embed")
def test_ollama_embed(llama: ollama.Client, embedder: str) -> None:
    vectors = llama.embed(embedder, ["a cat", "eine Katze"]).embeddings
    assert len(vectors) == 2
    assert similarity(list(vectors[0]), list(vectors[1])) > 0.7


@shows("ollama", "list, show, ps")
def test_ollama_models(llama: ollama.Client) -> None:
    assert MODEL in [model.model for model in llama.list().models]
    assert "completion" in (llama.show(MODEL).capabilities or [])
    assert MODEL in [model.model for model in llama.ps().models]
    with pytest.raises(ollama.ResponseError) as unknown:
        llama.chat("nope", ASK)
    assert unknown.value.status_code == 404


# llm


@pytest.fixture(scope="module")
def llm(node: NodeProcess, key: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs Simon Willison's `llm` as its users configure it for a server of their own; returns what it prints."""
    folder = tmp_path_factory.mktemp("llm")
    (folder / "extra-openai-models.yaml").write_text(
        f"- model_id: covey\n  model_name: {MODEL}\n  api_base: {node.url}/v1\n  api_key_name: covey\n"
        "  supports_schema: true\n  supports_tools: true\n"
    )
    (folder / "keys.json").write_text(json.dumps({"covey": key}))

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", "prompt", "-m", "covey", "--no-log", *arguments],
            env={**node.place.environment, "LLM_USER_PATH": str(folder)},
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@shows("llm", "chat, streamed")
def test_llm_stream(llm: Any) -> None:
    assert "Paris" in llm(FRANCE, "-o", "temperature", "0", "-o", "max_tokens", "40")


@shows("llm", "chat")
def test_llm_chat(llm: Any) -> None:
    assert "Paris" in llm(FRANCE, "--no-stream", "-o", "temperature", "0", "-o", "max_tokens", "40")


@shows("llm", "a schema")
def test_llm_schema(llm: Any) -> None:
    said = llm("A dog called Rex, three years old.", "--schema", "name, age int", "-o", "max_tokens", "100")
    assert set(json.loads(said)) == {"name", "age"}


@shows("llm", "tools")
def test_llm_tools(llm: Any) -> None:
    function = 'def weather(city: str) -> str:\n    "The weather of a city."\n    return "sunny"'
    assert llm("What is the weather in Paris?", "--functions", function, "-o", "max_tokens", "80").strip()


# langchain


@pytest.fixture(scope="module")
def chain(node: NodeProcess, key: str) -> Iterator[ChatOpenAI]:
    with httpx.Client(timeout=60) as http:
        yield ChatOpenAI(
            model=MODEL,
            base_url=f"{node.url}/v1",
            api_key=key,  # type: ignore[arg-type]
            temperature=0,
            max_completion_tokens=100,
            max_retries=0,
            http_client=http,
        )


@shows("langchain-openai", "chat")
def test_langchain_chat(chain: ChatOpenAI) -> None:
    answer = chain.invoke([HumanMessage(FRANCE)])
    assert "Paris" in str(answer.content)
    assert answer.usage_metadata
    assert answer.usage_metadata["output_tokens"] > 3


@shows("langchain-openai", "chat, streamed")
def test_langchain_stream(chain: ChatOpenAI) -> None:
    assert "Paris" in "".join(str(piece.content) for piece in chain.stream(FRANCE))


@shows("langchain-openai", "tools")
def test_langchain_tools(chain: ChatOpenAI) -> None:
    bound = chain.bind_tools([WEATHER], tool_choice="weather")
    (call,) = bound.invoke("What is the weather in Paris?").tool_calls
    assert call["name"] == "weather"
    assert set(call["args"]) == {"city"}


@shows("langchain-openai", "structured output")
def test_langchain_structured(chain: ChatOpenAI) -> None:
    found = chain.with_structured_output(City).invoke("The name and population of the capital of France.")
    assert isinstance(found, City)


@shows("langchain-openai", "embeddings, with `check_embedding_ctx_length=False`")
def test_langchain_embeddings(node: NodeProcess, key: str, embedder: str) -> None:
    with httpx.Client(timeout=60) as http:
        made = OpenAIEmbeddings(
            model=embedder,
            base_url=f"{node.url}/v1",
            api_key=key,  # type: ignore[arg-type]
            check_embedding_ctx_length=False,
            http_client=http,
        )
        cat, katze = made.embed_documents(["a cat", "eine Katze"])
    assert similarity(cat, katze) > 0.7
