"""What a gateway knows of a limit: what it was lent, and what it may do alone. Pure: time is an argument.

Requests and tokens a minute go by the generic cell rate algorithm (ATM Forum TM 4.0, appendix I). What a gateway may
spend comes from the limit's owner (`covey.contracts.limits`); a bucket of its own, for the whole limit, guards against
an owner that lends too much, and another one, for its share, is used while it can reach no owner.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from covey.contracts.limits import LEASE_SECONDS, LimitGrant, LimitKind, LimitUse

EPSILON = 1e-6
BUDGETS: frozenset[LimitKind] = frozenset({"day", "month"})
TOKEN_KINDS: frozenset[LimitKind] = frozenset({"tokens", "day", "month"})
BLOCK_SECONDS_MIN = 0.01
"""Between two questions to the owner for what it did not have: then it has some more."""
BLOCK_SECONDS_MAX = 0.25
"""After that it is asked again in any case: others may have given something back."""


class Bucket:
    """One number: when the bucket is full again. Empty, or negative, is any time ahead."""

    __slots__ = ("_full_at",)

    def __init__(self) -> None:
        self._full_at = -math.inf

    def left(self, limit: float, now: float) -> float:
        """What it holds of `limit`, which it gains in a minute; less than nothing after an overdraft."""
        return limit - max(self._full_at - now, 0.0) * limit / 60

    def take(self, amount: float, limit: float, now: float) -> None:
        """Take that much, there or not; a negative amount gives it back."""
        self._full_at = max(self._full_at, now) + amount * 60 / limit

    def empty(self, now: float) -> None:
        """Nothing is in it, and it begins to fill."""
        self._full_at = now + 60


@dataclass(frozen=True, slots=True)
class Standing:
    """What is said of one limit in the headers. `reset_seconds`: until it is whole again."""

    kind: LimitKind
    limit: int
    remaining: int
    reset_seconds: float


class Lease:
    """What this gateway has of one limit.

    Args:
        kind: of the limit.
        limit: the key's or person's own.
        period: of a budget, or "".
    """

    __slots__ = (
        "alone",
        "alone_left",
        "base",
        "blocked_amount",
        "blocked_until",
        "guard",
        "idle",
        "in_use",
        "is_cut_off",
        "kind",
        "left",
        "left_at",
        "limit",
        "overdrawn",
        "per_second",
        "period",
        "reserved",
        "retry_at",
        "returned",
        "settled",
        "spent",
        "taken_at",
        "unreported",
        "until",
        "used",
        "waiting",
    )  # fmt: skip

    def __init__(self, kind: LimitKind, limit: int, period: str = "") -> None:
        self.kind: LimitKind = kind
        self.limit = limit
        self.period = period
        self.idle = 0
        """Lent and not spent; of nothing worth once `until` has passed."""
        self.until = -math.inf
        self.in_use = 0
        """Requests that run, or tokens that they reserved of a budget."""
        self.spent = self.reserved = self.settled = self.returned = self.overdrawn = self.used = 0
        self.base = -1
        self.left: int | None = None
        """What the owner could still lend when it last said so; `None`: it never did."""
        self.left_at = -math.inf
        self.per_second = 0.0
        self.blocked_until = -math.inf
        """Until then nobody asks again for `blocked_amount` or more."""
        self.blocked_amount = 0
        self.retry_at = -math.inf
        """When the owner thought that it would have that much."""
        self.waiting = 0
        """What requests that wait for an answer of the owner need, all together."""
        self.taken_at = -math.inf
        self.guard = Bucket()
        self.alone: Bucket | None = None
        self.alone_left = 0.0
        self.is_cut_off = False
        self.unreported = False
        """Whether there is something that the owner should know soon."""

    @property
    def is_rate(self) -> bool:
        """Whether it fills with time."""
        return self.kind in ("requests", "tokens")

    def remaining(self, now: float) -> int:
        """What may be left of the limit, everywhere, as far as this gateway can know."""
        idle = self.idle if now < self.until else 0
        if self.left is None:
            return idle or self.limit
        grown = self.left + self.per_second * (now - self.left_at) if self.is_rate else self.left
        return max(min(idle + int(grown + EPSILON), self.limit - (0 if self.is_rate else self.in_use)), 0)

    def fits(self, amount: int, now: float, *, alone_share: float | None) -> bool:
        """Whether that much may be taken now. `alone_share`: the part that is this gateway's own, with no owner."""
        if self.is_rate and self.guard.left(self.limit, now) < amount - EPSILON:
            return False
        return (now < self.until and self.idle >= amount) or self._fits_alone(amount, now, alone_share)

    def _fits_alone(self, amount: int, now: float, share: float | None) -> bool:
        if share is None:
            return False
        if self.kind == "concurrency":
            return self.in_use + amount <= int(self.limit * share)
        if self.alone is None:
            return self.kind in BUDGETS and amount <= self.alone_left
        return self.limit * share >= amount and self.alone.left(self.limit * share, now) >= amount - EPSILON

    def lacks(self, amount: int, now: float) -> int:
        """What the owner has to lend for that much, beside what is lent already."""
        return max(amount - (self.idle if now < self.until else 0), 0)

    def take(self, amount: int, now: float, *, alone_share: float | None) -> None:
        """Take what fits."""
        self.taken_at = now
        lent = now < self.until and self.idle >= amount
        if self.is_rate:
            self.guard.take(amount, self.limit, now)
            if lent:
                self.idle -= amount
                self.spent += amount
                self.unreported = True
            elif self.alone is not None and alone_share:
                self.alone.take(amount, self.limit * alone_share, now)
            return
        self.in_use += amount
        self.unreported = True
        if lent:
            self.idle -= amount
        elif self.kind in BUDGETS:
            self.alone_left -= amount

    def reserve(self, amount: int) -> None:
        """That part of what was taken may come back."""
        self.reserved += amount

    def settle(self, amount: int, used: int, now: float) -> None:
        """What was taken turns out to be `used`; for requests at once it ends."""
        self.unreported = True
        self.blocked_until = -math.inf  # there may be more now
        if self.kind == "tokens":
            self.settled += amount
            self.returned += max(amount - used, 0)
            self.overdrawn += max(used - amount, 0)
            self.guard.take(used - amount, self.limit, now)
            return
        self.in_use -= amount
        if self.kind in BUDGETS:
            self.used += used
            self.idle = max(self.idle + amount - used, 0)
        else:
            self.idle += amount

    def report(self, now: float, *, needed: int = 0, give_back: bool = False) -> LimitUse:
        """For the owner. `give_back`: keep nothing that nobody waits for."""
        if now >= self.until or (give_back and not needed and not self.waiting):
            self.idle = 0
        self.unreported = False
        return LimitUse(
            kind=self.kind, limit=self.limit, period=self.period, needed=needed, wanted=self.waiting + needed,
            held=self.idle + self.in_use, spent=self.spent, reserved=self.reserved, settled=self.settled,
            returned=self.returned, overdrawn=self.overdrawn, used=self.used, base=self.base,
        )  # fmt: skip

    def hear(self, grant: LimitGrant, needed: int, asked_at: float, now: float) -> None:
        """The owner's answer to a report of that moment. Never believes more than the limit itself."""
        self.alone, self.alone_left, self.is_cut_off = None, 0.0, False
        self.until = asked_at + LEASE_SECONDS
        self.idle = min(self.idle + max(grant.granted, 0), max(self.limit - self.in_use, 0))
        self.left, self.left_at = min(max(grant.left, 0), self.limit), now
        self.per_second = min(max(grant.per_second, 0.0), self.limit / 60)
        if self.kind in BUDGETS and self.base < 0:
            self.base = max(grant.base, 0)
        if 0 <= grant.granted < needed:
            wait_seconds = max(grant.retry_after_seconds, BLOCK_SECONDS_MIN)
            self.retry_at, self.blocked_amount = now + wait_seconds, needed + self.idle
            self.blocked_until = now + min(wait_seconds, BLOCK_SECONDS_MAX)

    def cut_off(self, share: float, now: float) -> None:
        """The owner cannot be reached: what is this gateway's own begins with nothing, once its lease is over."""
        self.is_cut_off = True
        if self.is_rate:
            self.alone = Bucket()
            self.alone.empty(now)
        elif self.kind in BUDGETS:
            self.alone_left = (self.left or 0) * share

    def is_blocked(self, amount: int, now: float) -> bool:
        """Whether there is no use in asking the owner for that much yet."""
        if self.is_rate and self.guard.left(self.limit, now) < amount - EPSILON:
            return True
        return now < self.blocked_until and amount >= self.blocked_amount

    def retry_seconds(self, amount: int, now: float, alone_share: float | None) -> float:
        """When that much may be had, for who was refused it."""
        if not self.is_rate:
            return max(self.retry_at - now, BLOCK_SECONDS_MIN)
        if self.limit < 1 or amount > self.limit:
            return 60.0
        if alone_share is not None:
            rate = self.limit * alone_share
            if self.alone is None or amount > rate:
                return LEASE_SECONDS
            return max((amount - self.alone.left(rate, now)) * 60 / rate, BLOCK_SECONDS_MIN)
        short = amount - self.guard.left(self.limit, now)
        return max(self.retry_at - now, short * 60 / self.limit, BLOCK_SECONDS_MIN)

    def standing(self, now: float, alone_share: float | None) -> Standing:
        """For the headers."""
        remaining, full = self.remaining(now), 60.0
        if alone_share is not None and self.alone is not None:
            remaining = max(int(self.alone.left(self.limit * alone_share, now) + EPSILON), 0) if alone_share else 0
        if self.limit > 0:
            full = (self.limit - remaining) * 60 / self.limit
        return Standing(self.kind, self.limit, remaining, full)


def duration(seconds: float) -> str:
    """As OpenAI writes a reset: `12ms`, `1s`, `1m3s`. Rounded up: who waits that long has waited long enough."""
    milliseconds = max(math.ceil(seconds * 1000 - 1e-6), 0)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    whole = math.ceil(milliseconds / 1000)
    minutes, rest = divmod(whole, 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def limit_headers(standings: Sequence[Standing]) -> list[tuple[bytes, bytes]]:
    """The `x-ratelimit-*` headers: of several limits of one kind, that of which least is left."""
    shown: list[tuple[bytes, bytes]] = []
    for kind in ("requests", "tokens"):
        ours = [one for one in standings if one.kind == kind]
        if not ours:
            continue
        tightest, name = min(ours, key=lambda one: one.remaining), kind.encode()
        shown += [
            (b"x-ratelimit-limit-" + name, str(tightest.limit).encode()),
            (b"x-ratelimit-remaining-" + name, str(tightest.remaining).encode()),
            (b"x-ratelimit-reset-" + name, duration(tightest.reset_seconds).encode()),
        ]
    return shown
