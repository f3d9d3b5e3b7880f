"""Back-off: exponential, bounded in time and memory, never for good."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.errors import CallError
from covey.roles.auth.backoff import Backoff, LogInGuard, Pace

PACE = Pace(free_failures=3, first_seconds=1, seconds_max=60, forget_seconds=900, entries_max=100)


def test_the_first_failures_are_free_and_then_the_wait_doubles() -> None:
    backoff, waits = Backoff(PACE), []
    for _ in range(12):
        backoff.charge("alice", 0)
        waits.append(backoff.wait_seconds("alice", 0))
    assert waits == [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_wait_passes() -> None:
    backoff = Backoff(PACE)
    for _ in range(4):
        backoff.charge("alice", 0)
    assert backoff.wait_seconds("alice", 0.25) == 0.75
    assert backoff.wait_seconds("alice", 1) == 0


def test_old_failures_are_forgotten() -> None:
    backoff = Backoff(PACE)
    for _ in range(10):
        backoff.charge("alice", 0)
    backoff.charge("alice", 901)
    assert backoff.wait_seconds("alice", 901) == 0


def test_keys_do_not_share() -> None:
    backoff = Backoff(PACE)
    for _ in range(10):
        backoff.charge("alice", 0)
    assert backoff.wait_seconds("bob", 0) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 100), st.sampled_from(["charge", "forgive", "clear"]))))
def test_no_wait_is_ever_longer_than_the_longest(steps: list[tuple[str, float, str]]) -> None:
    backoff, now = Backoff(PACE), 0.0
    for key, passed, what in steps:
        now += passed
        if what == "charge":
            backoff.charge(key, now)
        elif what == "forgive":
            backoff.forgive(key)
        else:
            backoff.clear(key)
        assert 0 <= backoff.wait_seconds(key, now) <= PACE.seconds_max


def test_a_billion_failures_overflow_nothing() -> None:
    backoff = Backoff(Pace(free_failures=0, forget_seconds=1e9))
    for _ in range(2000):
        backoff.charge("alice", 0)
    assert backoff.wait_seconds("alice", 0) == 60


def test_memory_is_bounded() -> None:
    backoff = Backoff(PACE)
    for number in range(1000):
        backoff.charge(f"name-{number}", 0)
    assert len(backoff) == 100


def fail(guard: LogInGuard, name: str, address: str, now: float, times: int = 1) -> None:
    for _ in range(times):
        guard.admit(name, address, now)


def refused(guard: LogInGuard, name: str, address: str, now: float) -> float:
    with pytest.raises(CallError, match="try again in") as caught:
        guard.admit(name, address, now)
    assert caught.value.code == "rate_limited"
    assert caught.value.retry_after_seconds is not None
    return caught.value.retry_after_seconds


def test_an_account_is_guarded_whatever_the_address() -> None:
    guard = LogInGuard(PACE)
    for number in range(4):
        guard.admit("alice", f"10.0.0.{number}", 0)
    assert refused(guard, "alice", "10.0.0.99", 0) == 1
    guard.admit("bob", "10.0.0.99", 0)


def test_an_address_is_guarded_whatever_the_account() -> None:
    guard = LogInGuard(PACE)
    for number in range(4):
        guard.admit(f"name-{number}", "10.0.0.1", 0)
    refused(guard, "alice", "10.0.0.1", 0)
    guard.admit("alice", "10.0.0.2", 0)


def test_attempts_at_once_are_not_all_free() -> None:
    """Charged before the outcome is known: only so many get through before the first has even failed."""
    guard, admitted = LogInGuard(PACE), 0
    for number in range(1000):
        try:
            guard.admit("alice", f"10.0.{number // 250}.{number % 250}", 0)
            admitted += 1
        except CallError:
            pass
    assert admitted == PACE.free_failures + 1


def test_success_clears_the_account_but_not_the_address() -> None:
    guard = LogInGuard(PACE)
    fail(guard, "alice", "10.0.0.1", 0, times=3)
    guard.admit("mallory", "10.0.0.1", 0)
    guard.succeeded("mallory", "10.0.0.1")  # their own account, between guesses at alice's
    guard.admit("bob", "10.0.0.1", 0)
    refused(guard, "carol", "10.0.0.1", 0)


def test_whoever_hammers_an_account_does_not_lock_its_owner_out() -> None:
    guard = LogInGuard(PACE)
    guard.admit("alice", "192.168.0.7", 0)
    guard.succeeded("alice", "192.168.0.7")
    for now in range(600):
        with contextlib.suppress(CallError):
            guard.admit("alice", f"10.1.{now // 250}.{now % 250}", now)
    guard.admit("alice", "192.168.0.7", 600)


def test_a_known_address_is_held_to_its_own_failures() -> None:
    guard = LogInGuard(PACE)
    guard.admit("alice", "192.168.0.7", 0)
    guard.succeeded("alice", "192.168.0.7")
    fail(guard, "alice", "192.168.0.7", 1, times=4)
    refused(guard, "alice", "192.168.0.7", 1)


def test_a_withdrawn_attempt_was_none() -> None:
    guard = LogInGuard(PACE)
    for _ in range(100):
        guard.admit("alice", "10.0.0.1", 0)
        guard.withdrawn("alice", "10.0.0.1")
    guard.admit("alice", "10.0.0.1", 0)


def test_an_unknown_address_is_not_held_back() -> None:
    guard = LogInGuard(PACE)
    for number in range(50):
        guard.admit(f"name-{number}", "", 0)


def test_the_addresses_that_are_known_are_bounded_the_latest_kept() -> None:
    guard = LogInGuard(msgspec.structs.replace(PACE, entries_max=2))
    for number in range(3):
        guard.succeeded("alice", f"10.0.0.{number}")
    guard.succeeded("bob", "")  # nobody knows from where
    fail(guard, "alice", "192.168.0.7", 0, times=4)
    guard.admit("alice", "10.0.0.2", 0)
    refused(guard, "alice", "10.0.0.0", 0)
