"""The suite that every way a call can travel must pass: in the process, in memory, over sockets, over libp2p.

    class TestCarrierPigeon(BusConformance, LinkConformance):
        @pytest.fixture
        async def ends(self) -> AsyncGenerator[Ends, None]:
            async with pigeons() as ends:
                yield ends

The far side may be another process: the tests learn what happened there by asking it over the bus. It calls
`covey.testing.callee.serve_far`, the near side `serve_near`. Wants pytest-trio, or anything that runs tests on trio.
"""

from collections.abc import AsyncIterable, Generator
from contextlib import contextmanager
from functools import partial

import msgspec
import trio

from covey.bus.bus import BusHandle
from covey.bus.credit import STREAM_ITEMS_MAX
from covey.bus.wire import BODY_PIECE_BYTES, FRAME_BYTES_MAX, REQUEST_BYTES_MAX
from covey.contracts.method import Nothing
from covey.errors import CODES, CallError, Code, Problem
from covey.telemetry.logs import set_request_id
from covey.testing.callee import (
    AT_ONCE,
    BUG,
    COUNT,
    ECHO,
    FAIL,
    FAIL_STREAM,
    FLOOD,
    HANG,
    HANG_STREAM,
    LARGE,
    LEDGER,
    LENGTH,
    LENGTH_STREAM,
    LIAR,
    NOBODY,
    RESTRICTED,
    UNTIL,
    WHO,
    WHO_STREAM,
    Amount,
    Failure,
    Item,
    Text,
    Until,
)  # fmt: skip
from covey.testing.ends import Ends

LARGE_CHARS = 500_000
PATIENCE_SECONDS = 10.0


@contextmanager
def refused(code: Code, reason: str | None = None) -> Generator[list[CallError], None, None]:
    """Expect a `CallError`; the list holds it afterwards."""
    caught: list[CallError] = []
    try:
        yield caught
    except CallError as error:
        caught.append(error)
    assert caught, f"nothing was raised where {code} was due"
    assert caught[0].code == code, f"{caught[0]} where {code} was due"
    assert reason is None or caught[0].reason == reason, f"{caught[0].reason} where {reason} was due"


async def collect(replies: AsyncIterable[Item]) -> list[int]:
    """The numbers of all replies."""
    return [item.number async for item in replies]


async def reaches(bus: BusHandle, name: str, count: int, *, exactly: bool = False) -> dict[str, int]:
    """The far side's ledger, once one of its counts is this high."""
    return (await bus.call(UNTIL, Until(name, count, exactly), timeout_seconds=PATIENCE_SECONDS)).counts


