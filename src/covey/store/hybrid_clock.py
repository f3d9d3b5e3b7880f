"""The hybrid logical clock of entries. Pure.

64 bits: Unix milliseconds in the upper 48, a counter in the lower 16. It is near wall time, yet later than every
clock that its author had seen (Kulkarni et al., "Logical Physical Clocks", 2014).
"""

COUNTER_BITS = 16


def tick(last: int, now: float) -> int:
    """The next clock: that of `now` (Unix seconds) where time has moved on, else one more than the last seen."""
    return max(int(now * 1000) << COUNTER_BITS, last + 1)


def wall_seconds(clock: int) -> float:
    """The Unix seconds that a clock was made at, as its author's wall clock said, or later."""
    return (clock >> COUNTER_BITS) / 1000
