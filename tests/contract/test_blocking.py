"""`run_in_thread`: a real node in a thread, from plain programs and from asyncio."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

import covey
from covey.contracts.auth import ADD_USER, Actor, AddUser
from covey.contracts.inference import MODELS
from covey.contracts.method import Nothing

SLOW: dict[str, Any] = {"inference": {"backends": ["echo"]}, "backends": {"echo": {"token_seconds": 0.01}}}
LONG = "word " * 2_000


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[covey.ThreadedNode]:
    with covey.run_in_thread(SLOW, data=tmp_path_factory.mktemp("data")) as one:
        yield one


def running(node: covey.ThreadedNode) -> int:
    """How many answers the engine works on."""
    (model,) = node.call(MODELS, Nothing()).models
    return model.in_flight


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_client(node: covey.ThreadedNode) -> None:
    answer = node.chat("hello there", max_tokens=1)
    assert (answer.text, answer.finish, answer.usage.completion_tokens) == ("hello", "length", 1)
    assert [model.name for model in node.models()] == ["echo"]
    assert "gateway" in node.status().roles
    assert node.urls == ()
    node.call(ADD_USER, AddUser(Actor(), "ann", "correct horse battery 7"))
    assert node.create_key("ann", label="laptop").key.startswith("cvy_")
    with pytest.raises(covey.CallError) as refused:
        node.chat("hello", model="nosuch")
    assert refused.value.code == "not_found"


def test_a_stream(node: covey.ThreadedNode) -> None:
    chunks = node.stream_chat("a b c")
    assert list(chunks) == ["a", " b", " c"]
    assert chunks.finish == "stop"
    assert chunks.usage is not None
    assert list(chunks) == []  # and stays at its end
    with pytest.raises(covey.CallError, match="nosuch"):
        list(node.stream_chat("a b c", model="nosuch"))


def test_an_abandoned_stream_stops_the_engine(node: covey.ThreadedNode) -> None:
    chunks = node.stream_chat(LONG)
    assert next(chunks) == "word"
    assert running(node) == 1
    del chunks
    gc.collect()
    wait_for(lambda: running(node) == 0)


def test_a_closed_stream_has_stopped_the_engine(node: covey.ThreadedNode) -> None:
    with node.stream_chat(LONG) as chunks:
        assert next(chunks) == "word"
    assert running(node) == 0
    for text in node.stream_chat(LONG):
        assert text == "word"
        break
    wait_for(lambda: running(node) == 0)


def test_a_reader_that_is_slow_holds_the_model_back(tmp_path: Path) -> None:
    instant = {"inference": {"backends": ["echo"]}}
    with covey.run_in_thread(instant, data=tmp_path) as node:
        chunks = node.stream_chat(LONG)
        next(chunks)
        assert running(node) == 1  # 2,000 words without any pace: only we can be what it waits for
        assert len(list(chunks)) == 2_000  # the rest; the last token is the final space
        assert chunks.finish == "stop"


def test_many_threads_at_once(node: covey.ThreadedNode) -> None:
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        answers[number] = node.chat(f"question {number}").text

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: f"question {number}" for number in range(32)}


def test_from_asyncio(node: covey.ThreadedNode) -> None:
    async def main() -> list[str]:
        answers = await asyncio.gather(*(asyncio.to_thread(node.chat, f"q{number}") for number in range(5)))
        return [answer.text for answer in answers]

    assert asyncio.run(main()) == ["q0", "q1", "q2", "q3", "q4"]


def test_an_interrupted_wait_cancels_the_work(node: covey.ThreadedNode) -> None:
    ended = threading.Event()

    async def work(client: covey.Client) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    job = node.begin(work)
    assert not ended.wait(0.05)
    node.cancel(job)
    assert ended.wait(5)
    with pytest.raises(covey.CallError, match="cancelled"):
        job.result.result(5)


def test_the_node_s_own_thread_is_told_that_it_would_wait_for_itself(node: covey.ThreadedNode) -> None:
    async def work(client: covey.Client) -> None:
        node.chat("hello")

    with pytest.raises(RuntimeError, match="own thread"):
        node.run(work)


def test_closing_from_any_thread_cuts_what_runs(tmp_path: Path) -> None:
    with covey.run_in_thread(SLOW, data=tmp_path) as node:
        chunks = node.stream_chat(LONG)
        next(chunks)
        closer = threading.Thread(target=node.close)
        closer.start()
        with pytest.raises(covey.CallError, match="closed"):
            list(chunks)
        closer.join()
        node.close()
        for call in (node.models, lambda: node.chat("hello"), lambda: next(node.stream_chat("hello"))):
            with pytest.raises(covey.CallError, match="not running") as refused:
                call()
            assert refused.value.code == "unreachable"
        chunks.close()
    with covey.run_in_thread(SLOW, data=tmp_path) as again:  # the folder is free
        assert again.chat("hello").text == "hello"
    with pytest.raises(RuntimeError, match="once"):
        again.start()


def test_what_is_wrong_at_the_start_reaches_the_caller(node: covey.ThreadedNode, tmp_path: Path) -> None:
    with pytest.raises(covey.CallError, match="gatway"), covey.run_in_thread({"gatway": {}}, data=tmp_path):
        pytest.fail("it started")
    (tmp_path / "file").write_text("")
    with pytest.raises(covey.CallError, match="file"), covey.run_in_thread(SLOW, data=tmp_path / "file"):
        pytest.fail("it started")


def test_closing_while_it_starts(tmp_path: Path) -> None:
    opening, closed = threading.Event(), threading.Event()

    @asynccontextmanager
    async def open_for_ever() -> Any:
        opening.set()
        try:
            await trio.sleep_forever()
            yield
        finally:
            closed.set()

    node = covey.ThreadedNode(open_for_ever)
    closer = threading.Thread(target=lambda: (opening.wait(5), node.close()))
    closer.start()
    with pytest.raises(covey.CallError, match="closed while it started"):
        node.start()
    closer.join()
    assert closed.is_set()


def test_closing_before_it_starts_is_nothing(tmp_path: Path) -> None:
    covey.run_in_thread(SLOW, data=tmp_path).close()


def test_a_failure_meanwhile_is_raised_by_leaving(tmp_path: Path) -> None:
    @asynccontextmanager
    async def open_failing() -> Any:
        async with trio.open_nursery() as nursery:

            async def crash() -> None:
                await broken.wait()
                raise RuntimeError("the cable came loose")

            nursery.start_soon(crash)
            async with covey.open_node(SLOW, data=tmp_path) as node:
                yield node

    broken = trio.Event()
    with pytest.raises(ExceptionGroup) as failed, covey.ThreadedNode(open_failing) as node:  # noqa: PT012
        job = node.begin(lambda client: _set(broken))
        job.result.result()
        with pytest.raises(covey.CallError):  # noqa: PT012 - some call or other meets the end
            while True:
                node.chat("hello")
    assert failed.group_contains(RuntimeError, match="cable")


async def _set(event: trio.Event) -> None:
    event.set()


def test_it_listens_when_asked_to(tmp_path: Path) -> None:
    config = {**SLOW, "http": {"listen": "127.0.0.1:0"}}
    with covey.run_in_thread(config, data=tmp_path, listen=True) as node:
        assert httpx.get(f"{node.urls[0]}/healthz").status_code == 200


@pytest.mark.parametrize("ending", ["pass", "raise SystemExit", "del node"])
def test_a_program_that_does_not_close_ends_all_the_same(tmp_path: Path, ending: str) -> None:
    program = f"""
import covey, pathlib
node = covey.run_in_thread({SLOW!r}, data=pathlib.Path({str(tmp_path)!r})).start()
print(node.chat("hello").text, flush=True)
stream = node.stream_chat({LONG!r})
next(stream)
{ending}
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
