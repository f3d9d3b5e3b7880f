"""What the dashboard shows of a gateway."""

from hypothesis import given
from hypothesis import strategies as st

from covey.roles.gateway.stats import PERIOD_SECONDS, PERIODS, RECENT_SAMPLES_MAX, RETRIES_FREE, Tally


def record(tally: Tally, now: float, *, tokens: int = 1, seconds: float = 1.0, first: float | None = 0.5) -> None:
    tally.record(
        now,
        failed=False,
        prompt_tokens=2,
        completion_tokens=tokens,
        first_token_seconds=first,
        request_seconds=seconds,
    )


def test_before_the_first_request() -> None:
    stats = Tally().read(1_000.0)
    assert (stats.requests, stats.failed, stats.requests_per_second) == (0, 0, 0.0)
    assert stats.first_token_p50_seconds is stats.request_p99_seconds is None
    assert stats.history == ((0, 0),) * PERIODS


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50)), max_size=200))
def test_history_holds_exactly_the_last_periods(steps: list[tuple[float, int]]) -> None:
    tally, now, made = Tally(), 10_000.0, []
    for pause, tokens in steps:
        now += pause
        record(tally, now, tokens=tokens)
        made.append((now, tokens))
    stats = tally.read(now)
    current = int(now // PERIOD_SECONDS)
    recent = [tokens for at, tokens in made if int(at // PERIOD_SECONDS) > current - PERIODS]
    assert len(stats.history) == PERIODS
    assert sum(requests for requests, _ in stats.history) == len(recent)
    assert sum(tokens for _, tokens in stats.history) == sum(recent)
    assert stats.requests == len(made)


def test_rates_are_over_the_last_seconds_and_fade() -> None:
    tally = Tally()
    for _ in range(100):
        record(tally, 1_000.0, tokens=10)
    assert tally.read(1_004.0).requests_per_second > 10
    assert tally.read(1_004.0).tokens_per_second > 100
    assert tally.read(1_020.0).requests_per_second == 0


def test_quantiles_are_of_the_recent_past() -> None:
    tally = Tally()
    for number in range(1_000):
        record(tally, 0.0, seconds=float(number), first=None)
    stats = tally.read(0.0)
    assert stats.first_token_p50_seconds is None
    assert stats.request_p50_seconds == 1_000 - RECENT_SAMPLES_MAX / 2
    assert stats.request_p99_seconds is not None
    assert stats.request_p99_seconds >= 994


def test_retries_are_a_share_of_what_is_in_flight_beyond_the_first_few() -> None:
    tally = Tally()
    assert [tally.may_retry(0.1) for _ in range(RETRIES_FREE + 1)] == [True] * RETRIES_FREE + [False]
    tally.in_flight = 10 * RETRIES_FREE + 10
    assert [tally.may_retry(0.1), tally.may_retry(0.1)] == [True, False]
    record(tally, 0.0)
    assert tally.may_retry(0.1)
