"""The fair queue, with time as an argument."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.errors import CallError
from covey.roles.inference.queue import FairQueue, Ticket


def tenants(tickets: list[Ticket]) -> list[str]:
    return [ticket.tenant for ticket in tickets]


def test_free_slots_are_taken_at_once() -> None:
    queue = FairQueue(10, 60)
    queue.arrive("a", 2, 0.0)
    queue.arrive("a", 2, 0.0)
    assert tenants(queue.admit(2, 0.0)) == ["a", "a"]
    assert (queue.running, queue.waiting) == (2, 0)


def test_tenants_take_turns_whatever_they_pile_up() -> None:
    queue = FairQueue(100, 60)
    for tenant in "aaaabb":
        queue.arrive(tenant, 1, 0.0)
    queue.arrive("c", 1, 0.0)
    order: list[str] = []
    while started := queue.admit(1, 0.0):
        order += tenants(started)
        queue.leave(started[0], 1.0, answered=True)
    assert "".join(order) == "abcabaa"


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    queue = FairQueue(2, 1_000)
    queue.service_seconds = 10.0
    for _ in range(3):
        queue.arrive("a", 1, 0.0)
        queue.admit(1, 0.0)
    with pytest.raises(CallError) as caught:
        queue.arrive("a", 1, 0.0)
    assert (caught.value.code, caught.value.reason) == ("no_capacity", "queue_full")
    assert caught.value.retry_after_seconds == 30.0


def test_who_would_wait_too_long_is_refused_at_once() -> None:
    queue = FairQueue(100, 60)
    queue.service_seconds = 25.0
    for _ in range(3):
        queue.arrive("a", 1, 0.0)
        queue.admit(1, 0.0)
    with pytest.raises(CallError) as caught:
        queue.arrive("a", 1, 0.0)
    assert caught.value.reason == "queue_slow"
    assert caught.value.retry_after_seconds == 15.0
    # Another tenant's turn comes sooner than the third of the first one.
    queue.arrive("b", 1, 0.0)


def test_the_refusal_never_says_to_come_back_at_once_or_tomorrow() -> None:
    queue = FairQueue(0, 1_000_000)
    queue.arrive("a", 1, 0.0)
    queue.admit(1, 0.0)
    for service, retry in ((0.0, 1.0), (1e5, 120.0)):
        queue.service_seconds = service
        with pytest.raises(CallError) as caught:
            queue.arrive("a", 1, 0.0)
        assert caught.value.retry_after_seconds == retry


def test_only_whole_answers_teach_how_long_one_takes() -> None:
    queue = FairQueue(10, 60)
    first = queue.arrive("a", 1, 0.0)
    queue.admit(1, 1.0)
    queue.leave(first, 11.0, answered=True)
    assert queue.service_seconds == 10.0
    second = queue.arrive("a", 1, 11.0)
    queue.admit(1, 11.0)
    queue.leave(second, 11.1, answered=False)
    assert queue.service_seconds == 10.0


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["arrive", "end", "give up"])), max_size=60),
    st.integers(1, 4),
)
def test_counts_agree_and_slots_are_never_exceeded(steps: list[tuple[str, str]], slots: int) -> None:
    queue = FairQueue(8, 1e9)
    tickets: list[Ticket] = []
    for tenant, step in steps:
        if step == "arrive":
            try:
                tickets.append(queue.arrive(tenant, slots, 0.0))
            except CallError:
                assert queue.waiting == 8
        elif chosen := [ticket for ticket in tickets if ticket.running == (step == "end")]:
            tickets.remove(chosen[0])
            queue.leave(chosen[0], 1.0, answered=step == "end")
        queue.admit(slots, 0.0)
        running = sum(ticket.running for ticket in tickets)
        assert queue.running == running <= slots
        assert queue.waiting == len(tickets) - running
        assert not queue.waiting or running == slots
    for ticket in tickets:
        queue.leave(ticket, 2.0, answered=True)
    assert (queue.running, queue.waiting, queue.admit(slots, 0.0)) == (0, 0, [])
