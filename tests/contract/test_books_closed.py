"""A request's books are closed once, and nothing of it is left, wherever it fails, and wherever it is cancelled."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from gateway_harness import gateway

from covey.bus.replies import Emit
from covey.contracts.inference import ChatDelta, ChatRequest, Message, Usage
from covey.errors import CallError
from covey.roles.gateway.admission import OPERATOR
from covey.roles.gateway.books import Asked, Books
from covey.roles.gateway.completions import Completions
from covey.roles.gateway.live import Live
from covey.transport.memory import MemoryNetwork

STEPS_MAX = 200


class CancelAt(trio.abc.Instrument):
    """Cancels a scope after so many steps of the task that makes this."""

    def __init__(self, scope: trio.CancelScope, at: int) -> None:
        self._task = trio.lowlevel.current_task()
        self._scope = scope
        self._at = at
        self.steps = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self.steps += 1
            if self.steps == self._at:
                self._scope.cancel()


class BodyFailed(Exception):
    pass


async def well(emit: Emit[ChatDelta]) -> None:
    await emit(ChatDelta("b", tokens=1))
    await emit(ChatDelta(finish="stop", usage=Usage(7, 2)))


async def badly(emit: Emit[ChatDelta]) -> None:
    raise CallError("upstream", "The engine has died.")


async def by_a_bug(emit: Emit[ChatDelta]) -> None:
    raise ZeroDivisionError


async def never(emit: Emit[ChatDelta]) -> None:
    await trio.sleep_forever()


def nothing(live: Live) -> None:
    pass


def revoke(live: Live) -> None:
    live.end(CallError("unauthenticated", "The key was revoked."))


def fail(live: Live) -> None:
    raise BodyFailed


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every `Completions` and every request that has begun or ended, as they come."""
    seen: list[Any] = []
    init, begin, end = Completions.__init__, Books.begin, Books.end

    def initialise(self: Completions, *arguments: Any) -> None:
        init(self, *arguments)
        seen.append(self)

    def begun(self: Books) -> None:
        begin(self)
        seen.append("begun")

    def ended(self: Books, asked: Asked) -> None:
        seen.append("ended")
        end(self, asked)

    monkeypatch.setattr(Completions, "__init__", initialise)
    monkeypatch.setattr(Books, "begin", begun)
    monkeypatch.setattr(Books, "end", ended)
    return seen


@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize(
    ("answers", "between", "outcome"),
    [
        (well, nothing, "ok"),
        (badly, nothing, "upstream"),
        (by_a_bug, nothing, "internal"),
        (well, fail, "internal"),
        (never, revoke, "unauthenticated"),
    ],
)
async def test_books_are_closed_once(
    made: list[Any],
    far: bool,
    choices: int,
    answers: Callable[[Emit[ChatDelta]], Any],
    between: Callable[[Live], None],
    outcome: str,
) -> None:
    """Mutation: leave `_close` out of `_Opened.__aexit__` where the block has failed."""

    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await emit(ChatDelta("a", tokens=1))
        await trio.lowlevel.checkpoint()
        await answers(emit)

    async with gateway(far=MemoryNetwork() if far else None) as node:
        node.inference.script = script
        completions: Completions = made[0]

        async def ask(cancelled_at: int) -> tuple[str, int]:
            """How it ended, and how many steps it took."""
            live = Live()
            asked = Asked(OPERATOR, "/test", live, trio.current_time())
            chats = [ChatRequest("scripted", (Message("user", f"hello {number}"),)) for number in range(choices)]
            made.clear()
            with trio.CancelScope() as scope:
                instrument = CancelAt(scope, cancelled_at)
                trio.lowlevel.add_instrument(instrument)
                try:
                    async with completions.open(asked, chats, {}, model="scripted") as opened:
                        while await opened.batch():
                            between(live)
                except* (CallError, BodyFailed):
                    pass
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            assert made in (["begun", "ended"], [])
            await trio.testing.wait_all_tasks_blocked()
            assert node.inference.running == 0
            assert node.sample("covey_num_requests_in_flight") == 0
            return asked.outcome, instrument.steps

        told, steps = await ask(STEPS_MAX)
        assert told == outcome
        assert 1 < steps < STEPS_MAX
        told_so = {(await ask(at))[0] for at in range(1, steps + 1)}
        assert "cancelled" in told_so
        assert told_so <= {"cancelled", outcome}


async def test_books_of_what_is_never_placed_are_closed_too(made: list[Any]) -> None:
    """Mutation: leave the `except` out of `_Opened.__aenter__`."""
    async with gateway() as node:
        completions: Completions = made.pop()
        asked = Asked(OPERATOR, "/test", Live(), trio.current_time())
        with pytest.raises(CallError, match="absent"):
            async with completions.open(asked, [ChatRequest("absent", ())], {}, model="absent"):
                pass
        assert made == ["begun", "ended"]
        assert asked.outcome == "not_found"
        assert node.sample("covey_num_requests_in_flight") == 0
