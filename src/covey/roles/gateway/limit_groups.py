"""The limits that a gateway remembers: by key and person, up to a number of them. Time is an argument."""

import time
from collections.abc import Collection, Iterator

import trio

from covey.contracts.auth import Identity, KeyLimits
from covey.contracts.limits import LEASE_SECONDS, LimitKind, ranked
from covey.roles.gateway.limits import BUDGETS, Lease
from covey.transport.base import PeerId

NEVER = float("-inf")
NO_LIMITS = KeyLimits()
RENEW_SECONDS = LEASE_SECONDS * 0.6
"""Before its end a lease that is in use is renewed."""
LATE_SECONDS = 3000.0
"""How long after its end a budget's day or month is still reported; owners take note of it for an hour."""


class Group:
    """All limits of one key (`key:<id>`) or person (`owner:<id>`): one auth node owns them."""

    def __init__(self, limit_id: str) -> None:
        self.id = limit_id
        self.leases: dict[tuple[LimitKind, str], Lease] = {}
        self.reported: tuple[Lease, ...] = ()
        """Those in the report that is under way."""
        self.sequence = 0
        self.asking: trio.Event | None = None
        self.refused_by: PeerId | None = None
        self.refused_at = NEVER
        self.parts: tuple[KeyLimits, str, list[Part]] = NO_LIMITS, "", []
        """What of it a request counts against, by these limits, on this day."""
        self._contact_at = NEVER
        self._accepted_by: PeerId | None = None
        self._nodes: Collection[PeerId] | None = None
        self._owner: PeerId | None = None

    def owner(self, nodes: tuple[PeerId, ...]) -> PeerId | None:
        """Which of the auth nodes that there are owns it."""
        if nodes != self._nodes:
            self._nodes = nodes
            self._owner = PeerId(ranked(self.id, [str(node) for node in nodes])[0]) if nodes else None
        return self._owner

    def begin_asking(self) -> trio.Event:
        """A report goes out; there is one at a time."""
        self.asking = trio.Event()
        return self.asking

    def end_asking(self, event: trio.Event, *, heard: bool) -> None:
        """It was answered, or never will be."""
        self.asking = None
        event.set()
        if not heard:
            for lease in self.reported:
                lease.unreported = True

    def accepted(self, owner: PeerId, now: float) -> None:
        """The owner took note."""
        self.refused_by = None
        self._contact_at, self._accepted_by = now, owner
        for key in [key for key, lease in self.leases.items() if lease in self.reported and self._is_over(lease)]:
            self._forget_lease(key)

    def _is_over(self, lease: Lease) -> bool:
        """A budget of a day or month that has passed."""
        newest = max(one.period for one in self.leases.values() if one.kind == lease.kind)
        return lease.kind in BUDGETS and lease.period < newest and not lease.in_use and not lease.unreported

    def forget_past(self, unix_now: float) -> None:
        """Forget budgets of days and months long past: their owner refuses a report that has one."""
        if all(not lease.period for lease in self.leases.values()):
            return
        today = time.strftime("%Y-%m-%d", time.gmtime(unix_now - LATE_SECONDS))
        for key in [key for key, lease in self.leases.items() if lease.period < today[: len(lease.period)]]:
            self._forget_lease(key)

    def _forget_lease(self, key: tuple[LimitKind, str]) -> None:
        del self.leases[key]
        self.parts = NO_LIMITS, "", []  # it may be one of them, where the clock was put back over midnight

    def cut_off(self, share: float, now: float) -> None:
        """No owner can be reached."""
        for lease in self.leases.values():
            if not lease.is_cut_off:
                lease.cut_off(share, max(now, self._contact_at + LEASE_SECONDS))

    def has_business(self, owner: PeerId, now: float) -> bool:
        """Whether the owner should be told something now."""
        if self.asking is not None:
            return False
        moved = owner != self._accepted_by
        for lease in self.leases.values():
            if lease.unreported or (moved and (lease.in_use or lease.used)):
                return True
            if (lease.idle or lease.in_use) and now > lease.until - RENEW_SECONDS:
                return True
        return False

    @property
    def is_at_rest(self) -> bool:
        """Whether forgetting it loses nothing that matters."""
        return self.asking is None and not any(lease.in_use or lease.unreported for lease in self.leases.values())


Part = tuple[Group, Lease]
"""One limit that a request counts against."""


class Groups:
    """Up to `groups_max` of them; the one that was used the longest ago is forgotten first."""

    def __init__(self, groups_max: int) -> None:
        self._groups_max = groups_max
        self._groups: dict[str, Group] = {}
        self._day = ""
        self._day_ends_at = NEVER

    def all(self) -> Iterator[Group]:
        """Those that are remembered."""
        yield from list(self._groups.values())

    def parts(self, identity: Identity, now: float, unix_now: float) -> list[Part]:
        """Every limit of a key and its owner, as they are now."""
        parts = self._parts_of(f"key:{identity.key_id}", identity.limits, unix_now)
        return parts + self._parts_of(f"owner:{identity.owner}", identity.owner_limits, unix_now)

    def _parts_of(self, limit_id: str, limits: KeyLimits, unix_now: float) -> list[Part]:
        if limits == NO_LIMITS:
            return []
        group = self._groups.pop(limit_id, None)
        if group is None:
            if len(self._groups) >= self._groups_max:
                self._forget()
            group = Group(limit_id)
        self._groups[limit_id] = group  # the last of them now
        today = self._today(unix_now)
        if group.parts[0] == limits and group.parts[1] == today:
            return group.parts[2]
        parts: list[Part] = []
        for kind, limit, period in self._numbers(limits, today):
            lease = group.leases.get((kind, period))
            if lease is None:
                lease = group.leases[kind, period] = Lease(kind, limit, period)
            lease.limit = limit
            parts.append((group, lease))
        group.parts = limits, today, parts
        return parts

    def _numbers(self, limits: KeyLimits, today: str) -> Iterator[tuple[LimitKind, int, str]]:
        if limits.requests_per_minute is not None:
            yield "requests", limits.requests_per_minute, ""
        if limits.tokens_per_minute is not None:
            yield "tokens", limits.tokens_per_minute, ""
        if limits.concurrency is not None:
            yield "concurrency", limits.concurrency, ""
        if limits.tokens_per_day is not None:
            yield "day", limits.tokens_per_day, today
        if limits.tokens_per_month is not None:
            yield "month", limits.tokens_per_month, today[:7]

    def _today(self, unix_now: float) -> str:
        if not self._day_ends_at - 86_400 <= unix_now < self._day_ends_at:
            self._day = time.strftime("%Y-%m-%d", time.gmtime(unix_now))
            self._day_ends_at = (unix_now // 86_400 + 1) * 86_400
        return self._day

    def _forget(self) -> None:
        """The oldest that is at rest; of many that are not, the oldest."""
        oldest = next((one for one in self._groups.values() if one.is_at_rest), next(iter(self._groups.values())))
        del self._groups[oldest.id]
