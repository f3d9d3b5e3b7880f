"""Sessions against peers that misbehave, fall silent, are old, or are simply slow."""

import logging
import tracemalloc
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from covey.bus import wire
from covey.bus.bus import Bus, BusHandle
from covey.bus.caller import Caller
from covey.bus.carrier import SessionLimits
from covey.bus.credit import STREAM_ITEMS_MAX
from covey.bus.inbound import LongBody
from covey.bus.replies import Emit
from covey.bus.session import Session, open_session
from covey.bus.wire import Frame, Hello, Open, Type
from covey.contracts.method import Nothing, Streaming, Unary
from covey.errors import CallError
from covey.telemetry.metrics import Metrics
from covey.testing import ALICE, BOB, MEMBER, alice_and_bob
from covey.testing.callee import (
    COUNT,
    ECHO,
    FLOOD,
    HANG,
    HANG_STREAM,
    LENGTH,
    LENGTH_STREAM,
    WHO,
    Amount,
    Item,
    Text,
    serve_far,
)
from covey.testing.conformance import reaches, refused
from covey.transport.base import PeerId
from covey.transport.memory import LinkQuality, MemoryNetwork

HELLO = Hello(wire.VERSION, wire.VERSION_OLDEST, "boot", "raw", methods=("conformance.echo",))


class RawPeer:
    """The other end of a session, by hand."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._decoder = wire.Decoder()
        self._frames: list[Frame] = []

    async def send(self, *frames: bytes) -> None:
        await self.stream.send_all(b"".join(frames))

    async def next(self, *kinds: Type) -> Frame:
        """The next frame of these kinds; others are skipped."""
        while True:
            while self._frames:
                got = self._frames.pop(0)
                if got.type in kinds:
                    return got
            data = await self.stream.receive_some(65_536)
            assert data, f"the stream ended where {kinds} was due"
            self._frames = self._decoder.receive(data)

    async def until_end(self) -> None:
        try:
            while await self.stream.receive_some(65_536):
                pass
        except trio.BrokenResourceError:
            pass


@asynccontextmanager
async def against_raw_peer(
    serve: Callable[[BusHandle], None] | None = None,
    *,
    hello: Hello | None = HELLO,
    limits: SessionLimits | None = None,
    granted: frozenset[str] = MEMBER,
) -> AsyncGenerator[tuple[Bus, Session, RawPeer], None]:
    """A real session of alice's (the dialer) with a peer by hand."""
    network = MemoryNetwork()
    near, far = network.connect(ALICE, BOB)
    async with Bus(ALICE, Metrics(), name="alice").open() as bus:
        if serve:
            serve(bus.stamped("gateway"))
        raw = RawPeer(far)
        if hello:
            await raw.send(wire.hello(hello))
        async with open_session(bus, near, peer=BOB, granted=granted, dialer=True, limits=limits) as session:  # type: ignore[arg-type]
            yield bus, session, raw


def an_open(call: int, method: str, body: object = None, seconds: float | None = 60.0) -> bytes:
    return wire.open_call(call, Open(method, "gateway", msgspec.Raw(msgspec.msgpack.encode(body or {})), seconds))


# The handshake


async def test_hello_introduces_both(autojump_clock: MockClock) -> None:
    async with alice_and_bob(bob=serve_far) as (alice, bob):
        assert alice.directory.serving(ECHO.name) == (BOB,)
        assert alice.boot_id != bob.boot_id
        assert await alice.stamped("gateway").call(ECHO, Text("hi")) == Text("hi")


async def test_a_neighbouring_version_works(autojump_clock: MockClock) -> None:
    newer = msgspec.structs.replace(HELLO, version=wire.VERSION + 1, features=("teleport",))
    async with against_raw_peer(hello=newer) as (_, session, _raw):
        assert session.version == wire.VERSION
        assert session.features == frozenset()


