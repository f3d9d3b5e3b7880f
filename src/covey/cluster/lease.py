"""Who may vouch for keys, and for how long: the rules of the freshness lease (replication.md). Pure.

A revocation counts from when a majority of the auth nodes holds it. An auth node knows all of those up to some moment:
the one at which it *asked* a majority, itself included, for their heads, once it has applied what they answered. It
grants leases for half of `lease_seconds` after that moment, and each lasts half of them: so no lease outlives, by more
than `lease_seconds`, a revocation that its holder does not know.

Times are seconds on a clock that runs on while the machine sleeps (`covey.cluster.boot_clock`).
"""

import math
from collections.abc import Collection, Hashable
from typing import Generic, Literal, TypeVar

from covey.errors import CallError

P = TypeVar("P", bound=Hashable)

LeasePolicy = Literal["auto", "majority"]
"""`auto`: of exactly two auth nodes either suffices: available, and without a bound while they are apart."""
NO_LEASE = "no_lease"
RETRY_SECONDS = 2.0


def quorum(members: int, policy: LeasePolicy) -> int:
    """How many of the auth nodes, itself included, one must have heard."""
    return 1 if policy == "auto" and members == 2 else members // 2 + 1


def no_lease(why: str) -> CallError:
    """What is answered where nobody vouches for keys. Anybody may see it: no names."""
    return CallError("unreachable", why, reason=NO_LEASE, retry_after_seconds=RETRY_SECONDS)


class Freshness(Generic[P]):
    """When an auth node asked each other one for the heads that it has applied by now."""

    def __init__(self) -> None:
        self._asked_at: dict[P, float] = {}

    def applied(self, member: P, asked_at: float) -> None:
        """What a member answered to a question of that moment has been applied."""
        self._asked_at[member] = max(asked_at, self._asked_at.get(member, -math.inf))

    def since(self, others: Collection[P], policy: LeasePolicy) -> float:
        """The moment up to which this node knows what a majority held; infinity where it needs nobody.

        Args:
            others: the other auth nodes.
            policy: how many of them it takes.
        """
        needed = quorum(len(others) + 1, policy) - 1
        if needed == 0:
            return math.inf
        return sorted((self._asked_at.get(other, -math.inf) for other in others), reverse=True)[needed - 1]

    def heard(self, others: Collection[P], after: float) -> int:
        """How many of them it has heard after a moment."""
        return sum(self._asked_at.get(other, -math.inf) > after for other in others)


class Deadlines(Generic[P]):
    """Until when each of some gateways holds a lease; those that are over are forgotten."""

    def __init__(self) -> None:
        self._until: dict[P, float] = {}

    def extend(self, gateway: P, until: float) -> None:
        """Never shortens."""
        self._until[gateway] = max(until, self._until.get(gateway, -math.inf))

    def holds(self, gateway: P, now: float) -> bool:
        """Whether a gateway holds a lease."""
        return now < self._until.get(gateway, -math.inf)

    def seconds_left(self, now: float) -> dict[P, float]:
        """Of all that hold one."""
        self._until = {gateway: until for gateway, until in self._until.items() if now < until}
        return {gateway: until - now for gateway, until in self._until.items()}
