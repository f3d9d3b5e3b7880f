"""The inference role over the bus: queues, readiness, endings; back ends that do as the test says."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from covey.backends.base import BackendParts, BackendPlugin, Plugged, Report
from covey.backends.capable import no_embeddings
from covey.backends.catalogue import DEFAULT_MODEL
from covey.backends.echo import BACKEND as ECHO
from covey.backends.echo import EchoConfig
from covey.bus.bus import Bus, BusHandle
from covey.bus.replies import Emit
from covey.contracts.inference import (
    CHAT,
    EMBED,
    MODELS,
    PULL_MODEL,
    ChatDelta,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    Message,
    ModelStatus,
    PullModel,
    PullProgress,
    Usage,
)
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.roles.base import Lifecycle, NodeInfo, Parts
from covey.roles.inference.role import ROLE, InferenceConfig
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId

Play = Callable[[ChatRequest, Emit[ChatDelta]], Any]
PlayEmbed = Callable[[EmbedRequest, Emit[Embeddings]], Any]


async def refuse_to_embed(request: EmbedRequest, emit: Emit[Embeddings]) -> None:
    raise no_embeddings(request.model)


class Played:
    """A back end that a test plays."""

    name = "played"

    def __init__(self, play: Play, statuses: tuple[ModelStatus, ...]) -> None:
        self.play = play
        self.play_embed: PlayEmbed = refuse_to_embed
        self.statuses = statuses

    def models(self) -> tuple[ModelStatus, ...]:
        return self.statuses

    async def generate(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await self.play(request, emit)

    async def embed(self, request: EmbedRequest, emit: Emit[Embeddings]) -> None:
        await self.play_embed(request, emit)

    async def pull(self, model: str, report: Report) -> None:
        await report(PullProgress(model, "done"))


def plugged(backend: Played) -> Plugged:
    @asynccontextmanager
    async def opened(config: msgspec.Struct, parts: BackendParts) -> AsyncGenerator[Played, None]:
        yield backend

    return Plugged(BackendPlugin("played", EchoConfig, opened), EchoConfig())


@asynccontextmanager
async def inference(
    *backends: Plugged, config: InferenceConfig | None = None
) -> AsyncGenerator[tuple[BusHandle, Parts], None]:
    metrics = Metrics()
    bus = Bus(PeerId("me"), metrics)
    absent = cast("Any", None)
    parts = Parts(
        node=NodeInfo("test", "0", 0),
        identity=absent,
        bus=bus.stamped("inference"),
        store=absent,
        http=absent,
        metrics=metrics,
        clock=absent,
        lifecycle=Lifecycle(),
        folder=Path(),
        assets=Path(),
        backends=backends,
    )
    async with bus.open(), ROLE.open(config or InferenceConfig(default_model="m"), parts):
        yield bus.stamped("gateway"), parts


def request(text: str = "one two three", model: str = "m", tenant: str = "t") -> ChatRequest:
    return ChatRequest(model, (Message("user", text),), tenant=tenant)


async def chat(bus: BusHandle, asked: ChatRequest) -> str:
    text = ""
    async with bus.stream(CHAT, asked) as deltas:
        async for delta in deltas:
            text += delta.text
    return text


def one(slots: int = 1, **fields: Any) -> tuple[ModelStatus, ...]:
    return (ModelStatus("m", "played", "loaded", slots=slots, **fields),)


END = ChatDelta(finish="stop", usage=Usage(1, 1))


async def test_a_chat_through_the_bus() -> None:
    async with inference(Plugged(ECHO, EchoConfig(models=("m",)))) as (bus, parts):
        assert await chat(bus, request()) == "one two three"
        status = (await bus.call(MODELS, Nothing())).models[0]
        assert (status.name, status.backend, status.in_flight) == ("m", "echo", 0)
        await trio.lowlevel.checkpoint()
        assert parts.lifecycle.missing == {}


async def embedded(bus: BusHandle, asked: EmbedRequest) -> list[Embeddings]:
    async with bus.stream(EMBED, asked) as replies:
        return [some async for some in replies]


async def test_embeddings_through_the_bus() -> None:
    async with inference(Plugged(ECHO, EchoConfig(models=("m",)))) as (bus, _):
        parts = await embedded(bus, EmbedRequest("m", ("a b", (1, 2, 3)) * 50, dimensions=8))
        assert sum(len(part.vectors) for part in parts) == 100
        assert sum(part.prompt_tokens for part in parts) == 250
        assert {len(vector) for part in parts for vector in part.vectors} == {32}
        with pytest.raises(CallError) as caught:
            await embedded(bus, EmbedRequest("other", ("a",)))
        assert (caught.value.code, caught.value.reason) == ("not_found", "model_not_found")


async def test_a_model_that_does_not_embed_says_so() -> None:
    async def play(asked: ChatRequest, emit: Emit[ChatDelta]) -> None: ...

    async with inference(plugged(Played(play, one()))) as (bus, _):
        with pytest.raises(CallError) as caught:
            await embedded(bus, EmbedRequest("m", ("a",)))
        assert (caught.value.code, caught.value.reason, caught.value.param) == ("unsupported", "capability", "model")


@pytest.mark.parametrize("count", [1, 3])
async def test_another_number_of_vectors_is_the_back_ends_fault(count: int) -> None:
    async def play(asked: ChatRequest, emit: Emit[ChatDelta]) -> None: ...

    async def play_embed(asked: EmbedRequest, emit: Emit[Embeddings]) -> None:
        for _ in range(count):
            await emit(Embeddings((b"\0" * 4,), 1))

    backend = Played(play, one())
    backend.play_embed = play_embed
    async with inference(plugged(backend)) as (bus, _):
        with pytest.raises(CallError) as caught:
            await embedded(bus, EmbedRequest("m", ("a", "b")))
        assert caught.value.code == "upstream"


async def test_embeddings_wait_in_the_same_queue_as_chats(autojump_clock: MockClock) -> None:
    order: list[str] = []

    async def play(asked: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await trio.sleep(1)
        order.append(asked.tenant)
        await emit(END)

    async def play_embed(asked: EmbedRequest, emit: Emit[Embeddings]) -> None:
        await trio.sleep(1)
        order.append(asked.tenant)
        await emit(Embeddings((b"\0" * 4,), 1))

    backend = Played(play, one())
    backend.play_embed = play_embed
    async with inference(plugged(backend)) as (bus, parts), trio.open_nursery() as nursery:
        nursery.start_soon(chat, bus, request(tenant="a"))
        await wait_all_tasks_blocked()
        nursery.start_soon(chat, bus, request(tenant="a"))
        await wait_all_tasks_blocked()
        nursery.start_soon(embedded, bus, EmbedRequest("m", ("x",), tenant="b"))
        await wait_all_tasks_blocked()
        nursery.start_soon(chat, bus, request(tenant="a"))
        await wait_all_tasks_blocked()
        assert running(parts) == (1, 3)
    assert "".join(order) == "aaba"


async def test_the_first_configured_back_end_answers() -> None:
    async def play(asked: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await emit(ChatDelta("played", tokens=1))
        await emit(END)

    second = Plugged(ECHO, EchoConfig(models=("m", "only-echo")))
    async with inference(plugged(Played(play, one())), second) as (bus, _):
        assert await chat(bus, request()) == "played"
        assert await chat(bus, request(model="only-echo")) == "one two three"
        assert [status.name for status in (await bus.call(MODELS, Nothing())).models] == ["m", "only-echo"]


async def test_an_unknown_model_is_not_found() -> None:
    async with inference(Plugged(ECHO, EchoConfig())) as (bus, _):
        with pytest.raises(CallError) as caught:
            await chat(bus, request(model="nope"))
        assert (caught.value.code, caught.value.reason) == ("not_found", "model_not_found")


async def test_an_alias_is_told_to_the_back_end_by_its_name() -> None:
    seen: list[str] = []

    async def play(asked: ChatRequest, emit: Emit[ChatDelta]) -> None:
        seen.append(asked.model)
        await emit(END)

    async with inference(plugged(Played(play, (ModelStatus(DEFAULT_MODEL, "played", "loaded"),)))) as (bus, _):
        await chat(bus, request(model="smollm2"))
    assert seen == [DEFAULT_MODEL]


async def test_an_answer_that_only_stops_is_reported() -> None:
    async def play(asked: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await emit(ChatDelta("half", tokens=1))

    async with inference(plugged(Played(play, one()))) as (bus, _):
        with pytest.raises(CallError, match="middle") as caught:
            await chat(bus, request())
        assert caught.value.code == "upstream"


async def test_an_answer_that_goes_on_after_its_end_is_reported() -> None:
    async def play(asked: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await emit(END)
        await emit(ChatDelta("more", tokens=1))

    async with inference(plugged(Played(play, one()))) as (bus, _):
        with pytest.raises(CallError, match="went on"):
            await chat(bus, request())


async def test_leaving_the_stream_stops_the_back_end_and_frees_the_slot() -> None:
    stopped = trio.Event()

    async def play(asked: ChatRequest, emit: Emit[ChatDelta]) -> None:
        try:
            while True:
                await emit(ChatDelta("x", tokens=1))
        finally:
            stopped.set()

    async with inference(plugged(Played(play, one()))) as (bus, parts):
        async with bus.stream(CHAT, request()) as deltas:
            await anext(deltas)
            assert running(parts) == (1, 0)
        assert stopped.is_set()
        assert running(parts) == (0, 0)


def running(parts: Parts) -> tuple[float, float]:
    def value(name: str) -> float:
        return parts.metrics.registry.get_sample_value(name, {"model": "m"}) or 0.0

    return value("covey_num_requests_running"), value("covey_num_requests_waiting")


async def test_requests_beyond_the_slots_wait_and_tenants_take_turns() -> None:
    gate = trio.Event()
    order: list[str] = []

    async def play(asked: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await gate.wait()
        order.append(asked.tenant)
        await emit(END)

    async with inference(plugged(Played(play, one()))) as (bus, parts), trio.open_nursery() as nursery:
        for tenant in "aaab":
            nursery.start_soon(chat, bus, request(tenant=tenant))
            await wait_all_tasks_blocked()
        assert running(parts) == (1, 3)
        assert (await bus.call(MODELS, Nothing())).models[0].in_flight == 4
        gate.set()
    assert "".join(order) == "aaba"


async def test_a_full_queue_refuses_at_once_and_a_slow_one_in_time(autojump_clock: MockClock) -> None:
    async def play(asked: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await trio.sleep(1_000)
        await emit(END)

    config = InferenceConfig(default_model="m", queue_length_max=1, queue_seconds_max=30.0)
    async with inference(plugged(Played(play, one())), config=config) as (bus, _), trio.open_nursery() as nursery:
        nursery.start_soon(chat, bus, request())
        await wait_all_tasks_blocked()
        waiting: list[CallError] = []

        async def wait() -> None:
            with pytest.raises(CallError) as caught:
                await chat(bus, request())
            waiting.append(caught.value)

        began = trio.current_time()
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        with pytest.raises(CallError) as caught:
            await chat(bus, request())
        assert (caught.value.code, caught.value.reason) == ("no_capacity", "queue_full")
        assert caught.value.retry_after_seconds
        assert trio.current_time() == began
        await trio.sleep(31)
        assert (waiting[0].code, waiting[0].reason) == ("no_capacity", "queue_slow")
        nursery.cancel_scope.cancel()


async def test_who_leaves_the_queue_makes_room(autojump_clock: MockClock) -> None:
    async def play(asked: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await trio.sleep(10)
        await emit(END)

    config = InferenceConfig(default_model="m", queue_length_max=1)
    async with inference(plugged(Played(play, one())), config=config) as (bus, parts), trio.open_nursery() as nursery:
        nursery.start_soon(chat, bus, request())
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await chat(bus, request())
        assert running(parts) == (1, 0)
        await chat(bus, request())


@pytest.mark.parametrize("state", ["loading", "failed"])
async def test_the_node_is_not_ready_while_its_model_is_not(state: Any, autojump_clock: MockClock) -> None:
    async def play(asked: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await emit(END)

    backend = Played(play, (ModelStatus("m", "played", state, progress=0.5, detail="why"),))
    async with inference(plugged(backend)) as (_, parts):
        await trio.sleep(1)
        assert parts.lifecycle.missing["model"] == f"m is {state} (50%): why"
        backend.statuses = one()
        await trio.sleep(1)
        assert parts.lifecycle.missing == {}
        backend.statuses = ()
        await trio.sleep(1)
        assert parts.lifecycle.missing == {"model": "no back end has a model"}
        backend.statuses = (ModelStatus("embeds", "played", "on_disk", ("embed",)),)
        await trio.sleep(1)
        assert parts.lifecycle.missing == {"model": "no back end has a model"}
        backend.statuses = (ModelStatus("other", "played", "remote"),)
        await trio.sleep(1)
        assert parts.lifecycle.missing == {}


async def test_pulling_goes_to_the_first_back_end_that_can() -> None:
    async def play(asked: ChatRequest, emit: Emit[ChatDelta]) -> None: ...

    echo = Plugged(ECHO, EchoConfig())
    async with (
        inference(echo, plugged(Played(play, one()))) as (_, parts),
        parts.bus._bus.stamped("operator").stream(PULL_MODEL, PullModel("x")) as replies,
    ):
        assert [progress.stage async for progress in replies] == ["done"]
    async with inference(echo) as (_, parts):
        with pytest.raises(CallError) as caught:
            async with parts.bus._bus.stamped("operator").stream(PULL_MODEL, PullModel("x")) as replies:
                await anext(replies)
        assert caught.value.code == "unsupported"
