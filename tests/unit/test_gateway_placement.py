"""Who runs a request, and what the gateway knows of the others."""

import logging
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from covey.contracts.auth import Identity
from covey.contracts.inference import Models, ModelState, ModelStatus
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.roles.gateway.placement import FRESH_SECONDS, Candidate, Fleet, Wanted, choose, summarise
from covey.transport.base import PeerId

MAY = Identity("key", "ada")
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
    return Fleet(stand_in, lambda peer: frozenset({"lab"} if peer == B else ()))


async def test_one_asks_for_all_that_wait(autojump_clock: trio.testing.MockClock) -> None:
    bus = FakeBus(a=(status(),))
    seen = fleet(bus)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(seen.place, Wanted("m"))
    assert bus.asked == [A]
    assert await seen.place(Wanted("m")) == A
    assert bus.asked == [A]
    await trio.sleep(FRESH_SECONDS)
    await seen.place(Wanted("m"))
    assert bus.asked == [A, A]


async def test_a_new_node_is_seen_at_once_and_one_that_left_is_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    bus = FakeBus(a=(status(),))
    seen = fleet(bus)
    await seen.place(Wanted("m"))
    bus.views[B] = (status("other"),)
    assert await seen.place(Wanted("other")) == B
    del bus.views[B]
    with pytest.raises(CallError) as caught:
        await seen.place(Wanted("other"))
    assert (caught.value.code, caught.value.reason) == ("not_found", "model_not_found")


async def test_a_node_that_hangs_costs_a_moment_once(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bus = FakeBus(a=(status(),), b=None)
    seen = fleet(bus)
    began = trio.current_time()
    for _ in range(40):
        assert await seen.place(Wanted("m")) == A
        await trio.sleep(0.1)
    assert trio.current_time() - began < 4 + 1.1
    assert bus.asked.count(B) == 1
    assert "b does not say" in caplog.text


async def test_the_only_node_is_asked_again_however_it_failed(autojump_clock: trio.testing.MockClock) -> None:
    bus = FakeBus(a=CallError("internal", "a bug"))
    seen = fleet(bus)
    with pytest.raises(CallError) as caught:
        await seen.place(Wanted("m"))
    assert (caught.value.code, caught.value.reason) == ("unreachable", "no_capacity")
    bus.views[A] = (status(),)
    await trio.sleep(FRESH_SECONDS)
    assert await seen.place(Wanted("m")) == A


async def test_requests_in_flight_count_against_a_node(autojump_clock: trio.testing.MockClock) -> None:
    bus = FakeBus(a=(status(slots=2),), b=(status(slots=2),))
    seen = fleet(bus)
    chosen = []
    for _ in range(4):
        chosen.append(await seen.place(Wanted("m")))
        seen.started(chosen[-1], "m")
    assert chosen == [A, B, A, B]
    for peer in chosen:
        seen.ended(peer, "m")
    assert seen._in_flight == {}


async def test_the_default_model_is_one_that_may_and_can(autojump_clock: trio.testing.MockClock) -> None:
    bus = FakeBus(a=(status("a", "failed"), status("b", "loaded"), status("c", "on_disk")))
    seen = fleet(bus)
    assert await seen.name_of("", MAY) == "b"
    assert await seen.name_of("", replace(MAY, models=("c",))) == "c"
    assert await seen.name_of("", replace(MAY, models=("a",))) == "a"
    with pytest.raises(CallError, match="no model"):
        await seen.name_of("", replace(MAY, models=("z",)))


async def test_ollamas_way_to_write_a_name(autojump_clock: trio.testing.MockClock) -> None:
    seen = fleet(FakeBus(a=(status("m"), status("n:latest"))))
    assert await seen.name_of("m:latest", MAY) == "m"
    assert await seen.name_of("n:latest", MAY) == "n:latest"
    assert await seen.name_of("nobody:latest", MAY) == "nobody:latest"


async def test_only_a_node_that_can_do_it_is_chosen(autojump_clock: trio.testing.MockClock) -> None:
    seen = fleet(FakeBus(a=(status(),), b=(replace(status(), capabilities=("chat", "tools")),)))
    assert await seen.place(Wanted("m", {"chat": "model"})) == A
    assert await seen.place(Wanted("m", {"tools": "tools"})) == B
    assert await seen.place(Wanted("m", {"tools": "tools"}), {B}) is None
    with pytest.raises(CallError, match="response_format: the model 'm' cannot keep to JSON") as caught:
        await seen.place(Wanted("m", {"json": "response_format"}))
    assert (caught.value.code, caught.value.param) == ("unsupported", "response_format")


async def test_a_key_for_some_machines_uses_no_other(autojump_clock: trio.testing.MockClock) -> None:
    seen = fleet(FakeBus(a=(status(), status("only-a")), b=(status(),)))
    assert await seen.place(Wanted("m", labels=frozenset({"lab", "x"}))) == B
    with pytest.raises(CallError, match="labelled lab") as caught:
        await seen.place(Wanted("only-a", labels=frozenset({"lab"})))
    assert (caught.value.code, caught.value.reason) == ("forbidden", "node_not_allowed")
    may = replace(MAY, node_labels=("lab",))
    assert [model.name for model in await seen.summaries(may)] == ["m"]
    assert [model.name for model in await seen.summaries(replace(may, models=("z",)))] == []
    assert [model.name for model in await seen.summaries()] == ["m", "only-a"]


async def test_a_model_that_goes_while_it_is_tried_is_no_new_trouble(autojump_clock: trio.testing.MockClock) -> None:
    assert await fleet(FakeBus(a=(status("other"),))).place(Wanted("m"), {B}) is None
