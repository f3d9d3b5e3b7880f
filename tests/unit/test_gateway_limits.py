"""What a gateway knows of a limit: buckets, leases, its own share, and the headers."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.contracts.limits import LEASE_SECONDS, LimitGrant
from covey.roles.gateway.limits import Bucket, Lease, Standing, duration, limit_headers

waits = st.one_of(st.just(0.0), st.floats(0, 0.5), st.floats(0, 200))


@given(st.integers(1, 100), st.lists(st.tuples(waits, st.integers(1, 20)), max_size=150))
def test_no_window_of_a_bucket_has_more_than_burst_and_rate(limit: int, wishes: list[tuple[float, int]]) -> None:
    """Against every window there is."""
    bucket, now, taken = Bucket(), 1_000.0, []
    for pause, amount in wishes:
        now += pause
        if bucket.left(limit, now) >= amount - 1e-9:
            bucket.take(amount, limit, now)
            taken.append((now, amount))
        assert -1e-6 <= bucket.left(limit, now) <= limit
    for first in range(len(taken)):
        for last in range(first, len(taken)):
            seconds = taken[last][0] - taken[first][0]
            assert sum(amount for _, amount in taken[first : last + 1]) <= limit + seconds * limit / 60 + 1e-6


def test_a_bucket_that_was_emptied_fills_in_a_minute() -> None:
    bucket = Bucket()
    bucket.empty(100.0)
    assert [bucket.left(60, at) for at in (100, 101, 130, 160, 500)] == [0, 1, 30, 60, 60]
    bucket.take(-5, 60, 100.0)
    assert bucket.left(60, 100.0) == 5


def lent(kind: str = "requests", limit: int = 60, granted: int = 10, left: int = 50, at: float = 0.0) -> Lease:
    lease = Lease(kind, limit)  # type: ignore[arg-type]
    lease.hear(LimitGrant(granted=granted, left=left, per_second=limit / 60), granted, at, at)
    return lease


def test_what_was_lent_is_spent_within_its_time() -> None:
    lease = lent(granted=2)
    assert not Lease("requests", 60).fits(1, 0.0, alone_share=None)
    assert lease.fits(2, LEASE_SECONDS - 0.1, alone_share=None)
    assert not lease.fits(3, 0.0, alone_share=None)
    assert not lease.fits(1, LEASE_SECONDS, alone_share=None)
    lease.take(2, 1.0, alone_share=None)
    assert not lease.fits(1, 1.0, alone_share=None)
    report = lease.report(1.0, needed=1)
    assert (report.spent, report.held, report.needed, report.wanted) == (2, 0, 1, 1)
    assert not lease.unreported


def test_what_is_left_everywhere_is_told() -> None:
    lease = lent(granted=10, left=50)
    assert lease.remaining(0.0) == 60
    lease.take(1, 0.0, alone_share=None)
    assert lease.standing(0.0, None) == Standing("requests", 60, 59, 1.0)
    assert lease.remaining(5.0) == 55  # the lease is over
    assert Lease("requests", 60).remaining(0.0) == 60  # nobody has said yet
    assert Lease("requests", 0).standing(0.0, None) == Standing("requests", 0, 0, 60.0)


def test_an_owner_that_lends_too_much_is_not_believed() -> None:
    """Mutation: without the guard."""
    lease, taken, now = lent(granted=10**9, left=10**9, at=0.0), 0, 0.0
    assert lease.idle == 60
    assert lease.remaining(0.0) == 60
    for _ in range(600):
        lease.hear(LimitGrant(granted=10**9, left=-5, per_second=1e9), 1, now, now)
        while lease.fits(1, now, alone_share=None):
            lease.take(1, now, alone_share=None)
            taken += 1
        assert lease.is_blocked(1, now)
        assert 0 < lease.retry_seconds(1, now, None) <= 1.01
        now += 0.1
    assert taken <= 60 + 60


def test_what_the_owner_did_not_have_is_not_asked_for_again_at_once() -> None:
    lease = lent()
    assert (lease.lacks(17, 0.0), lease.lacks(7, 0.0), lease.lacks(7, 60.0)) == (7, 0, 7)
    lease.hear(LimitGrant(retry_after_seconds=5.0), 7, 0.0, 0.0)  # beside the ten that it has
    assert lease.is_blocked(17, 0.1)
    assert not lease.is_blocked(16, 0.1)
    assert not lease.is_blocked(17, 0.3)
    assert lease.retry_seconds(17, 1.0, None) == 4.0
    tokens = lent("tokens", 600, 100)
    tokens.take(50, 0.0, alone_share=None)
    tokens.hear(LimitGrant(retry_after_seconds=5.0), 450, 0.0, 0.0)
    assert tokens.is_blocked(500, 0.1)
    tokens.settle(50, 10, 0.1)  # which gives something back
    assert not tokens.is_blocked(500, 0.1)


def test_tokens_are_settled() -> None:
    lease = lent("tokens", 600, 100)
    lease.take(100, 0.0, alone_share=None)
    lease.reserve(100)
    lease.settle(100, 30, 1.0)
    lease.take(0, 1.0, alone_share=None)
    lease.settle(0, 5, 1.0)
    report = lease.report(1.0)
    assert (report.spent, report.reserved, report.settled, report.returned, report.overdrawn) == (100, 100, 100, 70, 5)


def test_requests_at_once_come_back_here() -> None:
    lease = lent("concurrency", 2, granted=2, left=0)
    lease.take(1, 0.0, alone_share=None)
    lease.take(1, 0.0, alone_share=None)
    assert not lease.fits(1, 0.0, alone_share=None)
    assert lease.report(0.0).held == 2
    lease.settle(1, 0, 0.0)
    assert lease.fits(1, 0.0, alone_share=None)
    assert lease.report(0.0, give_back=True).held == 1
    assert not lease.fits(1, 0.0, alone_share=None)
    assert lease.retry_seconds(1, 0.0, None) > 0


def test_budgets_count_what_was_used() -> None:
    lease = Lease("day", 1000, "2026-11-25")
    lease.hear(LimitGrant(granted=300, left=700, base=40), 300, 0.0, 0.0)
    lease.take(300, 0.0, alone_share=None)
    lease.settle(300, 120, 0.0)
    report = lease.report(0.0)
    assert (report.used, report.base, report.held, report.period) == (120, 40, 180, "2026-11-25")
    lease.hear(LimitGrant(base=7), 0, 0.0, 0.0)
    assert lease.base == 40
    lease.take(10, 0.0, alone_share=None)
    lease.settle(10, 500, 0.0)
    assert lease.idle == 0


def test_alone_it_has_its_share_and_begins_with_nothing() -> None:
    """Mutation: begin with a burst."""
    lease = lent(limit=60, granted=0)
    lease.cut_off(0.25, 10.0)
    assert not lease.fits(1, 10.0, alone_share=0.25)
    assert lease.retry_seconds(1, 10.0, 0.25) == pytest.approx(4.0)
    assert lease.standing(10.0, 0.25).remaining == 0
    assert lease.fits(1, 14.1, alone_share=0.25)
    lease.take(1, 14.1, alone_share=0.25)
    assert not lease.fits(1, 14.1, alone_share=0.25)
    assert lease.standing(100.0, 0.25).remaining == 15
    assert lease.standing(100.0, 0.0).remaining == 0
    assert not lease.fits(1, 100.0, alone_share=0.0)
    assert lease.retry_seconds(1, 100.0, 0.0) == LEASE_SECONDS
    assert lease.retry_seconds(61, 100.0, 0.25) == 60.0
    lease.hear(LimitGrant(), 0, 100.0, 100.0)  # no share of its own any more
    assert not lease.fits(1, 100.0, alone_share=None)


def test_alone_without_a_share_nothing_is_taken() -> None:
    lease = Lease("requests", 60)
    lease.take(1, 0.0, alone_share=None)
    assert (lease.spent, lease.idle) == (0, 0)


def test_alone_requests_at_once_and_budgets_have_a_share_too() -> None:
    slots = lent("concurrency", 8, granted=1, left=0)
    slots.take(1, 0.0, alone_share=None)
    slots.cut_off(0.25, 0.0)
    assert slots.fits(1, 10.0, alone_share=0.25)
    slots.take(1, 10.0, alone_share=0.25)
    assert not slots.fits(1, 10.0, alone_share=0.25)
    budget = Lease("month", 1000, "2026-11")
    budget.cut_off(0.25, 0.0)
    assert not budget.fits(1, 0.0, alone_share=0.25)
    budget.hear(LimitGrant(left=400), 0, 0.0, 0.0)
    budget.cut_off(0.25, 0.0)
    assert budget.fits(100, 10.0, alone_share=0.25)
    budget.take(60, 10.0, alone_share=0.25)
    assert not budget.fits(60, 10.0, alone_share=0.25)


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


def test_headers_tell_the_tightest_of_each_kind() -> None:
    assert limit_headers([]) == []
    told = [Standing("requests", 60, 59, 1.0), Standing("requests", 600, 3, 59.7), Standing("tokens", 10, 10, 0.0)]
    assert dict(limit_headers(told)) == {
        b"x-ratelimit-limit-requests": b"600",
        b"x-ratelimit-remaining-requests": b"3",
        b"x-ratelimit-reset-requests": b"1m0s",
        b"x-ratelimit-limit-tokens": b"10",
        b"x-ratelimit-remaining-tokens": b"10",
        b"x-ratelimit-reset-tokens": b"0ms",
    }


def test_a_limit_of_nothing_allows_nothing() -> None:
    lease = Lease("requests", 0)
    assert not lease.fits(1, 0.0, alone_share=None)
    assert lease.retry_seconds(1, 0.0, None) == 60.0
    assert math.isinf(lease.until)
