"""Trying every address of a node at once: the first that answers wins."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

Way = TypeVar("Way")
Won = TypeVar("Won")


class AttemptError(Exception):
    """One attempt failed; the message says why, for people."""


class RaceLost(Exception):
    """Every attempt failed.

    Args:
        reasons: why, in the order in which they were given; `None` for what was still under way when the time was over.
    """

    def __init__(self, reasons: Sequence[str | None]) -> None:
        super().__init__("every attempt failed")
        self.reasons = tuple(reasons)


async def race(
    ways: Sequence[Way],
    attempt: Callable[[Way], Awaitable[Won]],
    discard: Callable[[Won], None],
    *,
    seconds: float,
    stagger_seconds: float,
) -> tuple[Way, Won]:
    """Start an attempt for every way, one after the other, sooner where one fails; the first to succeed ends the race.

    Args:
        ways: best first.
        attempt: raises `AttemptError`; cleans up after itself when cancelled.
        discard: undoes a success that came second, or that nobody waits for any more.
        seconds: for all together.
        stagger_seconds: the lead that each gets over the next.

    Raises:
        RaceLost: nobody won.
    """
    won: list[tuple[Way, Won]] = []
    reasons: list[str | None] = [None] * len(ways)
    taken = False

    async def run(number: int, failed: trio.Event, nursery: trio.Nursery) -> None:
        try:
            result = await attempt(ways[number])
        except AttemptError as error:
            reasons[number] = str(error)
            failed.set()
            return
        won.append((ways[number], result))
        nursery.cancel_scope.cancel()

    try:
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for number in range(len(ways)):
                    failed = trio.Event()
                    nursery.start_soon(run, number, failed, nursery)
                    with trio.move_on_after(stagger_seconds):
                        await failed.wait()
        if not won:
            raise RaceLost(reasons)
        taken = True
        return won[0]
    finally:
        for _, result in won[taken:]:
            discard(result)
