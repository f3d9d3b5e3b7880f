"""Requests per minute: never more than the burst and the rate allow, in any window; nobody waits longer than told."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.roles.gateway import limits
from covey.roles.gateway.limits import Decision, RequestLimiter, duration, headers

waits = st.one_of(st.just(0.0), st.floats(0, 0.5), st.floats(0, 200))


@given(st.integers(1, 100), st.lists(waits, max_size=250))
def test_no_window_admits_more_than_burst_and_rate(per_minute: int, pauses: list[float]) -> None:
    limiter, now, admitted = RequestLimiter(), 1_000.0, []
    for pause in pauses:
        now += pause
        decision = limiter.take("a", per_minute, now)
        if decision.allowed:
            admitted.append(now)
        assert 0 <= decision.remaining < per_minute
        assert 0 <= decision.reset_seconds <= 60.001
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            window_seconds = admitted[last] - admitted[first]
            assert last - first + 1 <= per_minute + window_seconds * per_minute / 60 + 1e-6


@given(st.integers(1, 600), st.integers(0, 700), st.floats(0, 30))
def test_remaining_and_retry_after_are_exact(per_minute: int, count: int, pause: float) -> None:
    limiter, decision = RequestLimiter(), None
    for _ in range(count):
        decision = limiter.take("a", per_minute, 0.0)
    if decision is not None and not decision.allowed:
        assert limiter.take("a", per_minute, decision.retry_after_seconds + 1e-6).allowed
        assert not limiter.take("b", per_minute, 0.0).retry_after_seconds
    fresh = RequestLimiter()
    told = fresh.take("a", per_minute, pause).remaining
    assert sum(fresh.take("a", per_minute, pause).allowed for _ in range(per_minute + 5)) == told == per_minute - 1


@given(st.integers(1, 600), st.integers(1, 600))
def test_a_refusal_costs_nothing(per_minute: int, refusals: int) -> None:
    limiter = RequestLimiter()
    while limiter.take("a", per_minute, 0.0).allowed:
        pass
    waits_seconds = [limiter.take("a", per_minute, 0.0).retry_after_seconds for _ in range(refusals)]
    assert len(set(waits_seconds)) == 1
    assert waits_seconds[0] == pytest.approx(60 / per_minute)


def test_after_a_minute_at_rest_the_limit_is_whole() -> None:
    limiter = RequestLimiter()
    for _ in range(5):
        limiter.take("a", 5, 0.0)
    assert limiter.take("a", 5, 60.0).remaining == 4


@pytest.mark.parametrize("per_minute", [0, -1])
def test_a_limit_of_nothing_allows_nothing(per_minute: int) -> None:
    decision = RequestLimiter().take("a", per_minute, 0.0)
    assert (decision.allowed, decision.remaining) == (False, 0)
    assert decision.retry_after_seconds > 0


def test_a_lowered_limit_holds_at_once_and_a_raised_one_too() -> None:
    limiter = RequestLimiter()
    for _ in range(30):
        assert limiter.take("a", 60, 0.0).allowed
    assert not limiter.take("a", 1, 0.0).allowed or limiter.take("a", 1, 0.0).remaining == 0
    assert limiter.take("a", 600, 0.0).allowed


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KEYS_MAX", 10)
    limiter = RequestLimiter()
    for number in range(50):
        limiter.take(str(number), 1, 0.0)
    assert len(limiter._arrivals) <= 10
    assert not limiter.take("49", 1, 0.0).allowed  # the latest are remembered
    limiter.take("new", 1, 120.0)
    assert len(limiter._arrivals) <= 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (-1, "0ms"),
        (0.012, "12ms"),
        (0.0001, "1ms"),
        (0.9991, "1s"),
        (0.999, "999ms"),
        (1, "1s"),
        (1.2, "2s"),
        (59.5, "1m0s"),
        (63, "1m3s"),
        (3600, "60m0s"),
    ],
)
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 100_000))
def test_a_duration_is_never_too_short(seconds: float) -> None:
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?|(\d+)ms", duration(seconds))
    assert match
    minutes, whole, milliseconds = (int(part or 0) for part in match.groups())
    assert minutes * 60 + whole + milliseconds / 1000 >= seconds - 1e-6


def test_headers() -> None:
    assert headers(None) == []
    decision = Decision(allowed=True, limit=60, remaining=59, reset_seconds=1.0, retry_after_seconds=0)
    assert dict(headers(decision)) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
        b"x-ratelimit-reset-requests": b"1s",
    }
