"""What the dashboard shows of a gateway. Pure: time is an argument. Prometheus has the exact histograms."""

from collections import deque

from covey.contracts.gateway import GatewayStats

PERIOD_SECONDS = 5.0
PERIODS = 60
RECENT_SAMPLES_MAX = 512
RETRIES_FREE = 10


class Tally:
    """Counts since the start, and a short past."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._retries = 0
        self._requests = 0
        self._failed = 0
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._first_token_seconds: deque[float] = deque(maxlen=RECENT_SAMPLES_MAX)
        self._request_seconds: deque[float] = deque(maxlen=RECENT_SAMPLES_MAX)
        self._periods: deque[tuple[int, int, int]] = deque(maxlen=PERIODS + 1)  # (number, requests, tokens)

    def may_retry(self, share: float) -> bool:
        """Count one more retry, unless there are too many for what is in flight. Requests that end refill it."""
        if self._retries >= max(RETRIES_FREE, share * self.in_flight):
            return False
        self._retries += 1
        return True

    def record(
        self,
        now: float,
        *,
        failed: bool,
        prompt_tokens: int,
        completion_tokens: int,
        first_token_seconds: float | None,
        request_seconds: float,
    ) -> None:
        """A request has ended."""
        self._retries = max(self._retries - 1, 0)
        self._requests += 1
        self._failed += failed
        self._prompt_tokens += prompt_tokens
        self._completion_tokens += completion_tokens
        if first_token_seconds is not None:
            self._first_token_seconds.append(first_token_seconds)
        self._request_seconds.append(request_seconds)
        number = int(now // PERIOD_SECONDS)
        if self._periods and self._periods[-1][0] == number:
            _, requests, tokens = self._periods[-1]
            self._periods[-1] = (number, requests + 1, tokens + completion_tokens)
        else:
            self._periods.append((number, 1, completion_tokens))

    def read(self, now: float) -> GatewayStats:
        """The figures as of now (monotonic seconds, the same clock as `record`)."""
        current = int(now // PERIOD_SECONDS)
        by_number = {number: (requests, tokens) for number, requests, tokens in self._periods}
        history = tuple(by_number.get(number, (0, 0)) for number in range(current - PERIODS + 1, current + 1))
        recent_seconds = PERIOD_SECONDS + now % PERIOD_SECONDS  # the period under way and the one before
        first, whole = sorted(self._first_token_seconds), sorted(self._request_seconds)
        return GatewayStats(
            requests=self._requests,
            failed=self._failed,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            in_flight=self.in_flight,
            requests_per_second=(history[-1][0] + history[-2][0]) / recent_seconds,
            tokens_per_second=(history[-1][1] + history[-2][1]) / recent_seconds,
            first_token_p50_seconds=_quantile(first, 0.5),
            first_token_p99_seconds=_quantile(first, 0.99),
            request_p50_seconds=_quantile(whole, 0.5),
            request_p99_seconds=_quantile(whole, 0.99),
            history=history,
        )


def _quantile(ordered: list[float], share: float) -> float | None:
    if not ordered:
        return None
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
