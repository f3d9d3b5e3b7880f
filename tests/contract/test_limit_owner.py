"""What the auth role answers to gateways that report limits: honest ones, lying ones and those of its own process."""

import pytest
import trio
from trio.testing import MockClock

from covey.contracts.auth import CREATE_KEY, Actor, CreateKey, KeyLimits
from covey.contracts.limits import AMOUNT_MAX, LEASE_LIMITS, LeaseLimits, LimitGrant, LimitKind, LimitReport, LimitUse
from covey.errors import CallError
from covey.store.rows import BudgetRow, budget_key
from covey.store.view import View
from covey.testing.cluster import MemoryNode, open_memory_cluster

TODAY = "2027-01-15"


class Reporter:
    """A gateway in the auth node's own process."""

    def __init__(self, node: MemoryNode) -> None:
        self._bus = node.bus.stamped("gateway")
        self._me = str(node.peer_id)
        self.sequence = 0

    async def report(
        self, limit_id: str, kind: LimitKind, limit: int, *, sequence: int = 0, **fields: int
    ) -> LimitGrant:
        self.sequence += 1
        period = TODAY if kind == "day" else ""
        use = LimitUse(kind=kind, limit=limit, period=period, **fields)
        report = LimitReport(limit_id, sequence or self.sequence, (use,))
        answer = await self._bus.call(LEASE_LIMITS, LeaseLimits(1, (self._me,), (report,)))
        assert answer.gateways == 1
        (told,) = answer.limits
        return told.grants[0] if told.owned else LimitGrant(granted=-1)


async def test_a_network_of_one_begins_with_a_whole_burst(autojump_clock: MockClock) -> None:
    async with open_memory_cluster() as cluster:
        reporter = Reporter(await cluster.found("alice"))
        assert (await reporter.report("key:k", "requests", 60, needed=60)).granted == 60
        assert (await reporter.report("key:k", "requests", 60, held=60, needed=1)).granted == 0
        await trio.sleep(10)
        assert (await reporter.report("key:k", "requests", 60, needed=1)).left >= 7


async def test_a_limit_is_what_the_feeds_say(autojump_clock: MockClock) -> None:
    """Whatever a gateway would like it to be. Mutation: believe the gateway."""
    async with open_memory_cluster() as cluster:
        node = await cluster.found("alice")
        limits = KeyLimits(requests_per_minute=5, concurrency=2)
        key = await node.operator.call(CREATE_KEY, CreateKey(Actor(), limits=limits))
        reporter = Reporter(node)
        assert (await reporter.report(f"key:{key.id}", "requests", 10**6, needed=6)).granted == 0
        assert (await reporter.report(f"key:{key.id}", "requests", 10**6, needed=1, wanted=10**6)).granted == 5
        assert (await reporter.report(f"key:{key.id}", "concurrency", 50, needed=3)).granted == 0
        assert (await reporter.report(f"key:{key.id}", "concurrency", 50, needed=2)).granted == 2


async def test_what_comes_late_changes_nothing(autojump_clock: MockClock) -> None:
    async with open_memory_cluster() as cluster:
        reporter = Reporter(await cluster.found("alice"))
        assert (await reporter.report("key:k", "concurrency", 2, needed=2)).granted == 2
        assert (await reporter.report("key:k", "concurrency", 2, sequence=1, held=0)).granted == -1
        assert (await reporter.report("key:k", "concurrency", 2, held=2, needed=1)).granted == 0


@pytest.mark.parametrize("fields", [{"needed": -1}, {"held": AMOUNT_MAX + 1}, {"used": -5}])
async def test_impossible_amounts_are_refused(autojump_clock: MockClock, fields: dict[str, int]) -> None:
    async with open_memory_cluster() as cluster:
        reporter = Reporter(await cluster.found("alice"))
        with pytest.raises(CallError) as refused:
            await reporter.report("key:k", "requests", 60, **fields)
        assert refused.value.code == "invalid"


async def test_a_budget_is_written_down_by_twentieths_and_as_the_node_stops(autojump_clock: MockClock) -> None:
    async with open_memory_cluster() as cluster:
        node = await cluster.found("alice")
        reporter, row_key = Reporter(node), budget_key("key:k", TODAY)
        assert (await reporter.report("key:k", "day", 1000, needed=10)).base == 0
        await reporter.report("key:k", "day", 1000, used=40, base=0)
        await trio.sleep(5)
        assert View(node.store.reader).get(BudgetRow, row_key) is None
        await reporter.report("key:k", "day", 1000, used=60, base=0)
        await trio.sleep(5)
        row = View(node.store.reader).get(BudgetRow, row_key)
        assert row == BudgetRow(id=row_key, period=TODAY, used={str(node.peer_id): 60})
        await reporter.report("key:k", "day", 1000, used=70, base=0)
        await cluster.stop(node)
        await cluster.start(node)
        again = Reporter(node)
        told = await again.report("key:k", "day", 1000, needed=1000)
        assert (told.base, told.granted, told.left) == (70, 0, 930)
        with pytest.raises(CallError, match="clock"):
            await node.bus.stamped("gateway").call(
                LEASE_LIMITS,
                LeaseLimits(1, (), (LimitReport("key:k", 9, (LimitUse(kind="day", limit=9, period="1999-01-01"),)),)),
            )


async def test_a_rest_that_is_too_little_is_spent_and_not_only_lent(autojump_clock: MockClock) -> None:
    async with open_memory_cluster() as cluster:
        reporter = Reporter(await cluster.found("alice"))
        first = await reporter.report("key:k", "day", 60, needed=60)
        assert first.granted == 60
        # Five are left, all of them here: nobody else can give any back.
        short = await reporter.report("key:k", "day", 60, held=5, used=55, base=first.base, needed=2)
        assert short.granted == 0
        assert short.retry_after_seconds > 60
        assert (await reporter.report("key:k", "day", 60, held=0, used=55, base=first.base, needed=5)).granted == 5
