"""The main job, as a user does it: a real model, the real command, curl and the official client."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from running import NodeProcess, running_node, wait_for

pytestmark = [pytest.mark.model, pytest.mark.slow]
MODEL = "smollm2-135m-instruct"
FRANCE = "What is the capital of France?"
CONFIG = '[inference]\nbackends = ["embedded"]\n'
MODEL_SECONDS = 180.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with running_node(tmp_path_factory.mktemp("main"), config=CONFIG) as running:
        running.add_user()
        wait_for(lambda: httpx.get(f"{running.url}/readyz").status_code == 200, MODEL_SECONDS, running.said)
        yield running


@pytest.fixture(scope="module")
def key(node: NodeProcess) -> str:
    return node.create_key()


@pytest.fixture
def client(node: NodeProcess, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key=key, max_retries=0) as made:
        yield made


def test_the_first_start_says_what_it_does(node: NodeProcess) -> None:
    said = node.said()
    assert node.url in said
    assert re.search(rf"{re.escape(node.url)}/setup#\S{{20,}}", said), said
    assert "recovery key" in said
    assert MODEL in said


def test_the_answer_is_sensible(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": FRANCE}], temperature=0, max_tokens=40
    )
    choice = answer.choices[0]
    assert choice.message.content is not None
    assert "Paris" in choice.message.content
    assert choice.finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 3
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_the_defaults_are_sensible_too(client: openai.OpenAI) -> None:
    answers = [
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": FRANCE}], max_tokens=40)
        for _ in range(5)
    ]
    right = sum("Paris" in (answer.choices[0].message.content or "") for answer in answers)
    assert right == 5, [answer.choices[0].message.content for answer in answers]


def test_a_stream_has_the_same_answer_and_its_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": FRANCE}],
            temperature=0,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert "Paris" in text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3


def test_curl_sees_done_and_usage(node: NodeProcess, key: str) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": FRANCE}],
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    curl = shutil.which("curl")
    assert curl, "curl is not installed"
    done = subprocess.run(
        [curl, "-sSN", f"{node.url}/v1/chat/completions", "-H", f"Authorization: Bearer {key}",
         "-H", "Content-Type: application/json", "-d", json.dumps(body)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    events = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 3
    assert json.loads(events[-3])["choices"][0]["finish_reason"] == "length"


def test_the_official_client_gets_its_own_errors(node: NodeProcess, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "x"}])
    assert unknown.value.code == "model_not_found"
    with (
        openai.OpenAI(base_url=f"{node.url}/v1", api_key="cvy_wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    assert MODEL in [model.id for model in client.models.list()]


def test_covey_chat_answers(node: NodeProcess) -> None:
    assert node.covey("chat", FRANCE).stdout.strip()


def engine_slots(node: NodeProcess) -> float:
    """Requests that the engine works on, by the node's own gauge."""
    text = httpx.get(f"{node.url}/metrics").text
    found = re.search(rf'^covey_num_requests_running{{model="{MODEL}"}} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def engine_pids(node: NodeProcess) -> list[int]:
    """The node's children: the engines."""
    threads = Path(f"/proc/{node.process.pid}/task").glob("*/children")  # a child belongs to the thread that made it
    return [int(child) for thread in threads for child in thread.read_text().split()]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_stops_the_engine(node: NodeProcess, key: str, stream: bool) -> None:
    # Greedily, so that it is the same each time: 3,000 tokens take the engine half a minute.
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Write the numbers 1, 2, 3 and so on, to 10000."}],
            "max_tokens": 3000, "stream": stream, "temperature": 0}  # fmt: skip
    with httpx.Client(base_url=node.url, headers={"authorization": f"Bearer {key}"}, timeout=60) as http:
        request = http.build_request("POST", "/v1/chat/completions", json=body)
        if stream:
            response = http.send(request, stream=True)
            lines = response.iter_lines()
            next(lines)
            wait_for(lambda: engine_slots(node) >= 1, 10)
            response.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/chat/completions", json=body, timeout=0.7)
    wait_for(lambda: engine_slots(node) == 0, 2.0)  # its figure is 100 ms (`bench leaving`); here others run, too
    (pid,) = engine_pids(node)
    before = cpu_seconds(pid)
    time.sleep(0.5)  # what is measured is half a second of the engine's own clock
    assert cpu_seconds(pid) - before < 0.2, "the engine still works although nobody listens"
