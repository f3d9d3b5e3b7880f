"""The gateway's book of usage: what is written, what is forgotten, what is found again."""

import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from test_usage_sums import NOON, record

from covey.contracts.usage import Dimension, UsageRecord
from covey.contracts.usage_sums import total
from covey.errors import CallError
from covey.roles.gateway import usage
from covey.roles.gateway.usage import UsageBook
from covey.roles.gateway.usage_rows import AREA, DAYS, HOURS, RECORDS, Counts, Question, Retention, read_counts
from covey.store.kv import Batch, KeyValues, StoreError
from covey.store.leveldb import open_leveldb
from covey.store.memory import MemoryStore
from covey.store.writer import Store, open_store
from covey.telemetry.metrics import Metrics

DAY = 86_400.0


class Clock:
    def __init__(self, at: float = NOON) -> None:
        self.at = at

    def now(self) -> float:
        return self.at


class World:
    """A store, a clock, and a book that writes."""

    def __init__(self, kv: KeyValues, store: Store, retention: Retention) -> None:
        self.kv = kv
        self.store = store
        self.clock = Clock()
        self.book = UsageBook(store, self.clock, Metrics(), retention)

    async def settle(self) -> None:
        """Until what was recorded is written, and what is too much is gone."""
        await trio.sleep(1.5)

    async def sums(
        self, since: float = NOON - 40 * DAY, until: float = NOON + DAY, by: Sequence[Dimension] = (), **more: str
    ) -> dict[tuple[str, ...], tuple[int, int]]:
        rows = await self.book.rows(Question(since, until, **more), tuple(by))
        return {row.group: (row.sums.requests, row.sums.prompt_tokens) for row in rows}

    async def records(self, since: float = 0.0, until: float = NOON + DAY, **more: str) -> list[UsageRecord]:
        found: list[UsageRecord] = []

        async def take(records: tuple[UsageRecord, ...]) -> None:
            found.extend(records)

        await self.book.records(Question(since, until, **more), take)
        return found

    def counted(self) -> Counts:
        """What the counts say, which must be so."""
        key = self.store.local(AREA).key
        counts = read_counts(self.kv, key)
        there = [len([*self.kv.scan(key(prefix))]) for prefix in (RECORDS, HOURS, DAYS)]
        assert [counts.records, counts.hours, counts.days] == there
        return counts


@asynccontextmanager
async def world(
    kv: KeyValues | None = None, *, in_thread: bool = False, run: bool = True, **keep: Any
) -> AsyncGenerator[World, None]:
    kv = kv or MemoryStore()
    async with open_store(kv, Metrics(), in_thread=in_thread) as store, trio.open_nursery() as nursery:
        one = World(kv, store, replace(Retention(), **keep))
        if run:
            nursery.start_soon(one.book.run)
            await trio.testing.wait_all_tasks_blocked()
        yield one
        nursery.cancel_scope.cancel()


