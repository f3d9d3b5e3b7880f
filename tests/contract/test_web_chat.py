"""The chat's answer on its way: lines as the model speaks, and nothing runs for a page that is gone."""

import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from web_world import Browser, World, open_world

from covey.contracts import gateway
from covey.contracts.gateway import COMPLETE
from covey.contracts.inference import ChatDelta, Message
from covey.errors import CallError

Emit = Callable[[ChatDelta], Awaitable[None]]
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Hello?"}]}


@pytest.fixture
async def world() -> AsyncGenerator[World, None]:
    async with open_world() as opened:
        opened.auth.add("grace")
        opened.auth.add("ada", "admin")
        yield opened


@pytest.fixture
async def grace(world: World) -> Browser:
    browser = Browser(world)
    await browser.log_in("grace")
    await browser.get("/chat")
    return browser


async def ask(browser: Browser, question: Any = QUESTION, **headers: str) -> tuple[int, list[Any]]:
    page = await browser.open("/chat/stream", "POST", json=question, headers={"X-CSRF-Token": browser.csrf, **headers})
    return page.status, [json.loads(line) for line in page.text.splitlines() if line]


class Listening:
    """A page that listens to an answer, over plain ASGI: Quart's test client cannot leave a stream early."""

    def __init__(self, world: World, browser: Browser) -> None:
        self._app = world.router
        cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in browser.client.cookie_jar)
        headers = {"host": "localhost", "cookie": cookies, "x-csrf-token": browser.csrf,
                   "content-type": "application/json"}  # fmt: skip
        self._scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/chat/stream", "raw_path": b"/chat/stream", "query_string": b"", "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("192.0.2.7", 4711), "server": ("localhost", 80), "extensions": {},
        }  # fmt: skip
        self._to_app, self._from_browser = trio.open_memory_channel[dict[str, Any]](2)
        self._to_browser, self._from_app = trio.open_memory_channel[bytes](10)

    async def run(self) -> None:
        await self._to_app.send({"type": "http.request", "body": json.dumps(QUESTION).encode(), "more_body": False})
        await self._app(self._scope, self._from_browser.receive, self._send)
        self._to_browser.close()

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.body":
            await self._to_browser.send(message["body"])

    async def receive(self) -> bytes:
        return await self._from_app.receive()

    async def everything(self) -> bytes:
        return b"".join([piece async for piece in self._from_app])

    async def go_away(self) -> None:
        await self._to_app.send({"type": "http.disconnect"})


@asynccontextmanager
async def listening(world: World, browser: Browser) -> AsyncGenerator[Listening, None]:
    listener = Listening(world, browser)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.run)
        yield listener
        nursery.cancel_scope.cancel()


async def test_an_answer_comes_in_lines(world: World, grace: Browser) -> None:
    question = QUESTION | {"temperature": 0.5, "max_tokens": 9}
    status, lines = await ask(grace, question)
    assert status == 200
    assert "".join(line.get("text", "") for line in lines) == "Hello from the covey."
    assert sum(line.get("tokens", 0) for line in lines) == 4
    usage = {"prompt_tokens": 5, "completion_tokens": 4}
    assert lines[-1] == {"done": {"finish": "stop", "usage": usage}}
    (heard,) = world.gateway.heard
    assert heard.chat.messages == (Message("user", "Hello?"),)
    assert (heard.chat.sampling.temperature, heard.chat.max_tokens) == (0.5, 9)
    assert world.auth.sessions[heard.actor.session] == "a1"


async def test_an_answer_is_not_cut_after_a_minute(world: World, grace: Browser, autojump_clock: Any) -> None:
    async def slowly(_: gateway.Completion, emit: Emit) -> None:
        for _word in range(5):
            await trio.sleep(100)
            await emit(ChatDelta(text="word ", tokens=1))
        await emit(ChatDelta(finish="stop"))

    world.gateway.speak = slowly
    async with listening(world, grace) as page:
        lines = [json.loads(line) for line in (await page.everything()).splitlines() if line]
    assert lines[-1]["done"]["finish"] == "stop"
    assert len(lines) == 6


async def test_silence_is_kept_alive_and_ends(world: World, grace: Browser, autojump_clock: Any) -> None:
    async def never(_: gateway.Completion, __: Emit) -> None:
        await trio.sleep_forever()

    world.gateway.speak = never
    began = trio.current_time()
    async with listening(world, grace) as page:
        text = await page.everything()
    assert text.startswith(b"\n" * 9)
    assert json.loads(text)["error"]["code"] == "deadline"
    assert COMPLETE.idle_seconds <= trio.current_time() - began < COMPLETE.idle_seconds + 16
    assert world.gateway.left.is_set()


@pytest.mark.parametrize("pieces", [0, 3])
async def test_the_engine_stops_when_the_page_goes_away(world: World, grace: Browser, pieces: int) -> None:
    async def on_and_on(_: gateway.Completion, emit: Emit) -> None:
        for _word in range(pieces):
            await emit(ChatDelta(text="word ", tokens=1))
        await trio.sleep_forever()

    world.gateway.speak = on_and_on
    with trio.fail_after(5):
        async with listening(world, grace) as page:
            heard = 0
            while heard < pieces:
                heard += sum(json.loads(line)["tokens"] for line in (await page.receive()).splitlines() if line)
            while not world.gateway.heard:
                await trio.lowlevel.checkpoint()
            assert not world.gateway.left.is_set()
            await page.go_away()
            await world.gateway.left.wait()


