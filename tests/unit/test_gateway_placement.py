"""Who runs a request, and what the gateway knows of the others."""

import logging
from typing import Any

import pytest
import trio

from covey.contracts.inference import Models, ModelState, ModelStatus
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.roles.gateway.placement import FRESH_SECONDS, Candidate, Fleet, choose, summarise
from covey.transport.base import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def status(name: str = "m", state: ModelState = "loaded", **fields: Any) -> ModelStatus:
    return ModelStatus(name, "echo", state, **fields)


def test_nobody_to_choose_from() -> None:
    assert choose([]) is None


def test_the_least_loaded_for_its_size_runs_it() -> None:
    small = Candidate(A, status(slots=1), 0)
    large = Candidate(B, status(slots=8), 3)
    assert choose([small, large]) is large
    assert choose([small, Candidate(B, status(slots=8), 8)]) is small
    unknown = Candidate(C, status(slots=0), 0)
    assert choose([unknown, small]) is unknown  # a tie: as given
    assert choose([small, unknown]) is small


@pytest.mark.parametrize(
    ("better", "worse"), [("loaded", "on_disk"), ("remote", "on_disk"), ("on_disk", "loading"), ("loading", "failed")]
)
def test_a_model_that_can_answer_comes_first(better: ModelState, worse: ModelState) -> None:
    busy = Candidate(A, status(state=better, slots=1), 50)
    idle = Candidate(B, status(state=worse, slots=8), 0)
    assert choose([idle, busy]) is busy


def test_the_union_of_all_nodes() -> None:
    views = {
        A: (status("x", "loading", progress=0.5, capabilities=("chat",)), status("y", "failed", detail="broken")),
        B: (status("x", "loaded", context_tokens=4_096, capabilities=("chat", "embed"), created_at=9),),
        C: (status("x", "on_disk"),),
    }
    x, y = summarise(views, {A: "alice", B: "bob"})
    assert (x.name, x.state, x.context_tokens, x.progress, x.created_at) == ("x", "loaded", 4_096, None, 9)
    assert x.nodes == ("alice", "bob", "c")
    assert x.capabilities == ("chat", "embed")
    assert (y.name, y.state, y.detail, y.nodes) == ("y", "failed", "broken", ("alice",))
    assert summarise({}, {}) == ()


def test_a_node_with_two_back_ends_for_a_model_is_named_once() -> None:
    (only,) = summarise({A: (status("x", "remote"), status("x", "loaded"))}, {})
    assert (only.state, only.nodes) == ("loaded", ("a",))


class FakeBus:
    """Peers that serve CHAT, each with its models, or a failure, or silence."""

    def __init__(self, **views: Any) -> None:
        self.views = {PeerId(name): view for name, view in views.items()}
        self.asked: list[PeerId] = []

    def serving(self, method: object) -> tuple[PeerId, ...]:
        return tuple(self.views)

    def name_of(self, peer: PeerId) -> str:
        return str(peer)

    async def call(self, method: Any, request: Nothing, *, to: PeerId, timeout_seconds: float) -> Models:
        self.asked.append(to)
        with trio.move_on_after(timeout_seconds):
            await trio.lowlevel.checkpoint()
            view = self.views[to]
            if view is None:
                await trio.sleep_forever()
            if isinstance(view, CallError):
                raise view
            return Models(view)
        raise CallError("deadline", "too slow")


def fleet(bus: FakeBus) -> Fleet:
    stand_in: Any = bus
    return Fleet(stand_in)


async def test_one_asks_for_all_that_wait(autojump_clock: trio.testing.MockClock) -> None:
    bus = FakeBus(a=(status(),))
    seen = fleet(bus)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(seen.place, "m")
    assert bus.asked == [A]
    assert await seen.place("m") == A
    assert bus.asked == [A]
    await trio.sleep(FRESH_SECONDS)
    await seen.place("m")
    assert bus.asked == [A, A]


async def test_a_new_node_is_seen_at_once_and_one_that_left_is_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bus = FakeBus(a=(status(),))
    seen = fleet(bus)
    await seen.place("m")
    bus.views[B] = (status("other"),)
    assert await seen.place("other") == B
    del bus.views[B]
    with pytest.raises(CallError) as caught:
        await seen.place("other")
    assert (caught.value.code, caught.value.reason) == ("not_found", "model_not_found")


async def test_a_node_that_hangs_costs_a_moment_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bus = FakeBus(a=(status(),), b=None)
    seen = fleet(bus)
    began = trio.current_time()
    for _ in range(40):
        assert await seen.place("m") == A
        await trio.sleep(0.1)
    assert trio.current_time() - began < 4 + 1.1
    assert bus.asked.count(B) == 1
    assert "b does not say" in caplog.text


async def test_the_only_node_is_asked_again_however_it_failed(autojump_clock: trio.testing.MockClock) -> None:
    bus = FakeBus(a=CallError("internal", "a bug"))
    seen = fleet(bus)
    with pytest.raises(CallError) as caught:
        await seen.place("m")
    assert (caught.value.code, caught.value.reason) == ("unreachable", "no_capacity")
    bus.views[A] = (status(),)
    await trio.sleep(FRESH_SECONDS)
    assert await seen.place("m") == A


async def test_requests_in_flight_count_against_a_node(autojump_clock: trio.testing.MockClock) -> None:
    bus = FakeBus(a=(status(slots=2),), b=(status(slots=2),))
    seen = fleet(bus)
    chosen = []
    for _ in range(4):
        chosen.append(await seen.place("m"))
        seen.started(chosen[-1], "m")
    assert chosen == [A, B, A, B]
    for peer in chosen:
        seen.ended(peer, "m")
    assert seen._in_flight == {}


async def test_the_default_model_is_one_that_may_and_can(autojump_clock: trio.testing.MockClock) -> None:
    bus = FakeBus(a=(status("a", "failed"), status("b", "loaded"), status("c", "on_disk")))
    seen = fleet(bus)
    assert await seen.default_model() == "b"
    assert await seen.default_model(("c",)) == "c"
    assert await seen.default_model(("a",)) == "a"
    with pytest.raises(CallError, match="no model"):
        await seen.default_model(("z",))
