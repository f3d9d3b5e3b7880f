"""Both ends of a stream's flow control, against each other and against cheats."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.bus.credit import STREAM_ITEMS_MAX, UNREAD_BYTES_MAX, Allowance, Window
from covey.bus.wire import FRAME_BYTES_MAX, ProtocolError

SIZES = st.one_of(st.integers(0, 200), st.integers(0, FRAME_BYTES_MAX))


@given(st.lists(SIZES, max_size=300), st.data())
def test_honest_ends_never_complain_and_never_stall(sizes: list[int], data: st.DataObject) -> None:
    allowance, window = Allowance(), Window()
    to_send, unread = deque(sizes), deque[int]()
    taken = 0
    while taken < len(sizes):
        if to_send and (not unread or data.draw(st.booleans())) and allowance.spend(to_send[0]):
            size = to_send.popleft()
            window.arrived(size)
            unread.append(size)
            assert len(unread) <= STREAM_ITEMS_MAX
            assert sum(unread) <= UNREAD_BYTES_MAX
        else:
            assert unread, "both ends wait for each other"
            count = data.draw(st.integers(1, len(unread)))
            for _ in range(count):
                unread.popleft()
            taken += count
            if grant := window.took(count):
                allowance.acknowledged(grant)


def test_credit_is_given_back_at_half() -> None:
    window = Window()
    for _ in range(STREAM_ITEMS_MAX):
        window.arrived(1)
    assert [window.took(1) for _ in range(STREAM_ITEMS_MAX // 2)] == [0] * 31 + [32]


def test_a_sender_without_credit_is_found_out() -> None:
    window = Window()
    for _ in range(STREAM_ITEMS_MAX):
        window.arrived(1)
    with pytest.raises(ProtocolError, match="credit"):
        window.arrived(1)


def test_a_sender_of_too_many_bytes_is_found_out() -> None:
    window = Window()
    for _ in range(4):
        window.arrived(FRAME_BYTES_MAX)
    with pytest.raises(ProtocolError, match="credit"):
        window.arrived(1)


def test_a_reader_cannot_take_what_it_never_got() -> None:
    allowance = Allowance()
    assert allowance.spend(10)
    with pytest.raises(ProtocolError, match="took 2"):
        allowance.acknowledged(2)