async def test_a_far_version_is_refused_and_both_are_told(autojump_clock: MockClock) -> None:
    far_off = msgspec.structs.replace(HELLO, version=9, version_oldest=8)
    near, far = MemoryNetwork().connect(ALICE, BOB)
    raw = RawPeer(far)
    await raw.send(wire.hello(far_off))
    with refused("protocol", "version") as caught:
        async with open_session(Bus(ALICE, Metrics()), near, peer=BOB, granted=MEMBER, dialer=True):
            raise AssertionError
    assert "upgrade this node" in caught[0].message
    assert wire.read_hello(await raw.next(Type.HELLO)).version == wire.VERSION
    assert wire.read_error(await raw.next(Type.ERROR)).reason == "version"


async def test_a_peer_that_says_nothing(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    with refused("deadline"):
        async with against_raw_peer(hello=None):
            raise AssertionError
    assert trio.current_time() - start == pytest.approx(5.0)


async def test_a_peer_that_hangs_up_at_once(autojump_clock: MockClock) -> None:
    near, far = MemoryNetwork().connect(ALICE, BOB)
    await far.aclose()
    with refused("peer_lost"):
        async with open_session(Bus(ALICE, Metrics()), near, peer=BOB, granted=MEMBER, dialer=True):
            raise AssertionError


async def test_the_blocks_own_error_is_not_wrapped(autojump_clock: MockClock) -> None:
    with pytest.raises(KeyError, match="mine"):
        async with alice_and_bob():
            raise KeyError("mine")


async def test_a_peer_is_believed_for_its_roles_alone(autojump_clock: MockClock) -> None:
    claims = msgspec.structs.replace(HELLO, methods=("auth.verify", "inference.chat", "feeds.sync"))
    granted = frozenset({"inference", "member"})
    async with against_raw_peer(hello=claims, granted=granted) as (bus, _, _raw):
        assert bus.directory.serving("auth.verify") == ()
        assert bus.directory.serving("inference.chat") == (BOB,)
        assert bus.directory.serving("feeds.sync") == (BOB,)
    operator = frozenset({"operator"})
    async with against_raw_peer(hello=claims, granted=operator) as (bus, _, _raw):
        assert bus.directory.serving("feeds.sync") == ()
    assert bus.directory.serving("inference.chat") == ()


async def test_what_is_served_later_is_announced(autojump_clock: MockClock) -> None:
    async with alice_and_bob() as (alice, bob):
        serve_far(bob.stamped("gateway"))
        await wait_all_tasks_blocked()
        assert await alice.stamped("gateway").call(ECHO, Text("new")) == Text("new")


# Cheats


async def test_a_peer_that_ignores_credit_ends_its_session(autojump_clock: MockClock) -> None:
    async with against_raw_peer() as (bus, session, raw):
        with refused("peer_lost", "protocol"):
            async with bus.stamped("gateway").stream(COUNT, Amount(1), to=BOB) as replies:
                opened = await raw.next(Type.OPEN)
                data = wire.frame(Type.DATA, opened.call, msgspec.msgpack.encode(Item(0)))
                await raw.send(*[data] * (STREAM_ITEMS_MAX + 1))
                assert wire.read_error(await raw.next(Type.ERROR)).code == "protocol"
                async for _ in replies:
                    pass
        assert session.lost is not None
        assert session.lost.code == "protocol"


async def test_a_peer_that_acknowledges_too_much_ends_its_session(autojump_clock: MockClock) -> None:
    async with against_raw_peer(serve_far) as (_, session, raw):
        await raw.send(an_open(2, HANG_STREAM.name, Amount(3)))
        await raw.next(Type.DATA)
        await raw.send(wire.credit(2, 1_000))
        assert wire.read_error(await raw.next(Type.ERROR)).code == "protocol"
        await session.closed.wait()


async def test_a_call_id_in_use_ends_the_session(autojump_clock: MockClock) -> None:
    async with against_raw_peer(serve_far) as (_, _session, raw):
        await raw.send(an_open(2, HANG.name), an_open(2, HANG.name))
        assert "opened twice" in wire.read_error(await raw.next(Type.ERROR)).message


@pytest.mark.parametrize("said", ["x\n12:00:00 error forged", "x" * 65, "a b"])
async def test_a_peer_cannot_draw_into_the_log_with_a_request_id(autojump_clock: MockClock, said: str) -> None:
    def asked(request_id: str) -> bytes:
        body = msgspec.Raw(msgspec.msgpack.encode(Nothing()))
        return wire.open_call(2, Open(WHO.name, "gateway", body, 60.0, request_id))

    async with against_raw_peer(serve_far) as (_, session, raw):
        for sent, seen in ((said, ""), ("req_1", "req_1")):
            await raw.send(asked(sent))
            got = msgspec.msgpack.decode((await raw.next(Type.END)).payload, type=WHO.response)
            assert (got.request_id, got.logged_request_id) == (seen, seen)
        assert session.lost is None


async def test_more_calls_than_allowed_get_no_capacity(autojump_clock: MockClock) -> None:
    async with against_raw_peer(serve_far, limits=SessionLimits(inbound_calls_max=3)) as (_, session, raw):
        await raw.send(*[an_open(2 * number, HANG.name) for number in range(1, 5)])
        got = await raw.next(Type.ERROR)
        assert (got.call, wire.read_error(got).code) == (8, "no_capacity")
        await raw.send(wire.frame(Type.CANCEL, 2))
        assert (await raw.next(Type.END)).call == 2
        await raw.send(an_open(10, ECHO.name, Text("room again")))
        assert (await raw.next(Type.END)).call == 10
        assert session.calls_in_flight == (0, 2)


async def test_larger_requests_than_allowed_get_no_capacity(autojump_clock: MockClock) -> None:
    limits = SessionLimits(inbound_bytes_max=1_000)
    async with against_raw_peer(serve_far, limits=limits) as (_, _session, raw):
        await raw.send(an_open(2, ECHO.name, Text("x" * 2_000)))
        assert wire.read_error(await raw.next(Type.ERROR)).code == "no_capacity"
        await raw.send(an_open(4, ECHO.name, Text("small")))
        assert (await raw.next(Type.END)).call == 4


# Requests longer than a frame

LONG = Text("x" * 3_000_000)
LONG_BODY = msgspec.msgpack.encode(LONG)
TAKES_LONG = msgspec.structs.replace(
    HELLO, features=wire.FEATURES, methods=("conformance.echo", "conformance.length", "conformance.length_stream")
)


def a_long_open(call: int, body_bytes: int = len(LONG_BODY), seconds: float | None = 60.0) -> bytes:
    return wire.open_call(call, Open(LENGTH.name, "gateway", wire.NIL, seconds, body_bytes=body_bytes))


async def test_a_long_request_makes_no_other_call_wait(autojump_clock: MockClock) -> None:
    async with against_raw_peer(hello=TAKES_LONG) as (bus, _, raw), trio.open_nursery() as nursery:
        handle = bus.stamped("gateway")
        nursery.start_soon(handle.call, LENGTH, LONG)
        opened = wire.read_open(await raw.next(Type.OPEN))
        assert (opened.body, opened.body_bytes) == (wire.NIL, len(LONG_BODY))
        nursery.start_soon(handle.call, ECHO, Text("short"))
        pieces = list[bytes]()
        while (got := await raw.next(Type.BODY, Type.OPEN)).type is Type.BODY:
            pieces.append(got.payload)
        assert wire.read_open(got).method == ECHO.name
        assert sum(map(len, pieces)) < 10 * wire.BODY_PIECE_BYTES
        while sum(map(len, pieces)) < len(LONG_BODY):
            pieces.append((await raw.next(Type.BODY)).payload)
        assert b"".join(pieces) == LONG_BODY
        nursery.cancel_scope.cancel()


async def test_a_long_request_in_any_pieces(autojump_clock: MockClock) -> None:
    async with against_raw_peer(serve_far) as (_, session, raw):
        await raw.send(a_long_open(2))
        for start in range(0, len(LONG_BODY), 300_007):
            await raw.send(an_open(4, ECHO.name, Text("")))
            assert (await raw.next(Type.END)).call == 4
            await raw.send(wire.frame(Type.BODY, 2, LONG_BODY[start : start + 300_007]))
        answer = await raw.next(Type.END)
        assert msgspec.msgpack.decode(answer.payload, type=Item) == Item(3_000_000)
        assert session.calls_in_flight == (0, 0)


async def test_a_long_request_in_tiny_pieces_takes_its_length_and_no_more() -> None:
    """Kept piece by piece, two bytes would take fifty: half a gigabyte for the 16 MB of one call."""
    body = LongBody(200_000)
    tracemalloc.start()
    try:
        for start in range(0, 200_000, 2):
            body.receive(LONG_BODY[start : start + 2])
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert await body.whole() == LONG_BODY[:200_000]
    assert held_bytes < 400_000


async def test_an_older_peer_is_sent_no_long_request(autojump_clock: MockClock) -> None:
    async with against_raw_peer() as (bus, session, raw):
        with refused("too_large", "frame") as caught:
            await bus.stamped("gateway").call(ECHO, LONG)
        assert "The node raw takes longer requests once it is upgraded." in caught[0].message
        assert session.calls_in_flight == (0, 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bus.stamped("gateway").call, ECHO, Text("x" * 500_000))
            assert wire.read_open(await raw.next(Type.OPEN)).body_bytes == 0  # nor in pieces what fits one frame
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seconds", [60.0, 7.0, None])
async def test_a_request_that_never_ends_is_given_up(autojump_clock: MockClock, seconds: float | None) -> None:
    limits = SessionLimits(inbound_bytes_max=len(LONG_BODY), body_seconds=10.0, dead_seconds=1e6)
    async with against_raw_peer(serve_far, limits=limits) as (_, session, raw):
        start = trio.current_time()
        await raw.send(a_long_open(2, seconds=seconds), wire.frame(Type.BODY, 2, LONG_BODY[:1_000]))
        await raw.send(a_long_open(4))
        refusal = await raw.next(Type.ERROR)
        assert (refusal.call, wire.read_error(refusal).code) == (4, "no_capacity")  # its bytes count from the start
        error = wire.read_error(await raw.next(Type.ERROR))
        assert (error.code, error.reason) == ("deadline", "slow_body")
        assert trio.current_time() - start == pytest.approx(min(seconds or 10, 10))
        await raw.send(wire.frame(Type.BODY, 2, LONG_BODY[1_000:2_000]))  # too late, and nobody's fault
        await raw.send(a_long_open(6), *wire.body_frames(6, LONG_BODY))
        assert (await raw.next(Type.END)).call == 6
        assert session.calls_in_flight == (0, 0)


async def test_the_time_that_a_request_takes_to_come_counts(autojump_clock: MockClock) -> None:
    body = msgspec.msgpack.encode(Nothing())
    async with against_raw_peer(serve_far) as (_, _session, raw):
        start = trio.current_time()
        await raw.send(wire.open_call(2, Open(HANG.name, "gateway", wire.NIL, 10.0, body_bytes=len(body))))
        await trio.sleep(4)
        await raw.send(*wire.body_frames(2, body))
        assert wire.read_error(await raw.next(Type.ERROR)).code == "deadline"
        assert trio.current_time() - start == pytest.approx(10)


async def test_an_announcement_beyond_the_bound_harms_its_call_alone(autojump_clock: MockClock) -> None:
    async with against_raw_peer(serve_far) as (_, session, raw):
        await raw.send(a_long_open(2, wire.REQUEST_BYTES_MAX + 1))
        error = wire.read_error(await raw.next(Type.ERROR))
        assert (error.code, error.reason) == ("too_large", "request")
        assert session.lost is None


async def test_a_long_request_that_is_no_message_harms_its_call_alone(autojump_clock: MockClock) -> None:
    async with against_raw_peer(serve_far) as (_, session, raw):
        await raw.send(a_long_open(2), *wire.body_frames(2, b"\xc1" * len(LONG_BODY)))
        assert wire.read_error(await raw.next(Type.ERROR)).code == "invalid"
        assert session.calls_in_flight == (0, 0)


async def test_a_cancelled_half_is_forgotten(autojump_clock: MockClock) -> None:
    limits = SessionLimits(inbound_bytes_max=len(LONG_BODY))
    async with against_raw_peer(serve_far, limits=limits) as (_, session, raw):
        for call in (2, 4, 6):
            await raw.send(a_long_open(call), wire.frame(Type.BODY, call, LONG_BODY[:1_000]))
            await raw.send(wire.frame(Type.CANCEL, call))
            assert (await raw.next(Type.END)).call == call
        assert session.calls_in_flight == (0, 0)


@pytest.mark.parametrize("streaming", [False, True])
async def test_no_more_is_sent_of_a_request_that_was_refused(autojump_clock: MockClock, *, streaming: bool) -> None:
    async def ask(handle: BusHandle) -> None:
        with refused("no_capacity"):
            if not streaming:
                await handle.call(LENGTH, LONG)
            async with handle.stream(LENGTH_STREAM, LONG) as replies:
                await anext(replies)

    async with against_raw_peer(hello=TAKES_LONG) as (bus, session, raw), trio.open_nursery() as nursery:
        nursery.start_soon(ask, bus.stamped("gateway"))
        opened = await raw.next(Type.OPEN)
        await raw.send(wire.error(opened.call, CallError("no_capacity", "Busy.")))
        await wait_all_tasks_blocked()
        await raw.send(wire.frame(Type.PING, 77))
        while (got := await raw.next(Type.BODY, Type.PONG, Type.CANCEL)).type is Type.BODY:
            pass
        assert got.type is Type.PONG
        assert session.sent_bytes < 1_000_000
        assert session.calls_in_flight == (0, 0)


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_deadline_in_the_middle_of_a_request(autojump_clock: MockClock, *, streaming: bool) -> None:
    async with against_raw_peer(hello=TAKES_LONG) as (bus, session, raw):
        handle = bus.stamped("gateway")
        with refused("deadline"):
            if not streaming:
                await handle.call(LENGTH, LONG, timeout_seconds=2)
            async with handle.stream(LENGTH_STREAM, LONG, timeout_seconds=2) as replies:
                await anext(replies)
        assert session.calls_in_flight == (0, 0)
        opened = await raw.next(Type.OPEN)
        assert (await raw.next(Type.CANCEL)).call == opened.call


async def test_a_link_that_ends_in_the_middle_of_a_request(autojump_clock: MockClock) -> None:
    async with against_raw_peer(hello=TAKES_LONG) as (bus, _, raw), trio.open_nursery() as nursery:

        async def ask() -> None:
            with refused("unreachable", "no_peer"):  # the handler has never begun: another node may take it
                await bus.stamped("gateway").call(LENGTH, LONG, to=BOB)

        nursery.start_soon(ask)
        await raw.next(Type.OPEN)
        await raw.stream.aclose()


async def test_a_peer_that_asks_and_never_reads_is_given_up(autojump_clock: MockClock) -> None:
    limits = SessionLimits(outgoing_bytes_hard=1 << 16, dead_seconds=1e6)
    async with against_raw_peer(limits=limits) as (_, session, raw):
        pings = wire.frame(Type.PING, 1) * 1_000_000
        with pytest.raises(trio.BrokenResourceError):
            await raw.send(pings)
        await session.closed.wait()
        assert session.lost is not None
        assert "does not read" in session.lost.message


async def test_a_stalled_link_holds_a_bounded_amount(autojump_clock: MockClock) -> None:
    calls = 30

    def serve(bus: BusHandle) -> None:
        async def flood(_: Caller, request: Amount, emit: Emit[Item]) -> None:
            while True:
                await emit(Item(0, "x" * request.chars))

        bus.serve_stream(FLOOD, flood)

    async with against_raw_peer(serve, limits=SessionLimits(dead_seconds=1e6)) as (_, session, raw):
        await raw.send(*[an_open(2 * number, FLOOD.name, Amount(0, 20_000), None) for number in range(1, calls + 1)])
        await wait_all_tasks_blocked()
        assert session._outbox.queued_bytes < session.limits.outgoing_bytes_soft + 21_000
        assert session.calls_in_flight == (0, calls)


async def test_answers_of_the_wrong_kind_harm_their_call_alone(autojump_clock: MockClock) -> None:
    async with against_raw_peer() as (bus, session, raw):
        handle = bus.stamped("gateway")
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                opened = await raw.next(Type.OPEN)
                await raw.send(wire.frame(Type.DATA, opened.call, msgspec.msgpack.encode(Item(0))))
                assert (await raw.next(Type.CANCEL)).call == opened.call
                opened = await raw.next(Type.OPEN)
                await raw.send(wire.frame(Type.END, opened.call, msgspec.msgpack.encode(Text("at once"))))
                opened = await raw.next(Type.OPEN)
                await raw.send(wire.frame(Type.END, opened.call, b"\xc1"))
                opened = await raw.next(Type.OPEN)
                await raw.send(wire.frame(Type.DATA, opened.call, b"\xc1"))
                cancelled = await raw.next(Type.CANCEL)
                await raw.send(wire.frame(Type.END, cancelled.call))

            nursery.start_soon(answer)
            with refused("protocol"):
                await handle.call(ECHO, Text(""))
            with refused("protocol"):
                async with handle.stream(COUNT, Amount(1), to=BOB) as replies:
                    await anext(replies)
            with refused("protocol"):
                await handle.call(ECHO, Text(""))
            with refused("protocol"):
                async with handle.stream(COUNT, Amount(1), to=BOB) as replies:
                    await anext(replies)
        assert session.lost is None
        assert session.calls_in_flight == (0, 0)


async def test_late_answers_are_nobodys_fault(autojump_clock: MockClock) -> None:
    async with against_raw_peer() as (bus, session, raw):
        with refused("deadline"):
            await bus.stamped("gateway").call(ECHO, Text(""), timeout_seconds=0.1)
        opened = await raw.next(Type.OPEN)
        assert (await raw.next(Type.CANCEL)).call == opened.call
        await raw.send(wire.frame(Type.END, opened.call, msgspec.msgpack.encode(Text("late"))))
        await raw.send(wire.frame(Type.CANCEL, 2), wire.credit(2, 5), wire.frame(Type.PING, 9))
        assert (await raw.next(Type.PONG)).call == 9
        assert session.lost is None


async def test_call_ids_wrap_around_what_is_in_use(autojump_clock: MockClock) -> None:
    async with alice_and_bob(bob=serve_far) as (alice, _):
        session = alice._links[BOB]
        assert isinstance(session, Session)
        handle = alice.stamped("gateway")
        async with handle.stream(COUNT, Amount(200)) as replies:
            await anext(replies)
            assert list(session._outbound) == [1]
            session._last_id = wire.CALL_ID_MAX - 2
            for number in range(3):
                assert await handle.call(ECHO, Text(str(number))) == Text(str(number))
            assert session._last_id == 5
            assert len([item async for item in replies]) == 199


# Silence


async def test_a_silent_peer_is_lost(autojump_clock: MockClock) -> None:
    async with against_raw_peer() as (bus, session, _):
        start = trio.current_time()
        with refused("peer_lost") as caught:
            await bus.stamped("gateway").call(ECHO, Text(""), timeout_seconds=60)
        assert trio.current_time() - start == pytest.approx(15.0)
        assert "silent" in caught[0].message
        await session.closed.wait()
        assert bus.directory.serving(ECHO.name) == ()


@pytest.mark.parametrize("one_way", [False, True])
async def test_a_cut_link_is_noticed_on_both_sides(autojump_clock: MockClock, one_way: bool) -> None:
    network = MemoryNetwork()
    limits = SessionLimits(ping_seconds=0.2, dead_seconds=0.6)
    async with alice_and_bob(bob=serve_far, network=network, limits=limits) as (alice, bob):
        assert bob.directory.serving(ECHO.name) == ()
        network.cut(ALICE, BOB, one_way=one_way)
        start = trio.current_time()
        with refused("peer_lost"):
            await alice.stamped("gateway").call(HANG, Nothing(), timeout_seconds=60)
        assert trio.current_time() - start <= 1.3
        await trio.sleep(1.3)
        assert not bob._links


async def test_a_frozen_peer_that_thaws_in_time_is_kept(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with alice_and_bob(bob=serve_far, network=network) as (alice, _):
        network.freeze(BOB)
        async with trio.open_nursery() as nursery:

            async def thaw() -> None:
                await trio.sleep(9)
                network.thaw(BOB)

            nursery.start_soon(thaw)
            start = trio.current_time()
            assert await alice.stamped("gateway").call(ECHO, Text("slow"), timeout_seconds=60) == Text("slow")
            assert trio.current_time() - start == pytest.approx(9)


async def test_an_idle_session_stays(autojump_clock: MockClock) -> None:
    network = MemoryNetwork(0, LinkQuality(delay_seconds=0.05))
    async with alice_and_bob(bob=serve_far, network=network) as (alice, _):
        await trio.sleep(3_600)
        session = alice._links[BOB]
        assert isinstance(session, Session)
        assert session.round_trip_seconds == pytest.approx(0.1)
        assert await alice.stamped("gateway").call(ECHO, Text("hi")) == Text("hi")


# The end


async def test_closing_ends_the_calls_of_both_sides(autojump_clock: MockClock) -> None:
    async with alice_and_bob(alice=_serve_hang_at_near, bob=serve_far) as (alice, bob):
        session = alice._links[BOB]
        assert isinstance(session, Session)

        async def far_call() -> None:
            with refused("peer_lost") as caught:
                await bob.stamped("gateway").call(NEAR_HANG, Nothing(), timeout_seconds=60)
            assert "closed by it" in caught[0].message

        async def near_call() -> None:
            with refused("peer_lost"):
                await alice.stamped("gateway").call(HANG, Nothing(), timeout_seconds=60)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(far_call)
            nursery.start_soon(near_call)
            await reaches(alice.stamped("gateway"), "running", 1)
            await session.close()
        assert session.calls_in_flight == (0, 0)
        await wait_all_tasks_blocked()
        assert not bob._links


NEAR_HANG = Unary("conformance.near_hang", Nothing, Nothing, access=frozenset({"gateway"}))


def _serve_hang_at_near(bus: BusHandle) -> None:
    async def hang(_: Caller, __: Nothing) -> Nothing:
        await trio.sleep_forever()
        raise AssertionError

    bus.serve(NEAR_HANG, hang)


async def test_what_was_queued_is_written_before_the_end(autojump_clock: MockClock) -> None:
    async with against_raw_peer() as (_, session, raw):
        session.refuse(CallError("conflict", "Another node has your identity.", reason="copied"))
        told = wire.read_error(await raw.next(Type.ERROR))
        assert (told.code, told.reason) == ("conflict", "copied")
        await raw.until_end()
        await session.closed.wait()


async def test_why_a_peer_refused_is_known(autojump_clock: MockClock) -> None:
    async with against_raw_peer() as (bus, session, raw):
        await raw.send(wire.error(wire.SESSION, CallError("conflict", "You are a copy.", reason="copied")))
        await session.closed.wait()
        assert session.lost is not None
        assert session.lost.reason == "copied"
        with refused("unreachable"):
            await bus.stamped("gateway").call(ECHO, Text(""))


async def test_a_stream_that_breaks_under_the_writer(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    async with alice_and_bob(bob=serve_far, network=network) as (alice, _):
        with refused("peer_lost"):
            async with alice.stamped("gateway").stream(FLOOD, Amount(0)) as replies:
                await anext(replies)
                network.drop(ALICE, BOB)
                async for _item in replies:
                    pass


async def test_a_lossy_network_never_makes_a_stream_end_well(autojump_clock: MockClock) -> None:
    complete = lost = 0
    codes = set[str]()
    for seed in range(30):
        network = MemoryNetwork(seed, LinkQuality(0.001, 0.002, loss=0.05))
        taken: list[int] = []
        try:
            async with (
                alice_and_bob(bob=serve_far, network=network) as (alice, _),
                alice.stamped("gateway").stream(COUNT, Amount(300)) as replies,
            ):
                async for item in replies:
                    taken.append(item.number)
        except CallError as error:
            lost += 1
            codes.add(error.code)
        else:
            complete += 1
            assert len(taken) == 300
        assert taken == list(range(len(taken)))
    assert complete
    assert lost
    assert codes <= {"peer_lost", "unreachable"}


# Several peers


async def test_an_idempotent_call_goes_on_to_the_next_peer(autojump_clock: MockClock) -> None:
    once = Unary("x.once", Nothing, Text, access=frozenset({"gateway"}))
    again = Unary("x.again", Nothing, Text, access=frozenset({"gateway"}), idempotent=True)
    methods = (once.name, again.name)
    async with Bus(ALICE, Metrics()).open() as bus, trio.open_nursery() as nursery:
        raws: list[RawPeer] = []

        async def join(name: str, *, task_status: trio.TaskStatus[None]) -> None:
            near, far = MemoryNetwork().connect(ALICE, PeerId(name))
            raws.append(RawPeer(far))
            await raws[-1].send(wire.hello(msgspec.structs.replace(HELLO, methods=methods)))
            async with open_session(bus, near, peer=PeerId(name), granted=MEMBER, dialer=True) as session:
                task_status.started()
                await session.closed.wait()

        async def die_in_the_call(raw: RawPeer) -> None:
            await raw.next(Type.OPEN)
            await raw.stream.aclose()

        async def answer(raw: RawPeer) -> None:
            opened = await raw.next(Type.OPEN)
            await raw.send(wire.frame(Type.END, opened.call, msgspec.msgpack.encode(Text("from the second"))))

        await nursery.start(join, "one")
        await nursery.start(join, "two")
        nursery.start_soon(die_in_the_call, raws[0])
        nursery.start_soon(answer, raws[1])
        assert await bus.stamped("gateway").call(again, Nothing()) == Text("from the second")
        await nursery.start(join, "three")
        nursery.start_soon(die_in_the_call, raws[1])
        with refused("peer_lost"):
            await bus.stamped("gateway").call(once, Nothing())
        nursery.cancel_scope.cancel()


async def test_leaving_a_stream_of_a_peer_that_hangs_is_bounded(autojump_clock: MockClock) -> None:
    stuck = Streaming("x.stuck", Nothing, Item, access=frozenset({"gateway"}))
    async with against_raw_peer() as (bus, session, raw):
        start = trio.current_time()
        async with bus.stamped("gateway").stream(stuck, Nothing(), to=BOB):
            await raw.next(Type.OPEN)
        assert trio.current_time() - start == pytest.approx(5.0)
        assert session.calls_in_flight == (0, 0)


async def test_a_handler_that_emits_into_a_session_that_has_ended_is_no_bug(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []

    async def count(_: Caller, __: Amount, emit: Emit[Item]) -> None:
        with trio.CancelScope(shield=True):  # or it would not get so far, mostly
            await trio.sleep(1)
            try:
                await emit(Item(1))
            except CallError as error:
                ended.append(error.code)
                raise

    async with against_raw_peer(lambda bus: bus.serve_stream(COUNT, count)) as (_, session, raw):
        await raw.send(an_open(2, COUNT.name, Amount(1)))
        await trio.sleep(0.5)
        await raw.stream.aclose()
        await session.closed.wait()
    assert ended == ["peer_lost"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
