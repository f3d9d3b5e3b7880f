"""The owner of limits: lends gateways what they may spend, and writes down what budgets have used.

Bounds, and why they hold: docs/adr/0009-limits.md.
"""

import logging
import time
from collections.abc import Callable, Sequence

import trio
from msgspec.structs import replace

from covey.bus.bus import BusHandle
from covey.bus.caller import Caller
from covey.contracts.auth import KeyLimits
from covey.contracts.feeds import BudgetSpent, Op
from covey.contracts.limits import (
    LEASE_LIMITS,
    LEASE_SECONDS,
    LeaseLimits,
    LimitGrant,
    LimitGrants,
    LimitKind,
    LimitReport,
    LimitsLeased,
    LimitUse,
    check_request,
)
from covey.errors import CallError
from covey.roles.auth.limit_sight import LimitSight
from covey.roles.auth.limits import Budget, Quota, Rate
from covey.roles.base import Clock
from covey.store.feeds import Feeds
from covey.store.rows import BudgetRow, KeyRow, StandingRow, budget_key
from covey.store.view import View

log = logging.getLogger(__name__)

ACCOUNTS_MAX = 20_000
"""How many keys and people are remembered."""
KEEP_SECONDS = 1.0
"""Between two looks for what is to be written down or forgotten."""
CLOSE_SECONDS_MAX = 5.0
OPS_PER_ENTRY = 256
SPENT_RETRY_SECONDS = 3600.0
"""Of a budget that is spent; the gateway knows when its day ends."""
CHUNKS_PER_BUDGET = 64


class Account:
    """All limits of one key or person. `sequences`: of the last report of each gateway, with its term."""

    def __init__(self) -> None:
        self.rates: dict[LimitKind, Rate] = {}
        self.running = Quota()
        self.budgets: dict[str, Budget] = {}
        self.limits: dict[str, int] = {}
        self.sequences: dict[str, tuple[int, int]] = {}
        self.used_at = 0.0


