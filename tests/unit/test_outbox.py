"""What waits to be written: nobody overtakes whoever waits for room, and the writer is woken for every frame."""

from contextlib import suppress

import pytest
import trio
import trio.testing

from covey.bus.outbox import WRITE_BYTES, Outbox, OutboxClosed


async def test_nobody_overtakes_whoever_waits_for_room() -> None:
    outbox = Outbox(soft_bytes=10, hard_bytes=1000)
    assert outbox.put_at_once(b"a" * 10)
    assert not outbox.put_at_once(b"b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.put_when_room, b"c")
        await trio.testing.wait_all_tasks_blocked()
        assert await outbox.take() == b"a" * 10
        assert not outbox.put_at_once(b"d")  # the other has been let in, and is not here yet
        nursery.start_soon(outbox.put_when_room, b"d")
    assert await outbox.take() == b"cd"
    assert outbox.put_at_once(b"e")


async def test_who_gives_up_waiting_holds_up_nobody() -> None:
    outbox = Outbox(soft_bytes=10, hard_bytes=1000)
    outbox.put(b"a" * 10)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as impatient:
            nursery.start_soon(outbox.put_when_room, b"b")
            impatient.cancel()
            await outbox.put_when_room(b"never")
        await trio.testing.wait_all_tasks_blocked()
        assert await outbox.take() == b"a" * 10
    assert await outbox.take() == b"b"
    assert outbox.put_at_once(b"c")


async def test_the_writer_is_woken_and_takes_as_much_as_one_write_has() -> None:
    outbox = Outbox(soft_bytes=10 * WRITE_BYTES, hard_bytes=20 * WRITE_BYTES)
    taken: list[bytes] = []

    async def write() -> None:
        with suppress(OutboxClosed):
            while True:
                taken.append(await outbox.take())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        for number in range(3):
            await trio.testing.wait_all_tasks_blocked()
            outbox.put(b"%d" % number)
            outbox.put(b"!")
        await trio.testing.wait_all_tasks_blocked()
        assert taken == [b"0!", b"1!", b"2!"]
        for _ in range(5):
            outbox.put(b"x" * (WRITE_BYTES // 2))
        await trio.testing.wait_all_tasks_blocked()
        assert [len(each) for each in taken[3:]] == [WRITE_BYTES, WRITE_BYTES, WRITE_BYTES // 2]
        outbox.seal(b"end")
    assert taken[-1] == b"end"
    with pytest.raises(OutboxClosed):
        outbox.put_at_once(b"x")
