"""What the owner of a limit keeps of it. Pure: time is an argument, monotonic seconds.

`Rate` is a bucket of tokens (the generic cell rate algorithm in its "leaky bucket" form, ATM Forum TM 4.0, 4.4.2). What
holds the bound: what is left in the bucket, what gateways hold unspent, and what they reserved and may give back, is
together never more than the burst. So no window admits more than the burst and what the rate gives in it, whenever
what was lent is spent. What gateways hold keeps the bucket from filling; what is merely reserved does not, but loses
its right to come back instead.

`Quota` is a number of which parts are out: requests at once, or a budget's tokens.
"""

from dataclasses import dataclass, field

from covey.contracts.limits import AMOUNT_MAX, LEASE_SECONDS, LimitGrant, LimitUse

EPSILON = 1e-6
CHUNK_SECONDS = 1.0
"""Of the rate, that are lent at once at least."""
CHUNK_SHARE = 1 / 16
"""Of what there is, that is lent at once at least."""
RETRY_SECONDS_MAX = 60.0
QUOTA_RETRY_SECONDS = 0.25
SETTLE_SECONDS_MAX = 3600.0
"""How long what a gateway has reserved is remembered, without a word of it."""
STEPS = 20
"""A budget is written down whenever another twentieth is spent."""


@dataclass(slots=True)
class Holder:
    """What one gateway has of one limit. `until`: when its lease ends; the totals are those of its last report."""

    term: int
    held: float = 0.0
    until: float = 0.0
    spent: int = 0
    reserved: int = 0
    settled: int = 0
    returned: int = 0
    overdrawn: int = 0


class Rate:
    """A limit a minute, all of which may be used at once.

    Args:
        now: when it begins to be counted here.
        since: since when nobody else can have lent any of it: it has filled since then, from nothing.
    """

    def __init__(self, limit: int, now: float, *, since: float) -> None:
        self._limit = limit
        self._tokens = max(min(float(limit), limit / 60 * (now - since)), 0.0) if limit else 0.0
        self._refundable = 0.0
        self._at = now
        self._capacity = float(limit)
        self._per_second = limit / 60
        self._holders: dict[str, Holder] = {}

    @property
    def is_whole(self) -> bool:
        """Whether it is as if it had never been used."""
        return not self._holders and not self._refundable and self._tokens >= self._capacity - EPSILON

    @property
    def limit(self) -> int:
        """As it was last."""
        return self._limit

    def advance(self, limit: int, share: float, now: float) -> None:
        """Let time pass. `share`: the part of the limit that this owner may lend, from 0 to 1."""
        for name, holder in list(self._holders.items()):
            if holder.until <= now:
                holder.held = 0.0  # it counts as spent
                if holder.reserved <= holder.settled or holder.until + SETTLE_SECONDS_MAX <= now:
                    del self._holders[name]
        self._limit, self._capacity, self._per_second = limit, limit * share, limit / 60 * share
        self._tokens += self._per_second * max(now - self._at, 0.0)
        self._at = now
        self._settle_down()

    def _settle_down(self) -> None:
        held = sum(holder.held for holder in self._holders.values())
        self._tokens = min(self._tokens, max(self._capacity - held, 0.0))
        self._refundable = min(self._refundable, max(self._capacity - held - self._tokens, 0.0))

    def lease(self, gateway: str, term: int, use: LimitUse, now: float) -> LimitGrant:
        """Take note of a gateway's report, and lend it what it needs, if there is that much. `advance` first."""
        holder = self._holders.get(gateway)
        if holder is None or holder.term != term:
            holder = self._holders[gateway] = Holder(term)
        else:
            self._take_note(holder, use)
        holder.spent, holder.reserved, holder.settled = use.spent, use.reserved, use.settled
        holder.returned, holder.overdrawn = use.returned, use.overdrawn
        self._settle_down()
        granted = self._lend(use)
        self._tokens -= granted
        holder.held += granted
        holder.until = now + LEASE_SECONDS
        return LimitGrant(
            granted=granted,
            left=max(int(self._tokens + EPSILON), 0),
            per_second=self._per_second,
            retry_after_seconds=self._retry_seconds(use.needed) if granted < use.needed else 0.0,
        )

    def _take_note(self, holder: Holder, use: LimitUse) -> None:
        """No gateway gives back more than it was lent."""
        spent = min(max(use.spent - holder.spent, 0), holder.held)
        kept = min(float(use.held), holder.held - spent)
        self._tokens += holder.held - spent - kept
        holder.held = kept
        self._refundable += min(max(use.reserved - holder.reserved, 0), spent)
        settled = max(use.settled - holder.settled, 0)
        back = min(max(use.returned - holder.returned, 0), settled, self._refundable)
        self._refundable = max(self._refundable - settled, 0.0)
        self._tokens += back
        self._tokens -= min(max(use.overdrawn - holder.overdrawn, 0), self._limit)

    def _lend(self, use: LimitUse) -> int:
        there = int(self._tokens + EPSILON)
        if not use.needed or there < use.needed:
            return 0
        chunk = max(int(self._per_second * CHUNK_SECONDS), int(self._tokens * CHUNK_SHARE))
        return min(there, max(use.needed, use.wanted, chunk))

    def _retry_seconds(self, needed: int) -> float:
        if self._per_second <= 0:
            return LEASE_SECONDS
        return min(max((needed - self._tokens) / self._per_second, 0.0), RETRY_SECONDS_MAX)


