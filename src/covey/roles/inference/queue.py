"""Who runs next on a model's slots: a bounded queue, fair per tenant, that refuses early rather than late. Pure.

Round robin over the tenants that wait, first come first served within each: ten requests of one tenant cost another
tenant's single one a single turn.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from covey.errors import CallError

SERVICE_WEIGHT = 0.2
"""Of the newest answer in the moving average of how long one takes."""
RETRY_SECONDS_MIN = 1.0
RETRY_SECONDS_MAX = 120.0


@dataclass(eq=False, slots=True)
class Ticket:
    """A request's place. `since`: when it arrived, then when it started, in seconds on the caller's clock."""

    tenant: str
    since: float
    running: bool = False


@dataclass(slots=True)
class FairQueue:
    """The queue of one model.

    Args:
        length_max: how many may wait, over all tenants.
        wait_seconds_max: who would probably wait longer is refused at once.
    """

    length_max: int
    wait_seconds_max: float
    running: int = 0
    waiting: int = 0
    service_seconds: float = 0.0
    """How long an answer takes, a moving average; 0: none has ended yet."""
    _lines: "OrderedDict[str, deque[Ticket]]" = field(default_factory=OrderedDict[str, deque[Ticket]])

    def arrive(self, tenant: str, slots: int, now: float) -> Ticket:
        """Take a place.

        Raises:
            CallError: `no_capacity`, with a fair guess at when it is worth coming back.
        """
        wait = self.expected_wait(tenant, slots)
        if self.running >= slots and self.waiting >= self.length_max:
            raise busy(wait, "queue_full")
        if wait > self.wait_seconds_max:
            raise busy(wait - self.wait_seconds_max, "queue_slow")
        ticket = Ticket(tenant, now)
        self._lines.setdefault(tenant, deque()).append(ticket)
        self.waiting += 1
        return ticket

    def expected_wait(self, tenant: str, slots: int) -> float:
        """Seconds that a request of this tenant would wait if it came now; 0 while nobody knows better."""
        if self.running + self.waiting < slots:
            return 0.0
        turn = len(self._lines.get(tenant, ())) + 1
        ahead = sum(min(len(line), turn) for other, line in self._lines.items() if other != tenant) + turn - 1
        return (ahead + 1) / max(slots, 1) * self.service_seconds

    def admit(self, slots: int, now: float) -> list[Ticket]:
        """Those who may start now, next in turn first; they count as running."""
        started: list[Ticket] = []
        while self.running < slots and self._lines:
            tenant, line = next(iter(self._lines.items()))
            ticket = line.popleft()
            del self._lines[tenant]
            if line:
                self._lines[tenant] = line  # behind the other tenants
            ticket.running, ticket.since = True, now
            self.waiting -= 1
            self.running += 1
            started.append(ticket)
        return started

    def leave(self, ticket: Ticket, now: float, *, answered: bool) -> None:
        """Give the place back: the answer ended, or whoever waited went away.

        Args:
            ticket: of `arrive`.
            now: on the same clock.
            answered: a whole answer, whose duration teaches how long one takes.
        """
        if not ticket.running:
            line = self._lines[ticket.tenant]
            line.remove(ticket)
            self.waiting -= 1
            if not line:
                del self._lines[ticket.tenant]
            return
        self.running -= 1
        if answered:
            took = now - ticket.since
            old = self.service_seconds or took
            self.service_seconds = old + SERVICE_WEIGHT * (took - old)


def busy(retry_after_seconds: float, reason: str) -> CallError:
    """The refusal."""
    return CallError(
        "no_capacity",
        "This model is busy on this node; try again a little later.",
        reason=reason,
        retry_after_seconds=min(max(retry_after_seconds, RETRY_SECONDS_MIN), RETRY_SECONDS_MAX),
    )