async def test_what_was_recorded_is_seen_at_once_and_stays(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as one:
        for number in range(5):
            one.book.record(record(NOON + number, request_id=str(number)))
        before = await one.sums(), await one.records()
        assert before[0] == {(): (5, 35)}
        assert [each.request_id for each in before[1]] == list("01234")
        await one.settle()
        assert (await one.sums(), await one.records()) == before
        assert one.counted() == Counts(5, 1, 1, 5)


async def test_totals_are_by_whatever_is_asked(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as one:
        one.book.record(record(NOON))
        one.book.record(record(NOON + 3600, model="big", owner="a2", key_id="k2"))
        await one.settle()
        one.book.record(record(NOON - DAY, node="", outcome="no_capacity", route="/v1/embeddings"))
        one.book.record(record(NOON + 3601, model="big", owner="a2", key_id="k2"))
        assert await one.sums(by=("day",)) == {("2025-11-24",): (1, 7), ("2025-11-25",): (3, 21)}
        assert await one.sums(by=("model", "day")) == {
            ("big", "2025-11-25"): (2, 14), ("tiny", "2025-11-24"): (1, 7), ("tiny", "2025-11-25"): (1, 7),
        }  # fmt: skip
        assert len(await one.sums(by=("hour",))) == 3
        assert set(await one.sums(by=("node", "outcome", "route"))) == {
            ("", "no_capacity", "/v1/embeddings"), ("alpha", "ok", "/v1/chat"),
        }  # fmt: skip
        assert await one.sums(by=("user",), user="a2") == {("a2",): (2, 14)}
        assert await one.sums(key="k1", model="big") == {}
        assert [each.model for each in await one.records(user="a2")] == ["big", "big"]
        assert await one.sums(NOON + 3700, NOON + 3800, user="a2") == {(): (2, 14)}, "whole hours"
        assert await one.sums(NOON + 7200, NOON + 9000) == {}
        assert await one.sums(NOON - DAY, NOON - DAY + 1) == {(): (1, 7)}
        assert [each.ended_at for each in await one.records(NOON, NOON + 3601)] == [NOON, NOON + 3600]


async def test_a_restart_finds_all_of_it(tmp_path: Path) -> None:
    for start in range(3):
        async with world(open_leveldb(tmp_path), in_thread=True) as one:
            assert len(await one.records()) == start * 700
            for _ in range(700):  # at one and the same moment, and more than one batch
                one.book.record(record())
        # no time to write but on the way out
    async with world(open_leveldb(tmp_path), in_thread=True) as one:
        assert await one.sums() == {(): (2100, 14_700)}
        assert one.counted() == Counts(2100, 1, 1, 2100)


async def test_the_old_is_forgotten_and_its_totals_later(autojump_clock: trio.testing.MockClock) -> None:
    async with world(records_days=30, days=400) as one:
        for days in range(0, 500, 10):
            one.book.record(record(NOON - days * DAY))
        await one.settle()
        assert one.counted() == Counts(4, 4, 41, 50)
        assert len(await one.sums(NOON - 499 * DAY, NOON + 1, by=("day",))) == 41
        one.clock.at += 11 * DAY
        await trio.sleep(usage.PRUNE_SECONDS + 2)
        assert one.counted() == Counts(2, 2, 39, 50)


async def test_there_is_only_so_much_and_the_oldest_goes_first(autojump_clock: trio.testing.MockClock) -> None:
    async with world(records_max=1000, totals_max=3) as one:
        for number in range(2500):
            one.book.record(record(NOON + number, owner=f"a{number % 5}", request_id=str(number)))
        await one.settle()
        assert one.counted() == Counts(1000, 3, 3, 2500)
        assert [each.request_id for each in await one.records()] == [str(number) for number in range(1500, 2500)]


async def test_many_are_handed_on_in_parts(autojump_clock: trio.testing.MockClock) -> None:
    sizes: list[int] = []

    async def take(records: tuple[UsageRecord, ...]) -> None:
        sizes.append(len(records))

    async with world() as one:
        for number in range(450):
            one.book.record(record(NOON + number))
        await one.settle()
        await one.book.records(Question(0, NOON + DAY), take)
        assert sizes == [200, 200, 50]


class Full(MemoryStore):
    """A disk that is full until it is not."""

    full = False
    attempts = 0

    def write(self, batch: Batch) -> None:
        self.attempts += 1
        if self.full:
            raise StoreError("The disk under x is full: free some space.", reason="full")
        super().write(batch)


async def test_a_full_disk_is_said_once_and_costs_bounded_memory(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "PENDING_MAX", 10)
    disk = Full()
    async with world(disk) as one:
        disk.full = True
        with caplog.at_level(logging.WARNING, logger=usage.__name__):
            for number in range(12):
                one.book.record(record(NOON + number))
            await trio.sleep(600)
            ours = [each for each in caplog.records if each.name == usage.__name__]
            assert len(ours) == 1
            assert "disk under x is full" in caplog.text
            assert disk.attempts < 20
            assert await one.sums() == {(): (10, 70)}
            disk.full = False
            await trio.sleep(120)
            assert "2 requests were not kept" in caplog.text
        assert one.counted() == Counts(10, 1, 1, 10)


async def test_a_burst_beyond_what_waits_is_said(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "PENDING_MAX", 10)
    async with world() as one:
        for number in range(15):
            one.book.record(record(NOON + number))
        await one.settle()
    assert "usage of 5 requests was not kept" in caplog.text


async def test_a_closed_store_does_not_end_the_gateway(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    disk = Full()
    async with world(disk) as one:
        await one.settle()
        one.book.record(record())
        await one.settle()
        disk.full = True
        one.clock.at += 500 * DAY
        await trio.sleep(usage.PRUNE_SECONDS + 2)
        assert "disk under x is full" in caplog.text
        assert await one.sums() == {(): (1, 7)}


@pytest.mark.parametrize("at", [-5.0, 0.0, 1e12])
async def test_a_clock_that_is_wrong_breaks_nothing(autojump_clock: trio.testing.MockClock, at: float) -> None:
    async with world(run=False) as one:
        one.book.record(record(at))
        await one.book.flush()
        assert one.counted() == Counts(1, 1, 1, 1)


async def test_too_many_lines_are_refused(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "GROUPS_MAX", 3)
    async with world() as one:
        for number in range(5):
            one.book.record(record(key_id=str(number)))
        with pytest.raises(CallError) as refused:
            await one.sums(by=("key",))
        assert refused.value.code == "too_large"
        assert total(await one.book.rows(Question(0, NOON + DAY), ("user",))).requests == 5


async def test_a_disk_that_stalls_holds_nothing_up_for_long(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stall(plan: object) -> None:
        await trio.sleep_forever()

    async with world() as one:
        one.book.record(record())
        monkeypatch.setattr(one.store, "commit", stall)
        with trio.fail_after(usage.COMMIT_SECONDS_MAX + 3):
            await one.book.flush()
            assert await one.sums() == {}
        assert "1 records of usage may be lost, or not" in caplog.text


async def test_what_a_repair_saved_in_part_is_left_out(autojump_clock: trio.testing.MockClock) -> None:
    async with world() as one:
        for number in range(3):
            one.book.record(record(NOON + number, owner=f"a{number}"))
        await one.book.flush()
        key = one.store.local(AREA).key
        broken = [next(one.kv.scan(key(kind)))[0] for kind in (RECORDS, HOURS, DAYS)]
        one.kv.write([(name, b"\xc1") for name in broken] + [(key(b"counts"), b"")])
        assert len(await one.records()) == 2
        assert sum(requests for requests, _ in (await one.sums(by=("user",))).values()) == 2
        for number in range(3):
            one.book.record(record(NOON + number, owner=f"a{number}"))
        await one.book.flush()
        assert sum(requests for requests, _ in (await one.sums(by=("user",))).values()) == 5
        one.clock.at += 500 * DAY
        await trio.sleep(usage.PRUNE_SECONDS + 2)
        assert one.counted().records == 0


async def test_leaving_in_the_middle_of_a_write_counts_once(tmp_path: Path) -> None:
    async with world(open_leveldb(tmp_path), in_thread=True) as one:
        for _ in range(300):
            one.book.record(record())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.book.flush)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    async with world(open_leveldb(tmp_path), in_thread=True) as one:
        assert await one.sums() == {(): (300, 2100)}
        one.counted()