class LimitOwner:
    """Serves LEASE_LIMITS; `keep` is its task.

    Args:
        bus: stamped `auth`.
        feeds: where keys and what budgets have used are written.
        clock: wall time, which says what day it is.
        absent_seconds: as `LimitSight`.
    """

    def __init__(self, bus: BusHandle, feeds: Feeds, clock: Clock, absent_seconds: float) -> None:
        self._bus = bus
        self._feeds = feeds
        self._clock = clock
        self._sight = LimitSight(bus, feeds.view, absent_seconds, trio.current_time())
        self._accounts: dict[str, Account] = {}
        self._forgot_at = float("-inf")
        """When one was forgotten that was not at rest: nothing that begins anew is believed to be full since then."""

    def serve(self) -> None:
        """From now on."""
        self._bus.serve(LEASE_LIMITS, self.lease)

    async def lease(self, caller: Caller, request: LeaseLimits) -> LimitsLeased:
        """Serve LEASE_LIMITS."""
        check_request(request)
        now, gateway = trio.current_time(), str(caller.peer)
        self._sight.beat(gateway, request.sees, now)
        answers = tuple(self._answer(gateway, request.term, report, now) for report in request.reports)
        return LimitsLeased(self._sight.gateways, answers)

    def _answer(self, gateway: str, term: int, report: LimitReport, now: float) -> LimitGrants:
        if not self._sight.owns(report.id, now):
            self._accounts.pop(report.id, None)  # another one begins with nothing; so does this one, should it return
            return LimitGrants(report.id, owned=False)
        account = self._account(report.id)
        account.used_at = now
        if (term, report.sequence) <= account.sequences.get(gateway, (0, 0)):
            return LimitGrants(report.id, owned=False)  # late: its sender does not wait for it any more
        account.sequences[gateway] = term, report.sequence
        known = self._known_limits(report.id)
        grants = tuple(self._grant(account, report.id, gateway, term, _bounded(use, known), now) for use in report.uses)
        return LimitGrants(report.id, owned=True, grants=grants)

    def _account(self, limit_id: str) -> Account:
        account = self._accounts.pop(limit_id, None)
        if account is None:
            if len(self._accounts) >= ACCOUNTS_MAX:
                del self._accounts[next(iter(self._accounts))]  # the one that was used the longest ago
                self._forgot_at = trio.current_time()
            account = Account()
        self._accounts[limit_id] = account
        return account

    def _known_limits(self, limit_id: str) -> KeyLimits | None:
        """What the feeds say; `None` where they say nothing (a session), or nothing yet."""
        kind, _, name = limit_id.partition(":")
        if not name.isascii():
            return None
        if kind == "owner":
            row = self._feeds.view.get(StandingRow, name)
            return None if row is None else row.limits
        key = self._feeds.view.get(KeyRow, name)
        return None if key is None or key.created is None else key.created.limits

    def _grant(self, account: Account, limit_id: str, gateway: str, term: int, use: LimitUse, now: float) -> LimitGrant:
        if use.kind == "requests" or use.kind == "tokens":
            rate = account.rates.get(use.kind)
            if rate is None:
                since = max(self._sight.owned_since(limit_id), self._forgot_at)
                rate = account.rates[use.kind] = Rate(use.limit, now, since=since)
            rate.advance(use.limit, self._sight.share(limit_id, now), now)
            return rate.lease(gateway, term, use, now)
        if use.kind == "concurrency":
            away = self._sight.gateways - round(self._sight.share(limit_id, now) * self._sight.gateways)
            capacity = use.limit - away * (use.limit // self._sight.gateways)
            settled = now >= self._sight.owned_since(limit_id) + LEASE_SECONDS  # by then all have said what runs
            return account.running.lease(gateway, term, use, now, capacity=capacity, lend=settled)
        return self._grant_budget(account, limit_id, gateway, term, use, now)

    def _grant_budget(
        self, account: Account, limit_id: str, gateway: str, term: int, use: LimitUse, now: float
    ) -> LimitGrant:
        if use.period not in self._periods():
            raise CallError("invalid", "That day or month is not now: set the gateway's clock.", param="period")
        budget = account.budgets.get(use.period)
        if budget is None:
            budget = account.budgets[use.period] = Budget()
        row = self._feeds.view.get(BudgetRow, budget_key(limit_id, use.period))
        if row is not None and row.period == use.period:
            budget.learn(row.used)
        account.limits[use.period] = use.limit
        base = budget.note(gateway, use)
        left = max(use.limit - budget.spent, 0)
        chunk = max(use.limit // CHUNKS_PER_BUDGET, 1)
        grant = budget.quota.lease(gateway, term, use, now, capacity=left, chunk=chunk)
        # What only this gateway has is no hope for it, unless requests of its own give some back: it knows.
        alone = not budget.quota.out_to_others(gateway, now)
        spent = grant.granted < use.needed and (left < use.needed or (alone and left - use.held < use.needed))
        return LimitGrant(
            granted=grant.granted,
            left=grant.left,
            retry_after_seconds=SPENT_RETRY_SECONDS if spent else grant.retry_after_seconds,
            base=base,
        )

    def _periods(self) -> frozenset[str]:
        """Today, and for clocks that are a little apart, what was and will be an hour from now."""
        days = {time.strftime("%Y-%m-%d", time.gmtime(self._clock.now() + hours * 3600)) for hours in (-1, 0, 1)}
        return frozenset(days | {day[:7] for day in days})

    async def keep(self) -> None:
        """Look who is there, write down what budgets have used, and forget who is at rest; until cancelled.

        Then what is not written yet is written.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sight.keep_looking)
                while True:
                    await trio.sleep(KEEP_SECONDS)
                    await self._write(lambda budget, limit: budget.is_due(limit))
                    self._forget(trio.current_time())
        finally:
            with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
                await self._write(lambda budget, limit: bool(budget.unwritten()))

    async def _write(self, is_due: Callable[[Budget, int], bool]) -> None:
        due = [
            (budget, BudgetSpent(id=limit_id, period=period, used=dict(budget.used)))
            for limit_id, account in self._accounts.items()
            for period, budget in account.budgets.items()
            if is_due(budget, account.limits[period])
        ][:OPS_PER_ENTRY]
        if not due:
            return
        said: Sequence[Op] = [op for _, op in due]

        def decide(_: View) -> Sequence[Op]:
            return said

        try:
            await self._feeds.append(decide)
        except CallError as error:
            log.warning("What budgets have used could not be written down; it is tried again: %s", error)
            return
        for budget, op in due:
            budget.learn(op.used)

    def _forget(self, now: float) -> None:
        """Accounts that are as if they had never been used, and days that have passed."""
        periods = self._periods()
        for limit_id, account in list(self._accounts.items()):
            for period in account.budgets.keys() - periods:
                del account.budgets[period], account.limits[period]
            if now - account.used_at <= 4 * LEASE_SECONDS:
                continue
            share = self._sight.share(limit_id, now)
            for rate in account.rates.values():
                rate.advance(rate.limit, share, now)
            written = all(not budget.unwritten() for budget in account.budgets.values())
            if written and not account.running.out(now) and all(rate.is_whole for rate in account.rates.values()):
                del self._accounts[limit_id]


def _bounded(use: LimitUse, known: KeyLimits | None) -> LimitUse:
    """The use with the limit that the feeds say, whatever its gateway believes."""
    if known is None:
        return use
    limit = {
        "requests": known.requests_per_minute,
        "tokens": known.tokens_per_minute,
        "concurrency": known.concurrency,
        "day": known.tokens_per_day,
        "month": known.tokens_per_month,
    }[use.kind]
    return use if limit is None or limit == use.limit else replace(use, limit=limit)