class Quota:
    """A number of which gateways have parts; what the lease of a silent one had comes back when it ends."""

    def __init__(self) -> None:
        self._holders: dict[str, Holder] = {}

    @property
    def is_whole(self) -> bool:
        """Whether nobody has any of it."""
        return not self._holders

    def out(self, now: float) -> float:
        """What gateways have."""
        for name in [name for name, holder in self._holders.items() if holder.until <= now]:
            del self._holders[name]
        return sum(holder.held for holder in self._holders.values())

    def out_to_others(self, gateway: str, now: float) -> float:
        """What the other gateways have."""
        mine = self._holders.get(gateway)
        return self.out(now) - (0.0 if mine is None or mine.until <= now else mine.held)

    def lease(
        self, gateway: str, term: int, use: LimitUse, now: float, *, capacity: float, chunk: int = 1, lend: bool = True
    ) -> LimitGrant:
        """Take note of what a gateway has, and lend it what it needs. `capacity`: what there is, lent or not. `chunk`:
        lent at once at least, where there is as much. Unless `lend`, nothing is.
        """
        holder = self._holders.setdefault(gateway, Holder(term))
        holder.term, holder.held, holder.until = term, float(min(use.held, use.limit)), now + LEASE_SECONDS
        free = int(max(capacity - self.out(now), 0.0))
        granted = min(free, max(use.needed, use.wanted, chunk)) if lend and 0 < use.needed <= free else 0
        holder.held += granted
        if not holder.held:
            del self._holders[gateway]
        short = granted < use.needed
        return LimitGrant(
            granted=granted, left=free - granted, retry_after_seconds=QUOTA_RETRY_SECONDS if short else 0.0
        )


@dataclass(slots=True)
class Budget:
    """The tokens of one day or month: what each gateway has used of them, and what is promised to gateways now.

    `written`: what of `used` is in the feed.
    """

    used: dict[str, int] = field(default_factory=dict[str, int])
    written: dict[str, int] = field(default_factory=dict[str, int])
    quota: Quota = field(default_factory=Quota)

    def learn(self, written: dict[str, int]) -> None:
        """What the feeds say. Of two numbers for one gateway the higher is right: it is a total."""
        for gateway, used in written.items():
            self.used[gateway] = max(used, self.used.get(gateway, 0))
            self.written[gateway] = max(used, self.written.get(gateway, 0))

    def note(self, gateway: str, use: LimitUse) -> int:
        """Count what a gateway reports; returns the `base` that it is to count from."""
        base = use.base if use.base >= 0 else self.used.get(gateway, 0)
        if use.base >= 0 or use.used:
            self.used[gateway] = min(max(base + use.used, self.used.get(gateway, 0)), AMOUNT_MAX)
        return base

    @property
    def spent(self) -> int:
        """By all."""
        return sum(self.used.values())

    def is_due(self, limit: int) -> bool:
        """Whether another twentieth has been spent since it was written down."""
        return self.spent - sum(self.written.values()) >= max(limit // STEPS, 1)

    def unwritten(self) -> dict[str, int]:
        """The gateways' totals that the feed does not have."""
        return {gateway: used for gateway, used in self.used.items() if used > self.written.get(gateway, 0)}
