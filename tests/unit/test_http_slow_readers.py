"""Clients that read slowly, and those that do not read: the first get all of a long answer, the others are cut."""

from typing import Any, cast

import pytest
import trio
from h2.errors import ErrorCodes
from trio.testing import MockClock

from covey.http.asgi import ClientGone, Headers
from covey.http.http2_stream import Stream
from covey.http.writing import WRITE_BYTES, Writer

ANSWER = b"x" * 8_000_000
SECONDS_MAX = 20.0


class SlowWire:
    """Takes so many bytes a second, and nothing at once."""

    def __init__(self, bytes_per_second: float) -> None:
        self.bytes_per_second = bytes_per_second
        self.taken = 0
        self.aborted_at: float | None = None

    def write_at_once(self, data: bytes) -> bytes:
        return data

    async def send_all(self, data: bytes) -> None:
        await trio.sleep(len(data) / self.bytes_per_second)
        self.taken += len(data)

    def abort(self) -> None:
        self.aborted_at = trio.current_time()


async def write(wire: SlowWire, *, cut_after_seconds: float = 1e9) -> float:
    """Write a long answer; how long it took."""
    began = trio.current_time()

    async def failed() -> None:
        assert wire.aborted_at is not None

    async def cut() -> None:
        await trio.sleep(cut_after_seconds)
        writer.cut()

    writer = Writer(cast(Any, wire), SECONDS_MAX, failed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cut)
        await writer.write(ANSWER)
        nursery.cancel_scope.cancel()
    return trio.current_time() - began


async def test_a_slow_reader_gets_all_of_a_long_answer(autojump_clock: MockClock) -> None:
    wire = SlowWire(100_000)
    assert await write(wire) == pytest.approx(80)
    assert (wire.taken, wire.aborted_at) == (len(ANSWER), None)


async def test_a_reader_that_hardly_reads_is_cut_in_time(autojump_clock: MockClock) -> None:
    wire = SlowWire(0.9 * WRITE_BYTES / SECONDS_MAX)
    assert await write(wire) == pytest.approx(SECONDS_MAX)
    assert wire.aborted_at is not None


async def test_shutdown_cuts_a_slow_reader_between_two_pieces_too(autojump_clock: MockClock) -> None:
    wire = SlowWire(100_000)
    assert await write(wire, cut_after_seconds=30) == pytest.approx(30)
    assert wire.aborted_at is not None


class SlowWindows:
    """The connection of one stream, whose client gives it a frame's room every now and then."""

    write_seconds_max = SECONDS_MAX

    def __init__(self, seconds_each: float) -> None:
        self.seconds_each = seconds_each
        self.taken = 0
        self.codes: list[ErrorCodes] = []

    async def window(self, number: int) -> int:
        await trio.sleep(self.seconds_each)
        return 16_384

    def send_head(self, number: int, status: int, headers: Headers) -> None:
        pass

    def send_data(self, number: int, data: bytes, *, end: bool) -> None:
        self.taken += len(data)

    async def flush(self) -> None:
        pass

    async def answered(self, stream: Stream) -> None:
        pass

    async def reset(self, stream: Stream, code: ErrorCodes) -> None:
        self.codes.append(code)


def stream_of(connection: Any) -> Stream:
    return Stream(1, {"method": "GET", "headers": []}, connection)


async def test_a_slow_reader_gets_all_of_a_long_answer_in_http_2(autojump_clock: MockClock) -> None:
    connection = SlowWindows(0.1)
    began = trio.current_time()
    await stream_of(connection).send({"type": "http.response.body", "body": ANSWER})
    assert trio.current_time() - began > 2 * SECONDS_MAX
    assert (connection.taken, connection.codes) == (len(ANSWER), [])


async def test_a_reader_that_hardly_reads_is_cut_in_time_in_http_2(autojump_clock: MockClock) -> None:
    connection = SlowWindows(1.1 * SECONDS_MAX * 16_384 / WRITE_BYTES)
    began = trio.current_time()
    with pytest.raises(ClientGone):
        await stream_of(connection).send({"type": "http.response.body", "body": ANSWER})
    assert trio.current_time() - began == pytest.approx(SECONDS_MAX)
    assert connection.codes == [ErrorCodes.CANCEL]
