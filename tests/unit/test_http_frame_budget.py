"""What HTTP/2 frames cost, in whatever pieces they come."""

import struct

from hypothesis import given
from hypothesis import strategies as st

from covey.http.frame_budget import COSTS_MAX, COSTS_PER_SECOND, PREFACE_BYTES, SMALL_BYTES, FrameBudget

PREFACE = bytes(PREFACE_BYTES)


def frame(kind: int, flags: int = 0, length: int = 0) -> bytes:
    return struct.pack("!IBI", length << 8 | kind, flags, 1) + bytes(length)


DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9


def lasts(one: bytes, *, earned: float = 0.0) -> int:
    """How many of these a new connection's budget takes."""
    budget = FrameBudget(0.0)
    budget.receive(PREFACE, 0.0)
    for count in range(3_000):
        if not budget.receive(one, 0.0):
            return count
        budget.earn(earned)
    return 3_000


def test_bodies_cost_nothing() -> None:
    assert lasts(frame(DATA, length=SMALL_BYTES)) == 3_000
    assert lasts(frame(DATA, flags=1)) == 3_000


def test_frames_that_ask_for_nothing_are_soon_too_many() -> None:
    for kind in (DATA, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION, 0xAB):
        assert 50 < lasts(frame(kind, length=8)) <= 2_000


def test_requests_that_are_answered_go_on_and_those_that_are_reset_do_not() -> None:
    assert lasts(frame(HEADERS, flags=5, length=50), earned=5.0) == 3_000
    assert lasts(frame(HEADERS, flags=5, length=50) + frame(RST_STREAM, length=4)) < 250


def test_the_budget_fills_with_time_and_not_beyond() -> None:
    budget = FrameBudget(0.0)
    budget.receive(PREFACE, 0.0)
    pings = frame(PING, length=8) * 25
    for second in range(1, 1_000):
        assert budget.receive(pings, float(second))  # a hundred a second is what comes in
    assert COSTS_PER_SECOND == 100
    assert not budget.receive(frame(PING, length=8) * int(COSTS_MAX), 1e9)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 40)), max_size=30), st.data())
def test_pieces_make_no_difference(frames: list[tuple[int, int]], data: st.DataObject) -> None:
    whole = PREFACE + b"".join(frame(kind, length=length) for kind, length in frames)
    at_once, in_pieces = FrameBudget(0.0), FrameBudget(0.0)
    at_once.receive(whole, 0.0)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=10)))
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        in_pieces.receive(whole[start:end], 0.0)
    rest = frame(PING, length=8)
    lasted = [next(count for count in range(2_000) if not one.receive(rest, 0.0)) for one in (at_once, in_pieces)]
    assert lasted[0] == lasted[1]
