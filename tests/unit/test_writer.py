"""The one writer: order, grouping, isolation of failures, cancellation and closing."""

import threading
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from covey.errors import CallError
from covey.store.kv import Batch, Reader, StoreError
from covey.store.memory import MemoryStore
from covey.store.writer import GROUP_PLANS_MAX, QUEUE_MAX, Store, open_store
from covey.telemetry.metrics import Metrics


class GatedStore(MemoryStore):
    """Writes wait at a gate, and fail when told to."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.writing = threading.Event()
        self.batches: list[Batch] = []
        self.failure: Exception | None = None
        super().__init__()

    def write(self, batch: Batch) -> None:
        self.writing.set()
        assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        self.batches.append(batch)
        super().write(batch)

    async def until_writing(self) -> None:
        assert await trio.to_thread.run_sync(self.writing.wait, 10)


def put(key: bytes, value: bytes = b"") -> "object":
    def plan(reader: Reader) -> tuple[Batch, bytes]:
        return [(key, value)], key

    return plan


def increment(reader: Reader) -> tuple[Batch, int]:
    count = int(reader.get(b"count") or b"0") + 1
    return [(b"count", str(count).encode())], count


async def gather(store: Store, plans: Sequence[object]) -> list[object]:
    results: list[object] = [None] * len(plans)

    async def one(place: int) -> None:
        try:
            results[place] = await store.commit(plans[place])  # type: ignore[arg-type]
        except CallError as error:
            results[place] = error

    async with trio.open_nursery() as nursery:
        for place in range(len(plans)):
            nursery.start_soon(one, place)
    return results


async def test_each_plan_sees_those_before_it() -> None:
    kv = MemoryStore()
    async with open_store(kv, Metrics()) as store:
        results = await gather(store, [increment] * 500)
        assert sorted(results) == list(range(1, 501))  # type: ignore[type-var]
        assert store.reader.get(b"count") == b"500"


async def test_what_waits_goes_to_the_disk_together() -> None:
    kv, metrics = GatedStore(), Metrics()
    async with open_store(kv, metrics) as store, trio.open_nursery() as nursery:
        kv.batches.clear()
        kv.gate.clear()
        kv.writing.clear()
        nursery.start_soon(store.commit, put(b"first"))
        await kv.until_writing()
        for n in range(50):
            nursery.start_soon(store.commit, put(b"%d" % n))
        await trio.testing.wait_all_tasks_blocked()
        assert store.reader.get(b"first") is None  # readers see what is durable
        kv.gate.set()
    assert [len(batch) for batch in kv.batches] == [1, 50]
    assert metrics.registry.get_sample_value("covey_store_commits_total") == 2
    assert metrics.registry.get_sample_value("covey_store_writes_total") == 51


async def test_more_than_the_queue_holds_waits_its_turn() -> None:
    kv = GatedStore()
    async with open_store(kv, Metrics()) as store, trio.open_nursery() as nursery:
        kv.gate.clear()
        total = QUEUE_MAX + GROUP_PLANS_MAX + 100
        for _ in range(total):
            nursery.start_soon(store.commit, increment)
        await trio.testing.wait_all_tasks_blocked()
        kv.gate.set()
    assert kv.batches[-1] == [(b"count", str(total).encode())]


async def test_a_plan_that_refuses_touches_nobody_else() -> None:
    def refuse(reader: Reader) -> tuple[Batch, None]:
        raise CallError("conflict", "taken")

    def broken(reader: Reader) -> tuple[Batch, None]:
        raise ZeroDivisionError

    async with open_store(MemoryStore(), Metrics()) as store:
        results = await gather(store, [put(b"a"), refuse, put(b"b")])
        assert results[0] == b"a"
        assert results[2] == b"b"
        assert isinstance(results[1], CallError)
        assert results[1].code == "conflict"
        with pytest.raises(ZeroDivisionError):
            await store.commit(broken)
        assert await store.commit(put(b"c")) == b"c"  # type: ignore[arg-type]


@pytest.mark.parametrize("failure", [StoreError("The disk is full: free some.", reason="full"), OSError("odd")])
async def test_a_failed_write_fails_its_whole_group_and_leaves_no_trace(failure: Exception) -> None:
    kv = GatedStore()
    async with open_store(kv, Metrics()) as store:
        await store.commit(increment)
        kv.failure = failure
        with pytest.raises(type(failure)):
            await store.commit(increment)
        results: list[Exception] = []

        async def one() -> None:
            with pytest.raises(type(failure)) as refusal:
                await store.commit(increment)
            results.append(refusal.value)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(one)
        assert len(results) == 20
        kv.failure = None
        assert store.reader.get(b"count") == b"1"
        assert await store.commit(increment) == 2


async def test_a_waiter_that_gives_up_is_dropped_or_written_whole() -> None:
    kv = GatedStore()
    async with open_store(kv, Metrics()) as store, trio.open_nursery() as nursery:
        kv.gate.clear()
        kv.writing.clear()
        early, late = trio.CancelScope(), trio.CancelScope()

        async def commit(scope: trio.CancelScope, key: bytes) -> None:
            with scope:
                await store.commit(put(key))  # type: ignore[arg-type]

        nursery.start_soon(commit, early, b"in the batch")
        await kv.until_writing()
        nursery.start_soon(commit, late, b"in the queue")
        nursery.start_soon(store.commit, put(b"behind"))
        await trio.testing.wait_all_tasks_blocked()
        early.cancel()
        late.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert early.cancelled_caught
        assert late.cancelled_caught
        kv.gate.set()
    written = {key for batch in kv.batches for key, _ in batch}
    assert b"in the batch" in written
    assert b"in the queue" not in written
    assert b"behind" in written


async def test_closing_writes_what_was_accepted_then_closes() -> None:
    kv = GatedStore()
    results: list[object] = []

    async def commit(store: Store, key: bytes) -> None:
        results.append(await store.commit(put(key)))  # type: ignore[arg-type]

    async with trio.open_nursery() as nursery:
        async with open_store(kv, Metrics()) as store:
            kv.gate.clear()
            kv.writing.clear()
            nursery.start_soon(commit, store, b"1")
            await kv.until_writing()
            nursery.start_soon(commit, store, b"2")
            await trio.testing.wait_all_tasks_blocked()
            kv.gate.set()
        with pytest.raises(StoreError, match="closed"):
            await store.commit(increment)
        with pytest.raises(StoreError, match="closed"):
            store.reader.get(b"1")
    assert sorted(results) == [b"1", b"2"]  # type: ignore[type-var]
    assert {key for batch in kv.batches for key, _ in batch} >= {b"1", b"2"}


async def test_a_cancelled_node_still_writes_what_was_accepted() -> None:
    """One write is on its way and one waits; who waits for it is not cancelled, and is told the truth."""
    kv = GatedStore()
    results: list[object] = []

    async def commit(store: Store, key: bytes) -> None:
        results.append(await store.commit(put(key)))  # type: ignore[arg-type]

    with trio.fail_after(10):
        async with trio.open_nursery() as outside:
            with trio.CancelScope() as scope:
                async with open_store(kv, Metrics()) as store:
                    kv.gate.clear()
                    kv.writing.clear()
                    outside.start_soon(commit, store, b"1")
                    await kv.until_writing()
                    outside.start_soon(commit, store, b"2")
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
                    kv.gate.set()
    assert results == [b"1", b"2"]
    assert {key for batch in kv.batches for key, _ in batch} >= {b"1", b"2"}


async def test_local_rows() -> None:
    async with open_store(MemoryStore(), Metrics()) as store:
        usage, other = store.local("usage"), store.local("other")
        await usage.put_all([(b"a/1", b"x"), (b"a/2", b"y"), (b"b", b"z")])
        await other.put(b"a/1", b"else")
        assert usage.get(b"a/1") == b"x"
        assert list(usage.scan(b"a/")) == [(b"a/1", b"x"), (b"a/2", b"y")]
        assert list(usage.scan(start=b"a/2", reverse=True, limit=1)) == [(b"a/2", b"y")]
        await usage.delete(b"a/1")
        assert usage.get(b"a/1") is None
        assert other.get(b"a/1") == b"else"
        with pytest.raises(ValueError, match="plain word"):
            store.local("a/b")
