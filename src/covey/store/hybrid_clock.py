"""The hybrid logical clock of entries. Pure.

64 bits: Unix milliseconds in the upper 48, a counter in the lower 16. It is near wall time, yet later than every
clock that its author had seen (Kulkarni et al., "Logical Physical Clocks", 2014).
"""

from collections.abc import Iterable

COUNTER_BITS = 16

AHEAD_SECONDS_MAX = 3600
"""Clocks of others that are further ahead than this are not followed: one liar would drag everybody along."""


def tick(last: int, now: float, seen: Iterable[int] = ()) -> int:
    """The next clock: that of `now` where time has moved on, else one more than the highest known.

    Args:
        last: this node's own last one, which is always passed.
        now: Unix seconds.
        seen: those of others, which are passed unless they are out of all reason.
    """
    followed = max((clock for clock in seen if not is_ahead(clock, now)), default=0)
    return max(int(now * 1000) << COUNTER_BITS, last + 1, followed + 1)


def is_ahead(clock: int, now: float) -> bool:
    """Whether a clock is out of all reason, `now` being Unix seconds."""
    return clock > farthest(now)


def farthest(now: float) -> int:
    """The highest clock that is not."""
    return (int((now + AHEAD_SECONDS_MAX) * 1000) << COUNTER_BITS) | ((1 << COUNTER_BITS) - 1)


def wall_seconds(clock: int) -> float:
    """The Unix seconds that a clock was made at, as its author's wall clock said, or later."""
    return (clock >> COUNTER_BITS) / 1000
