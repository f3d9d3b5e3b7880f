"""Seconds that pass while the machine sleeps, too: a laptop must not wake up with the lease it fell asleep with."""

import time
from collections.abc import Callable

BootClock = Callable[[], float]
"""Monotonic seconds from some moment on, suspends included."""

_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""On macOS, which has no CLOCK_BOOTTIME, CLOCK_MONOTONIC runs through a suspend (clock_gettime(3)); on Linux not."""


def boot_seconds() -> float:
    """A `BootClock`."""
    return time.clock_gettime(_CLOCK)