class BusConformance:
    """What holds wherever a method is served. Subclasses give the fixture `ends`."""

    async def test_unary(self, ends: Ends) -> None:
        assert await ends.bus.call(ECHO, Text("hello")) == Text("hello")
        assert await ends.bus.call(ECHO, Text("hello"), to=ends.far) == Text("hello")

    async def test_stream_keeps_its_order(self, ends: Ends) -> None:
        async with ends.bus.stream(COUNT, Amount(1_000)) as replies:
            assert await collect(replies) == list(range(1_000))

    async def test_large_messages(self, ends: Ends) -> None:
        assert len((await ends.bus.call(ECHO, Text("x" * LARGE_CHARS))).text) == LARGE_CHARS
        assert len((await ends.bus.call(LARGE, Amount(0, LARGE_CHARS))).text) == LARGE_CHARS
        async with ends.bus.stream(COUNT, Amount(100, LARGE_CHARS // 2)) as replies:
            assert await collect(replies) == list(range(100))

    async def test_requests_longer_than_a_frame(self, ends: Ends) -> None:
        longest = REQUEST_BYTES_MAX - len(msgspec.msgpack.encode(Text("x" * 70_000))) + 70_000
        for chars in (BODY_PIECE_BYTES - 20, FRAME_BYTES_MAX, FRAME_BYTES_MAX + 1, 5_000_000, longest):
            text = Text("x" * chars)
            assert (await ends.bus.call(LENGTH, text)).number == chars
            async with ends.bus.stream(LENGTH_STREAM, text) as replies:
                assert await collect(replies) == [chars]

    async def test_requests_that_are_too_long_are_refused_in_the_same_words(self, ends: Ends) -> None:
        text = Text("x" * REQUEST_BYTES_MAX)
        size = len(msgspec.msgpack.encode(text))
        with refused("too_large", "request") as unary:
            await ends.bus.call(LENGTH, text)
        with refused("too_large", "request") as stream:
            async with ends.bus.stream(LENGTH_STREAM, text) as replies:
                await collect(replies)
        assert unary[0].message == stream[0].message
        assert unary[0].message.startswith(f"A request of {size} bytes is more than the {REQUEST_BYTES_MAX} ")
        assert await ends.bus.call(ECHO, Text("unharmed")) == Text("unharmed")
        assert (await ends.bus.call(LEDGER, Nothing())).counts.get("started", 0) == 0

    async def test_every_error_arrives_as_it_was_raised(self, ends: Ends) -> None:
        for code in CODES:
            problem = Problem(code, f"This is {code}: näh.", "a_reason", "a.param", 1.5)
            for nested in (False, True):
                with refused(code) as unary:
                    await ends.bus.call(FAIL, Failure(problem, nested=nested))
                assert unary[0].problem == problem
                taken: list[int] = []
                with refused(code) as stream:
                    async with ends.bus.stream(FAIL_STREAM, Failure(problem, 3, nested)) as replies:
                        async for item in replies:
                            taken.append(item.number)  # noqa: PERF401 - what came before the failure is wanted
                assert stream[0].problem == problem
                assert taken == [0, 1, 2], "replies before the error were lost"

    async def test_a_bug_becomes_internal(self, ends: Ends) -> None:
        with refused("internal") as caught:
            await ends.bus.call(BUG, Nothing())
        assert "ZeroDivision" not in str(caught[0])
        with refused("internal"):
            await ends.bus.call(LIAR, Nothing())

    async def test_a_handler_that_never_waits(self, ends: Ends) -> None:
        assert await ends.bus.call(AT_ONCE, Text("hello")) == Text("hello")
        with refused("not_found", "conformance"):
            await ends.bus.call(AT_ONCE, Text("refuse"))
        for wrong in ("bug", "lie"):
            with refused("internal"):
                await ends.bus.call(AT_ONCE, Text(wrong))

    async def test_unary_deadline_cancels_the_handler(self, ends: Ends) -> None:
        with refused("deadline"):
            await ends.bus.call(HANG, Nothing(), timeout_seconds=0.05)
        counts = await reaches(ends.bus, "running", 0, exactly=True)
        assert counts["cancelled"] == counts["started"] == 1

    async def test_a_deadline_that_has_passed(self, ends: Ends) -> None:
        with refused("deadline"):
            await ends.bus.call(HANG, Nothing(), timeout_seconds=-1)
        with refused("deadline"):
            async with ends.bus.stream(HANG_STREAM, Amount(0), timeout_seconds=-1) as replies:
                await collect(replies)
        await reaches(ends.bus, "running", 0, exactly=True)

    async def test_stream_deadline_cancels_the_handler(self, ends: Ends) -> None:
        taken: list[int] = []
        with refused("deadline", ""):
            async with ends.bus.stream(HANG_STREAM, Amount(2), timeout_seconds=0.15) as replies:
                async for item in replies:
                    taken.append(item.number)  # noqa: PERF401 - what came before the failure is wanted
        assert taken == [0, 1]
        counts = await reaches(ends.bus, "running", 0, exactly=True)
        assert counts["cancelled"] == 1

    async def test_idle_stream(self, ends: Ends) -> None:
        with refused("deadline", "idle"):
            async with ends.bus.stream(HANG_STREAM, Amount(2)) as replies:
                await collect(replies)
        await reaches(ends.bus, "running", 0, exactly=True)

    async def test_cancelling_a_call(self, ends: Ends) -> None:
        with trio.CancelScope() as before:
            before.cancel()
            await ends.bus.call(HANG, Nothing())
        assert before.cancelled_caught
        await reaches(ends.bus, "running", 0, exactly=True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.bus.call, HANG, Nothing())
            await reaches(ends.bus, "running", 1)
            nursery.cancel_scope.cancel()
        await reaches(ends.bus, "running", 0, exactly=True)

        with trio.CancelScope() as after:
            await ends.bus.call(ECHO, Text("done"))
            after.cancel()
        assert await ends.bus.call(ECHO, Text("still there")) == Text("still there")

    async def test_leaving_early_cancels_the_handler_and_waits(self, ends: Ends) -> None:
        async with ends.bus.stream(FLOOD, Amount(0)) as replies:
            assert (await anext(replies)).number == 0
        counts = (await ends.bus.call(LEDGER, Nothing())).counts
        assert counts["running"] == 0
        assert counts["cancelled"] == 1

    async def test_cancelling_a_reader(self, ends: Ends) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_all, ends.bus)
            await reaches(ends.bus, "running", 1)
            nursery.cancel_scope.cancel()
        assert (await ends.bus.call(LEDGER, Nothing())).counts["running"] == 0

    async def _read_all(self, bus: BusHandle) -> None:
        async with bus.stream(FLOOD, Amount(0)) as replies:
            await collect(replies)

    async def test_a_readers_own_error_is_not_wrapped(self, ends: Ends) -> None:
        caught: Exception | None = None
        try:
            async with ends.bus.stream(FLOOD, Amount(0)) as replies:
                await anext(replies)
                raise KeyError("mine")
        except KeyError as error:
            caught = error
        assert caught is not None
        assert (await ends.bus.call(LEDGER, Nothing())).counts["running"] == 0

    async def test_a_cancelled_wait_loses_no_reply(self, ends: Ends) -> None:
        taken: list[int] = []
        async with ends.bus.stream(COUNT, Amount(500)) as replies:
            while True:
                with trio.CancelScope() as scope:
                    if len(taken) % 3 == 0 and not scope.cancel_called:
                        scope.cancel()
                    try:
                        taken.append((await anext(replies)).number)
                    except StopAsyncIteration:
                        break
                if scope.cancelled_caught:
                    try:
                        taken.append((await anext(replies)).number)
                    except StopAsyncIteration:
                        break
        assert taken == list(range(500))

    async def test_a_slow_reader_stops_its_own_handler_alone(self, ends: Ends) -> None:
        async with ends.bus.stream(FLOOD, Amount(0)) as replies:
            await anext(replies)
            await reaches(ends.bus, "flooded", STREAM_ITEMS_MAX)
            for number in range(50):
                assert await ends.bus.call(ECHO, Text(str(number))) == Text(str(number))
            async with ends.bus.stream(COUNT, Amount(300)) as others:
                assert await collect(others) == list(range(300))
            counts = (await ends.bus.call(LEDGER, Nothing())).counts
            assert counts["flooded"] <= STREAM_ITEMS_MAX + 2
            for expected in range(1, 200):
                assert (await anext(replies)).number == expected

    async def test_a_hundred_calls_interleaved(self, ends: Ends) -> None:
        async def one(number: int) -> None:
            if number % 2:
                assert await ends.bus.call(ECHO, Text(str(number))) == Text(str(number))
            async with ends.bus.stream(COUNT, Amount(number * 3)) as replies:
                async for _ in replies:
                    await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, number)

    async def test_access_is_refused_in_the_same_words(self, ends: Ends) -> None:
        with refused("denied") as caught:
            await ends.bus.call(RESTRICTED, Nothing())
        assert caught[0].message == "The role 'gateway' may not call conformance.restricted."

    async def test_unknown_method(self, ends: Ends) -> None:
        with refused("unreachable", "no_peer"):
            await ends.bus.call(NOBODY, Nothing())
        with refused("unreachable", "no_method"):
            await ends.bus.call(NOBODY, Nothing(), to=ends.far)

    async def test_the_caller_is_known(self, ends: Ends) -> None:
        set_request_id("request-1")
        try:
            seen = await ends.bus.call(WHO, Nothing())
            async with ends.bus.stream(WHO_STREAM, Nothing()) as replies:
                assert [each async for each in replies] == [seen]
        finally:
            set_request_id("")
        assert seen.stamp == "gateway"
        assert seen.request_id == seen.logged_request_id == "request-1"
        assert (await ends.bus.call(WHO, Nothing())).logged_request_id == ""

    async def test_batches(self, ends: Ends) -> None:
        async with ends.bus.stream(COUNT, Amount(150)) as replies:
            await reaches(ends.bus, "emitted", STREAM_ITEMS_MAX)
            sizes: list[int] = []
            numbers: list[int] = []
            while batch := await replies.batch():
                sizes.append(len(batch))
                numbers += [item.number for item in batch]
            assert await replies.batch() == []
        assert numbers == list(range(150))
        assert max(sizes) > 1
        assert max(sizes) <= STREAM_ITEMS_MAX + 2  # one in hand, one that its handler is about to hand over
        problem = Problem("upstream", "Broken.")
        async with ends.bus.stream(FAIL_STREAM, Failure(problem, 3)) as replies:
            taken: list[int] = []
            with refused("upstream"):
                while batch := await replies.batch():
                    taken += [item.number for item in batch]
            assert taken == [0, 1, 2]

    async def test_a_thousand_cancelled_calls_leave_nothing(self, ends: Ends) -> None:
        await ends.bus.call(ECHO, Text("warm"))
        living = trio.lowlevel.current_statistics().tasks_living

        async def cut_short(number: int) -> None:
            with trio.move_on_after(0.001 * (number % 4)):
                if number % 2:
                    await ends.bus.call(HANG, Nothing())
                else:
                    async with ends.bus.stream(FLOOD, Amount(0)) as replies:
                        await collect(replies)

        for _ in range(10):
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(partial(cut_short, number))
        await reaches(ends.bus, "running", 0, exactly=True)
        if ends.session is not None:
            assert ends.session.calls_in_flight == (0, 0)
        assert trio.lowlevel.current_statistics().tasks_living <= living
