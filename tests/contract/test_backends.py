"""One suite over every back end, each before a real engine: what `Backend` promises, all of them keep."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from engine_world import WORLDS, World, ensure_model

from covey.contracts.inference import ChatDelta
from covey.errors import CallError

CANCEL_SECONDS_MAX = 0.1
STORY = "Write a long story about a lighthouse keeper and the sea."
LONG = "Say which of these words you like best: " + " ".join(f"word{i}" for i in range(300))
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")
"""Ollama's client raises in the middle of httpx's generators and leaves them to the garbage collector."""


@pytest.fixture(
    params=[
        "echo",
        pytest.param("embedded", marks=pytest.mark.model),
        pytest.param("openai", marks=pytest.mark.model),
        pytest.param("ollama", marks=[pytest.mark.model, pytest.mark.slow]),
    ]
)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    path = Path() if request.param == "echo" else await ensure_model()
    async with WORLDS[request.param](path) as made:
        yield made


async def test_an_answer_comes_in_pieces_and_ends_with_a_reason_and_usage(world: World) -> None:
    answer = await world.ask(world.request("Name three colours of the rainbow, please."))
    *pieces, last = answer.deltas
    assert len(pieces) > 3
    assert all(piece.text and piece.tokens >= 1 and piece.finish is None for piece in pieces)
    assert last.finish in {"stop", "length"}
    assert last.usage is not None
    assert last.usage.prompt_tokens > 0
    if world.exact:
        # A token that ends the answer has no text.
        assert 0 <= last.usage.completion_tokens - sum(piece.tokens for piece in pieces) <= 1


async def test_max_tokens_cut_the_answer(world: World) -> None:
    answer = await world.ask(world.request(STORY, max_tokens=5))
    last = answer.deltas[-1]
    assert sum(delta.tokens for delta in answer.deltas) == 5
    assert last.finish == ("length" if world.exact else "stop")


async def test_a_stop_sequence_never_shows(world: World) -> None:
    whole = (await world.ask(world.request(STORY, max_tokens=40))).text
    word = whole.split()[4]
    answer = await world.ask(world.request(STORY, max_tokens=40, stop=(word,)))
    assert answer.text == whole[: whole.index(word)]
    assert answer.deltas[-1].finish == "stop"


async def test_an_unknown_model_is_not_found(world: World) -> None:
    request = world.request()
    with pytest.raises(CallError) as caught:
        await world.backend.generate(type(request)("no-such-model", request.messages), nobody)
    assert (caught.value.code, caught.value.reason) == ("not_found", "model_not_found")


async def test_it_lists_the_model(world: World) -> None:
    await world.ask(world.request(max_tokens=1))
    status = next(status for status in world.backend.models() if status.name == world.model)
    assert status.state in {"loaded", "remote"}
    assert status.backend == world.backend.name
    assert status.in_flight == 0


async def test_two_answers_at_once_do_not_mix(world: World) -> None:
    alone = (await world.ask(world.request("Say hello.", max_tokens=12))).text
    texts: list[str] = []

    async def ask() -> None:
        texts.append((await world.ask(world.request("Say hello.", max_tokens=12))).text)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
    assert texts == [alone, alone]


@pytest.mark.parametrize("where", ["prompt", "answer", "emit"])
async def test_cancelling_stops_the_engine_at_once(world: World, where: str) -> None:
    await world.ask(world.request(max_tokens=1))  # the engine is up from here on
    # An engine stops between two steps; on a machine that other tests keep busy one alone may take longer than 0.1 s.
    seconds_max = CANCEL_SECONDS_MAX + 3 * await seconds_of_a_step(world, where)
    took: list[float] = []
    for attempt in range(3):  # a busy machine may be late once
        await cancel_in(world, where, attempt)
        left_at = trio.current_time()
        while await world.busy():  # noqa: ASYNC110  the engine has no event to wait for
            await trio.sleep(0.002)
        took.append(trio.current_time() - left_at)
        if took[-1] <= seconds_max:
            break
    assert min(took) <= seconds_max
    await world.ask(world.request(max_tokens=2))


async def seconds_of_a_step(world: World, where: str) -> float:
    """How long the engine takes now for one token, or for one batch of a prompt."""
    started_at = trio.current_time()
    if where != "prompt":
        await world.ask(world.request(STORY, max_tokens=8))
        return (trio.current_time() - started_at) / 8
    usage = (await world.ask(world.request(f"Well, {LONG}", max_tokens=1))).deltas[-1].usage
    assert usage is not None
    return (trio.current_time() - started_at) / max(usage.prompt_tokens / world.batch_tokens, 1)


async def cancel_in(world: World, where: str, attempt: int) -> None:
    """Leave an answer while its prompt is evaluated, while it is read, or while the reader is slow."""
    with trio.CancelScope() as scope:
        count = 0

        async def take(delta: ChatDelta) -> None:
            nonlocal count
            count += 1
            if count < 5:
                return
            if where == "answer":
                scope.cancel()
            elif where == "emit":
                scope.deadline = trio.current_time() + 0.05
                await trio.sleep_forever()

        if where == "prompt":
            scope.deadline = trio.current_time() + 0.15
        await world.backend.generate(world.request(f"{attempt} {LONG if where == 'prompt' else STORY}", 1_000), take)
    assert scope.cancelled_caught


async def test_an_engine_killed_in_the_middle_fails_its_answer(world: World) -> None:
    if world.kill is None:
        pytest.skip("nothing to kill")
    count = 0

    async def take(delta: ChatDelta) -> None:
        nonlocal count
        count += 1
        if count == 5:
            assert world.kill is not None
            world.kill()

    with pytest.raises(CallError) as caught:
        await world.backend.generate(world.request(STORY, max_tokens=1_000), take)
    assert caught.value.code == "upstream"
    assert count >= 5
    if world.backend.name == "embedded":
        assert caught.value.reason == "engine_died"
        assert (await world.ask(world.request(max_tokens=3))).deltas[-1].finish


async def nobody(delta: ChatDelta) -> None: ...