async def test_a_reader_that_stops_reading_holds_the_engine_back(world: World, grace: Browser) -> None:
    said = 0

    async def gush(_: gateway.Completion, emit: Emit) -> None:
        nonlocal said
        while True:
            await emit(ChatDelta(text="word ", tokens=1))
            said += 1

    world.gateway.speak = gush
    async with listening(world, grace) as page:
        await trio.testing.wait_all_tasks_blocked()
        assert 0 < said < 1_000  # the test's channel of 10 writes, and the bus's 64 replies a write
        await page.go_away()
        await world.gateway.left.wait()


async def test_a_model_that_is_being_fetched_says_how_far_it_is(world: World, grace: Browser) -> None:
    async def not_yet(_: gateway.Completion, __: Emit) -> None:
        raise CallError("loading", "tiny is being fetched.", retry_after_seconds=3)

    world.gateway.speak = not_yet
    world.gateway.models[0] = gateway.ModelSummary("tiny", "loading", ("chat",), ("alpha",), progress=0.42)
    _, lines = await ask(grace)
    assert lines == [{"loading": {"message": "tiny is being fetched.", "progress": 0.42, "retry_after_seconds": 3.0}}]


async def test_a_failure_comes_after_what_was_said(world: World, grace: Browser) -> None:
    async def die(_: gateway.Completion, emit: Emit) -> None:
        await emit(ChatDelta(text="I was", tokens=2))
        raise CallError("upstream", "The engine died.")

    world.gateway.speak = die
    _, lines = await ask(grace)
    assert lines[0]["text"] == "I was"
    assert lines[-1]["error"]["message"] == "The engine died."
    assert "done" not in str(lines)


async def test_an_answer_without_an_end_is_not_passed_off_as_whole(world: World, grace: Browser) -> None:
    async def trail_off(_: gateway.Completion, emit: Emit) -> None:
        await emit(ChatDelta(text="I was", tokens=2))

    world.gateway.speak = trail_off
    _, lines = await ask(grace)
    assert lines[-1]["error"]["code"] == "upstream"


async def test_without_a_gateway_the_answer_says_so() -> None:
    async with open_world(absent=frozenset({"gateway"})) as world:
        world.auth.add("grace", "admin")
        grace = Browser(world)
        await grace.log_in("grace")
        status, lines = await ask(grace)
        assert (status, lines[0]["error"]["code"]) == (200, "unreachable")


async def test_markup_in_an_answer_stays_text_on_the_wire(world: World, grace: Browser) -> None:
    async def evil(_: gateway.Completion, emit: Emit) -> None:
        await emit(ChatDelta(text='<img src=x onerror="alert(1)">\n{"done"', tokens=1))
        await emit(ChatDelta(finish="stop"))

    world.gateway.speak = evil
    page = await grace.open("/chat/stream", "POST", json=QUESTION, headers={"X-CSRF-Token": grace.csrf})
    assert page.headers["Content-Type"] == "application/x-ndjson"
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert json.loads(page.text.splitlines()[0])["text"].startswith("<img src=x")


@pytest.mark.parametrize(
    "question",
    [
        {},
        [],
        QUESTION | {"model": ""},
        QUESTION | {"model": "../x y"},
        QUESTION | {"messages": []},
        QUESTION | {"messages": [{"role": "wizard", "content": "x"}]},
        QUESTION | {"temperature": 3},
        QUESTION | {"max_tokens": 0},
        QUESTION | {"tenant": "somebody else"},
        QUESTION | {"messages": [{"role": "user", "content": "x"}] * 2049},
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(world: World, grace: Browser, question: Any) -> None:
    status, lines = await ask(grace, question)
    assert status == 400
    assert lines[0]["error"]["code"] == "invalid"
    assert world.gateway.heard == []


async def test_only_json_is_a_question(grace: Browser) -> None:
    page = await grace.open("/chat/stream", "POST", form={"model": "tiny", "csrf": grace.csrf})
    assert page.status == 415
    page = await grace.open("/chat/stream", "POST", data="{", headers={
        "Content-Type": "application/json", "X-CSRF-Token": grace.csrf})  # fmt: skip
    assert page.status == 400


async def test_a_conversation_that_is_too_long_is_refused(world: World, grace: Browser) -> None:
    status, lines = await ask(grace, {"model": "tiny", "messages": [{"role": "user", "content": "x" * 2_000_001}]})
    assert status == 413
    assert lines[0]["error"]["message"]
    status, _ = await ask(grace, {"model": "tiny", "messages": [{"role": "user", "content": "x" * 1_500_000}]})
    assert status == 200


async def test_strangers_forgers_and_ended_sessions_get_json(world: World, grace: Browser) -> None:
    assert (await ask(Browser(world)))[0] == 401
    assert (await ask(grace, **{"Sec-Fetch-Site": "cross-site"}))[0] == 403
    token, grace.csrf = grace.csrf, "0" * 64
    assert (await ask(grace))[1][0]["error"]["code"] == "csrf"
    grace.csrf = token
    world.auth.sessions.clear()
    status, lines = await ask(grace)
    assert (status, lines[0]["error"]["code"]) == (401, "unauthenticated")
    assert re.search("Log in", lines[0]["error"]["message"])
    assert world.gateway.heard == []
