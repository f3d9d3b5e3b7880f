"""The owner of a limit: what it lends, whatever gateways say, and when."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.contracts.limits import (
    AMOUNT_MAX,
    LEASE_SECONDS,
    REPORTS_MAX,
    LeaseLimits,
    LimitReport,
    LimitUse,
    check_request,
    ranked,
)
from covey.errors import CallError
from covey.roles.auth.limits import Budget, Quota, Rate

FULL = float("-inf")


def use(**fields: int) -> LimitUse:
    return LimitUse(**{"kind": "requests", "limit": 60, **fields})  # type: ignore[arg-type]


def ask(rate: Rate, gateway: str, now: float, share: float = 1.0, **fields: int) -> int:
    rate.advance(60, share, now)
    return rate.lease(gateway, 1, use(**fields), now).granted


@dataclass
class Gateway:
    """An honest one, whose answers may be lost: it then knows of no grant."""

    name: str
    idle: int = 0
    until: float = 0.0
    spent: int = 0
    reserved: int = 0
    settled: int = 0
    returned: int = 0

    def report(self, now: float, needed: int) -> LimitUse:
        if now >= self.until:
            self.idle = 0
        return use(
            kind="tokens", needed=needed, wanted=needed, held=self.idle, spent=self.spent, reserved=self.reserved,
            settled=self.settled, returned=self.returned,
        )  # fmt: skip


events = st.tuples(
    st.sampled_from(["ask", "lose", "spend", "settle", "wait"]), st.integers(0, 2), st.integers(1, 70), st.floats(0, 30)
)


@given(st.lists(events, max_size=80))
def test_no_window_has_more_than_burst_and_rate_whatever_is_lost(story: list[tuple[str, int, int, float]]) -> None:
    """Three gateways, one limit of 60: every spending counts for what it turned out to be when it was reserved. The
    model is brute force: every window there is. Mutation: give back what was reserved however full the bucket is.
    """
    rate, now = Rate(60, 0.0, since=FULL), 0.0
    gateways = [Gateway(name) for name in "abc"]
    counted: list[list[float]] = []  # when, how much in the end
    open_charges: list[tuple[Gateway, list[float], int]] = []
    for what, number, amount, seconds in story:
        gateway = gateways[number]
        if what == "wait":
            now += seconds
        elif what in ("ask", "lose"):
            rate.advance(60, 1.0, now)
            grant = rate.lease(gateway.name, 1, gateway.report(now, amount), now)
            if what == "ask":
                gateway.idle, gateway.until = gateway.idle + grant.granted, now + LEASE_SECONDS
        elif what == "spend" and now < gateway.until and gateway.idle >= amount:
            gateway.idle -= amount
            gateway.spent += amount
            gateway.reserved += amount
            counted.append([now, amount])
            open_charges.append((gateway, counted[-1], amount))
        elif what == "settle" and open_charges:
            owner, entry, reserved = open_charges.pop(number % len(open_charges))
            really = amount % (reserved + 1)
            entry[1] = really
            owner.settled += reserved
            owner.returned += reserved - really
    for first in range(len(counted)):
        for last in range(first, len(counted)):
            seconds = counted[last][0] - counted[first][0]
            assert sum(much for _, much in counted[first : last + 1]) <= 60 + seconds + 1e-6


def test_it_begins_with_what_nobody_else_can_have_lent() -> None:
    """Mutation: a new owner begins with a full burst."""
    assert ask(Rate(60, 100.0, since=100.0), "a", 100.0, needed=1) == 0
    assert ask(Rate(60, 100.0, since=90.0), "a", 100.0, needed=10) == 10
    assert ask(Rate(60, 100.0, since=90.0), "a", 100.0, needed=11) == 0
    assert ask(Rate(60, 100.0, since=FULL), "a", 100.0, needed=60) == 60
    nothing = Rate(0, 100.0, since=FULL)
    nothing.advance(0, 1.0, 200.0)
    assert nothing.lease("a", 1, use(limit=0, needed=1), 200.0).retry_after_seconds == LEASE_SECONDS


def test_a_chunk_is_lent_and_more_where_there_is_plenty() -> None:
    rate = Rate(60, 0.0, since=FULL)
    assert ask(rate, "a", 0.0, needed=1) == 3
    assert ask(rate, "a", 0.0, held=3) == 0
    assert ask(rate, "b", 0.0, needed=1, wanted=20) == 20
    assert rate.limit == 60


def test_who_asks_for_an_absurd_amount_gets_what_there_is_or_nothing() -> None:
    rate = Rate(60, 0.0, since=FULL)
    assert ask(rate, "a", 0.0, needed=AMOUNT_MAX) == 0
    assert ask(rate, "a", 0.0, needed=1, wanted=AMOUNT_MAX) == 60
    rate.advance(60, 1.0, 1.0)
    grant = rate.lease("b", 1, use(needed=1), 1.0)
    assert (grant.granted, grant.left) == (0, 0)  # what is out keeps it from filling
    assert ask(rate, "b", LEASE_SECONDS + 1.5, needed=1) == 1  # it never settled: its lease is over


def test_what_is_given_back_is_there_again_and_never_more_than_was_lent() -> None:
    rate = Rate(60, 0.0, since=FULL)
    assert ask(rate, "a", 0.0, needed=60) == 60
    assert ask(rate, "a", 0.0, held=AMOUNT_MAX, returned=AMOUNT_MAX, settled=AMOUNT_MAX) == 0
    assert ask(rate, "b", 0.0, needed=1) == 0
    ask(rate, "a", 0.0, held=20, spent=10, settled=AMOUNT_MAX, returned=AMOUNT_MAX)
    assert ask(rate, "b", 0.0, needed=31) == 0
    assert ask(rate, "b", 0.0, needed=30) == 30


def test_what_was_used_beyond_what_was_reserved_is_owed() -> None:
    rate = Rate(60, 0.0, since=FULL)
    assert ask(rate, "a", 0.0, needed=60) == 60
    rate.advance(60, 1.0, 0.0)
    assert rate.lease("a", 1, use(spent=60, overdrawn=30, needed=1), 0.0).retry_after_seconds == 31.0
    assert ask(rate, "a", 31.0, needed=1, spent=60, overdrawn=30) == 1


def test_what_was_reserved_comes_back_as_far_as_the_bucket_has_not_filled_since() -> None:
    """A long answer: 50 are reserved, of which 10 are used. Mutations: forget who reserved when its lease ends; let it
    all come back, however much the bucket has gained meanwhile.
    """
    for seconds, spent_since, expected in ((5.0, 0, 55), (5.0, 10, 45), (30.0, 0, 60), (60.0, 60, 0), (90.0, 60, 30)):
        rate = Rate(60, 0.0, since=FULL)
        assert ask(rate, "a", 0.0, needed=50) == 50
        ask(rate, "a", 0.0, spent=50, reserved=50)
        at = min(seconds, 60.0)
        assert not spent_since or ask(rate, "b", at, needed=spent_since) == spent_since
        ask(rate, "b", at, spent=spent_since)
        ask(rate, "a", seconds, spent=50, reserved=50, settled=50, returned=40)
        assert ask(rate, "c", seconds, needed=expected + 1) == 0, seconds
        assert not expected or ask(rate, "c", seconds, needed=expected) == expected
    silent = Rate(60, 0.0, since=FULL)
    ask(silent, "a", 0.0, needed=50)
    ask(silent, "a", 0.0, spent=50, reserved=50)
    silent.advance(60, 1.0, 1000.0)
    assert not silent.is_whole
    silent.advance(60, 1.0, 5000.0)
    assert silent.is_whole


def test_less_of_a_limit_is_lent_while_gateways_are_away() -> None:
    rate = Rate(60, 0.0, since=FULL)
    assert ask(rate, "a", 0.0, share=0.25, needed=16) == 0
    assert ask(rate, "a", 0.0, share=0.25, needed=15) == 15
    rate.advance(60, 0.25, 40.0)
    assert not rate.is_whole
    rate.advance(60, 0.25, 80.0)
    assert rate.is_whole


def test_a_gateways_new_process_is_another_holder() -> None:
    rate = Rate(60, 0.0, since=FULL)
    assert ask(rate, "a", 0.0, needed=60) == 60
    rate.advance(60, 1.0, 0.0)
    assert rate.lease("a", 2, use(needed=1), 0.0).granted == 0


def test_parts_of_a_quota_come_back_when_their_holder_is_silent() -> None:
    quota = Quota()
    assert quota.lease("a", 1, use(limit=3, needed=2), 0.0, capacity=3).granted == 2
    assert quota.lease("b", 1, use(limit=3, needed=2), 0.0, capacity=3).retry_after_seconds > 0
    assert quota.lease("b", 1, use(limit=3, needed=1), 0.0, capacity=3, lend=False).granted == 0
    assert quota.out(1.0) == 2
    assert quota.lease("b", 1, use(limit=3, needed=2), LEASE_SECONDS, capacity=3).granted == 2
    assert quota.lease("b", 1, use(limit=3, held=AMOUNT_MAX), 3.0, capacity=3).left == 0
    assert quota.lease("b", 1, use(limit=3), 3.0, capacity=3).left == 3
    assert quota.is_whole


def test_a_budget_counts_totals() -> None:
    budget = Budget()
    assert budget.note("a", use(used=0)) == 0
    assert budget.note("a", use(used=10, base=0)) == 0
    assert budget.note("a", use(used=10, base=0)) == 0  # said twice
    assert budget.note("b", use(used=5)) == 0
    assert budget.spent == 15
    assert budget.is_due(200)
    assert not budget.is_due(400)
    assert budget.unwritten() == {"a": 10, "b": 5}
    budget.learn({"a": 10, "c": 100})
    assert budget.unwritten() == {"b": 5}
    assert budget.spent == 115
    assert budget.note("c", use(used=1)) == 100  # began anew: it goes on from there
    assert budget.note("c", use(used=3, base=100)) == 100
    assert budget.spent == 10 + 5 + 103


def test_everybody_ranks_nodes_alike_and_evenly() -> None:
    nodes = ["n1", "n2", "n3"]
    first = [ranked(f"key:{number}", nodes)[0] for number in range(3000)]
    assert first == [ranked(f"key:{number}", reversed(nodes))[0] for number in range(3000)]
    assert all(900 < first.count(node) < 1100 for node in nodes)
    moved = [ranked(f"key:{number}", ["n1", "n2"])[0] for number in range(3000)]
    assert all(then == now for then, now in zip(first, moved, strict=True) if then != "n3")


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (LeaseLimits(1, (), (LimitReport("k", 1, (use(),)),)), ""),
        (LeaseLimits(1, (), (LimitReport("k", 1, ()),) * (REPORTS_MAX + 1)), "too_large"),
        (LeaseLimits(1, ("n",) * 300), "too_large"),
        (LeaseLimits(1, (), (LimitReport("", 1, ()),)), "invalid"),
        (LeaseLimits(1, (), (LimitReport("k" * 200, 1, ()),)), "invalid"),
        (LeaseLimits(1, (), (LimitReport("k", 1, (use(),) * 11),)), "invalid"),
        (LeaseLimits(1, (), (LimitReport("k", 1, (use(spent=-1),)),)), "invalid"),
        (LeaseLimits(1, (), (LimitReport("k", 1, (use(needed=AMOUNT_MAX + 1),)),)), "invalid"),
        (LeaseLimits(1, (), (LimitReport("k", 1, (use(base=AMOUNT_MAX + 1),)),)), "invalid"),
    ],
)
def test_what_no_gateway_says_is_refused(request_: LeaseLimits, code: str) -> None:
    if not code:
        check_request(request_)
        return
    with pytest.raises(CallError) as refused:
        check_request(request_)
    assert refused.value.code == code
