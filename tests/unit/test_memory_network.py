"""The network in memory: bytes in order, faults as asked for, and the same again for the same seed."""

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, check_two_way_stream, wait_all_tasks_blocked

from covey.errors import CallError
from covey.testing import ALICE, BOB
from covey.transport.base import PeerId
from covey.transport.memory import IN_FLIGHT_BYTES_MAX, LinkQuality, MemoryNetwork, MemoryStream

CAROL = PeerId("carol")
FAR_AWAY = LinkQuality(delay_seconds=0.1, jitter_seconds=0.05)


async def test_it_is_a_stream_as_trio_knows_it(autojump_clock: MockClock) -> None:
    async def pair() -> tuple[MemoryStream, MemoryStream]:
        return MemoryNetwork().connect(ALICE, BOB)

    await check_two_way_stream(pair, None)


async def test_dialling(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    accepted: list[tuple[PeerId, bytes]] = []

    async def accept(peer: PeerId, stream: trio.abc.Stream) -> None:
        accepted.append((peer, await stream.receive_some()))
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        await nursery.start(network.join(BOB).serve, accept)
        stream = await network.join(ALICE).dial(BOB)
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b""
        assert accepted == [(ALICE, b"hello")]
        with pytest.raises(CallError) as caught:
            await network.join(ALICE).dial(CAROL)
        assert caught.value.code == "unreachable"
        network.cut(ALICE, BOB)
        start = trio.current_time()
        with pytest.raises(CallError, match="does not answer"):
            await network.join(ALICE).dial(BOB)
        assert trio.current_time() - start == 5
        nursery.cancel_scope.cancel()


@settings(max_examples=25)
@given(st.integers(0, 99), st.lists(st.integers(1, 90_000), min_size=1, max_size=8))
def test_bytes_stay_in_order_whatever_the_jitter(seed: int, sizes: list[int]) -> None:
    async def story() -> bytes:
        near, far = MemoryNetwork(seed, LinkQuality(0.1, 1.0)).connect(ALICE, BOB)
        got = bytearray()

        async def send() -> None:
            for number, size in enumerate(sizes):
                await near.send_all(bytes([number]) * size)
            await near.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while data := await far.receive_some(1_000):
                got += data
        return bytes(got)

    expected = b"".join(bytes([number]) * size for number, size in enumerate(sizes))
    assert trio.run(story, clock=MockClock(autojump_threshold=0)) == expected


async def test_delay(autojump_clock: MockClock) -> None:
    near, far = MemoryNetwork(0, FAR_AWAY).connect(ALICE, BOB)
    start = trio.current_time()
    await near.send_all(b"x")
    await far.receive_some()
    assert 0.1 <= trio.current_time() - start <= 0.15


async def test_what_is_in_flight_is_bounded(autojump_clock: MockClock) -> None:
    near, far = MemoryNetwork().connect(ALICE, BOB)
    with trio.move_on_after(1) as patience:
        await near.send_all(bytes(10 * IN_FLIGHT_BYTES_MAX))
    assert patience.cancelled_caught
    arrived = 0
    with trio.move_on_after(1):
        while True:
            arrived += len(await far.receive_some())
    assert arrived <= IN_FLIGHT_BYTES_MAX + 2**15


@pytest.mark.parametrize("fault", ["cut", "freeze"])
async def test_a_black_hole_keeps_what_is_sent(autojump_clock: MockClock, fault: str) -> None:
    network = MemoryNetwork()
    near, far = network.connect(ALICE, BOB)
    if fault == "cut":
        network.cut(ALICE, BOB)
    else:
        network.freeze(BOB)
    await near.send_all(b"patience")
    await near.aclose()
    with trio.move_on_after(100) as patience:
        await far.receive_some()
    assert patience.cancelled_caught
    if fault == "cut":
        network.heal(BOB, ALICE)
    else:
        network.thaw(BOB)
    assert await far.receive_some() == b"patience"
    assert await far.receive_some() == b""


async def test_what_loses_power_is_waited_for_in_vain(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    near, far = network.connect(ALICE, BOB)
    await far.send_all(b"last words")
    network.vanish(BOB)
    await far.aclose()
    await near.send_all(b"still there?")
    with trio.move_on_after(1_000) as patience:
        await near.receive_some()
    assert patience.cancelled_caught
    assert network.connections(ALICE, BOB) == 1
    await near.aclose()
    assert network.connections(ALICE, BOB) == 0


async def test_an_asymmetric_cut(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    near, far = network.connect(ALICE, BOB)
    network.cut(ALICE, BOB, one_way=True)
    await far.send_all(b"still heard")
    assert await near.receive_some() == b"still heard"
    await near.send_all(b"not heard")
    with trio.move_on_after(100) as patience:
        await far.receive_some()
    assert patience.cancelled_caught


@pytest.mark.parametrize("fault", ["drop", "kill"])
async def test_broken_connections_raise_on_both_sides(autojump_clock: MockClock, fault: str) -> None:
    network = MemoryNetwork()
    near, far = network.connect(ALICE, BOB)
    other, _ = network.connect(ALICE, CAROL)

    async def expect_break(stream: MemoryStream) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_break, near)
        nursery.start_soon(expect_break, far)
        await wait_all_tasks_blocked()
        if fault == "drop":
            network.drop(BOB, ALICE)
        else:
            network.kill(BOB)
    await other.send_all(b"unharmed")


async def test_one_seed_gives_one_run(autojump_clock: MockClock) -> None:
    async def sent_before_loss(seed: int) -> int:
        near, _ = MemoryNetwork(seed, LinkQuality(loss=0.01)).connect(ALICE, BOB)
        for number in range(10_000):
            try:
                await near.send_all(b"x")
            except trio.BrokenResourceError:
                return number
        return 10_000

    runs = [await sent_before_loss(seed) for seed in range(10)]
    assert runs == [await sent_before_loss(seed) for seed in range(10)]
    assert len(set(runs)) > 5
    assert 10 < sum(runs) / len(runs) < 400


async def test_quality_of_one_link_alone(autojump_clock: MockClock) -> None:
    network = MemoryNetwork()
    network.set_quality(ALICE, BOB, LinkQuality(delay_seconds=3))
    slow, slow_end = network.connect(ALICE, BOB)
    fast, fast_end = network.connect(ALICE, CAROL)
    start = trio.current_time()
    await fast.send_all(b"x")
    await fast_end.receive_some()
    assert trio.current_time() == start
    await slow.send_all(b"x")
    await slow_end.receive_some()
    assert trio.current_time() == start + 3
