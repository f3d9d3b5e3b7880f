"""Requests per minute, by the generic cell rate algorithm (ATM Forum TM 4.0, appendix I). Pure: time is an argument.

One number per key instead of a list of times: the theoretical arrival time of the next request at the steady rate.
A key may burst up to its whole limit, and refills at limit/60 a second.
"""

import math
from dataclasses import dataclass

KEYS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Decision:
    """What the limiter says. `reset_seconds`: until the limit is whole again; `retry_after_seconds` 0 where allowed."""

    allowed: bool
    limit: int
    remaining: int
    reset_seconds: float
    retry_after_seconds: float


class RequestLimiter:
    """Remembers only keys that are not at rest, up to `KEYS_MAX` of them."""

    def __init__(self) -> None:
        self._arrivals: dict[str, float] = {}

    def take(self, key_id: str, per_minute: int, now: float) -> Decision:
        """Count one request, if it is allowed.

        Args:
            key_id: whose.
            per_minute: the limit, and the burst; below 1 nothing is allowed.
            now: monotonic seconds.
        """
        if per_minute < 1:
            return Decision(allowed=False, limit=0, remaining=0, reset_seconds=60.0, retry_after_seconds=60.0)
        interval = 60.0 / per_minute
        window = interval * per_minute
        arrival = max(self._arrivals.get(key_id, now), now)
        after = arrival + interval
        spent = after - now
        if spent > window + 1e-9:
            return Decision(
                allowed=False,
                limit=per_minute,
                remaining=0,
                reset_seconds=arrival - now,
                retry_after_seconds=spent - window,
            )
        if key_id not in self._arrivals and len(self._arrivals) >= KEYS_MAX:
            self._forget_rested(now)
        self._arrivals[key_id] = after
        return Decision(
            allowed=True,
            limit=per_minute,
            remaining=int((window - spent) / interval + 1e-9),
            reset_seconds=spent,
            retry_after_seconds=0.0,
        )

    def _forget_rested(self, now: float) -> None:
        self._arrivals = {key: at for key, at in self._arrivals.items() if at > now}
        while len(self._arrivals) >= KEYS_MAX:  # all of them busy: the oldest entry starts anew
            del self._arrivals[next(iter(self._arrivals))]


def duration(seconds: float) -> str:
    """As OpenAI writes a reset: `12ms`, `1s`, `1m3s`. Rounded up: who waits that long has waited long enough."""
    milliseconds = max(math.ceil(seconds * 1000 - 1e-6), 0)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    whole = math.ceil(milliseconds / 1000)
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def headers(decision: Decision | None) -> list[tuple[bytes, bytes]]:
    """The `x-ratelimit-*` headers, on success and failure; none where no limit is set."""
    if decision is None:
        return []
    return [
        (b"x-ratelimit-limit-requests", str(decision.limit).encode()),
        (b"x-ratelimit-remaining-requests", str(decision.remaining).encode()),
        (b"x-ratelimit-reset-requests", duration(decision.reset_seconds).encode()),
    ]
