"""How late the event loop is: what every request of this node waits beside its own work."""

from typing import NoReturn

import trio

from covey.telemetry.tallies import Spread

EVERY_SECONDS = 0.5


async def measure_loop_lag(lag_seconds: Spread, *, every_seconds: float = EVERY_SECONDS) -> NoReturn:
    """Observe, for ever, how much later than asked for this task woke up: for so long some other one held the loop."""
    while True:
        due = trio.current_time() + every_seconds
        await trio.sleep_until(due)
        lag_seconds.observe(max(trio.current_time() - due, 0))
