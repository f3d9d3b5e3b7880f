"""What the bus does beyond the conformance suite: its own end, routes, and handlers that do odd things."""

import logging

import pytest
import trio
from trio.testing import MockClock

from covey.bus.bus import Bus
from covey.bus.caller import Caller, may_serve, permits
from covey.bus.replies import Emit
from covey.contracts.method import Nothing, Streaming, Unary
from covey.errors import CallError
from covey.telemetry.metrics import Metrics
from covey.testing import ALICE, BOB
from covey.testing.callee import COUNT, ECHO, Amount, Item, Text, serve_far
from covey.testing.conformance import refused

ODD = Unary("x.odd", Nothing, Nothing, access=frozenset({"gateway"}))
ODD_STREAM = Streaming("x.odd_stream", Nothing, Item, access=frozenset({"gateway"}))


async def test_a_stream_whose_bus_closes_does_not_end_well(autojump_clock: MockClock) -> None:
    async def endless(_: Caller, __: Nothing, emit: Emit[Item]) -> None:
        await emit(Item(1))
        await trio.sleep_forever()

    taken: list[int] = []

    async def read(opened: trio.Event) -> None:
        with refused("draining"):
            async with handle.stream(ODD_STREAM, Nothing()) as replies:
                async for item in replies:
                    taken.append(item.number)
                    opened.set()

    async with trio.open_nursery() as nursery, Bus(ALICE, Metrics()).open() as bus:
        handle = bus.stamped("gateway")
        handle.serve_stream(ODD_STREAM, endless)
        opened = trio.Event()
        nursery.start_soon(read, opened)
        await opened.wait()
    assert taken == [1]
    with refused("draining"):
        async with handle.stream(ODD_STREAM, Nothing()):
            raise AssertionError


async def test_opening_does_not_wrap_the_blocks_error() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with Bus(ALICE, Metrics()).open():
            raise KeyError("mine")


async def test_a_bug_beside_a_cancellation_is_logged_and_goes_no_further(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def clumsy(_: Caller, __: Nothing) -> Nothing:
        async def fall() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("clumsy")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fall)
            nursery.start_soon(trio.sleep_forever)
        return Nothing()

    async with Bus(ALICE, Metrics()).open() as bus:
        handle = bus.stamped("gateway")
        handle.serve(ODD, clumsy)
        with trio.move_on_after(1) as scope:
            await handle.call(ODD, Nothing(), timeout_seconds=60)
        assert scope.cancelled_caught
        with refused("internal"):
            await handle.call(ODD, Nothing(), timeout_seconds=1)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


async def test_several_refusals_in_a_handlers_nursery_are_one(autojump_clock: MockClock) -> None:
    async def torn(_: Caller, __: Nothing) -> Nothing:
        async def refuse() -> None:
            raise CallError("upstream", "No.")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
            nursery.start_soon(refuse)
        return Nothing()

    async with Bus(ALICE, Metrics()).open() as bus:
        bus.stamped("gateway").serve(ODD, torn)
        with refused("upstream"):
            await bus.stamped("gateway").call(ODD, Nothing())


async def test_a_refusal_beside_a_bug_is_internal(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async def torn(_: Caller, __: Nothing) -> Nothing:
        raise ExceptionGroup("", [CallError("upstream", "No."), ValueError("bug")])

    async with Bus(ALICE, Metrics()).open() as bus:
        bus.stamped("gateway").serve(ODD, torn)
        with refused("internal"):
            await bus.stamped("gateway").call(ODD, Nothing())
    assert len(caplog.records) == 1


async def test_a_handler_that_ignores_its_cancellation(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def stubborn(_: Caller, __: Nothing, emit: Emit[Item]) -> None:
        await emit(Item(1))
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

    async with Bus(ALICE, Metrics()).open() as bus:
        bus.stamped("gateway").serve_stream(ODD_STREAM, stubborn)
        start = trio.current_time()
        async with bus.stamped("gateway").stream(ODD_STREAM, Nothing()) as replies:
            await anext(replies)
        assert trio.current_time() - start == pytest.approx(5)
    assert "ignores its cancellation" in caplog.text


async def test_emits_from_several_tasks(autojump_clock: MockClock) -> None:
    async def many(_: Caller, __: Nothing, emit: Emit[Item]) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(emit, Item(number))

    async with Bus(ALICE, Metrics()).open() as bus:
        bus.stamped("gateway").serve_stream(ODD_STREAM, many)
        async with bus.stamped("gateway").stream(ODD_STREAM, Nothing()) as replies:
            assert sorted([item.number async for item in replies]) == list(range(200))


async def test_routes() -> None:
    async with Bus(ALICE, Metrics()).open() as bus:
        handle = bus.stamped("gateway")
        with refused("unreachable", "no_peer") as caught:
            await handle.call(ECHO, Text(""))
        assert caught[0].message == "No live node serves conformance.echo."
        with refused("unreachable", "no_method"):
            await handle.call(ECHO, Text(""), to=ALICE)
        with refused("unreachable", "no_peer") as caught:
            await handle.call(ECHO, Text(""), to=BOB)
        assert caught[0].message == "There is no link to the node bob now."
        assert handle.serving(ECHO) == ()
        serve_far(handle)
        assert handle.serving(ECHO) == (ALICE,)
        with pytest.raises(ValueError, match="served already"):
            serve_far(handle)


async def test_calls_are_counted_by_outcome() -> None:
    metrics = Metrics()
    async with Bus(ALICE, metrics).open() as bus:
        handle = bus.stamped("gateway")
        serve_far(handle)
        await handle.call(ECHO, Text(""))
        async with handle.stream(COUNT, Amount(2)) as replies:
            assert len([item async for item in replies]) == 2
        with refused("unreachable"):
            await handle.call(ECHO, Text(""), to=BOB)
    text = metrics.render("")[0].decode()
    assert 'covey_bus_calls_total{method="conformance.echo",outcome="ok"} 1.0' in text
    assert 'covey_bus_calls_total{method="conformance.count",outcome="ok"} 1.0' in text
    assert 'covey_bus_calls_total{method="conformance.echo",outcome="unreachable"} 1.0' in text


@pytest.mark.parametrize(
    ("stamp", "granted", "access", "verdict"),
    [
        ("gateway", {"gateway", "member"}, {"gateway"}, True),
        ("gateway", {"inference", "member"}, {"gateway"}, False),
        ("inference", {"inference", "member"}, {"member"}, True),
        ("member", {"inference", "member"}, {"member"}, True),
        ("operator", {"operator", "member"}, {"member"}, False),
        ("operator", {"operator"}, {"operator", "member"}, True),
        ("gateway", {"operator"}, {"gateway"}, False),
        ("president", {"gateway", "member"}, {"member"}, False),
    ],
)
def test_who_may_call(stamp: str, granted: set[str], access: set[str], *, verdict: bool) -> None:
    assert permits(stamp, granted, frozenset(access)) is verdict  # type: ignore[arg-type]


def test_who_may_serve() -> None:
    assert may_serve("inference.chat", {"inference", "member"})
    assert not may_serve("auth.verify", {"inference", "member"})
    assert may_serve("cluster.node_status", {"inference", "member"})
    assert not may_serve("cluster.node_status", {"operator"})
