"""The store beside raw LevelDB: durable writes, the key check, catch-up, and what keys cost on disk and in memory.

`python -m bench.store [--seconds 2] [--keys 20000]`. Every figure is for this machine, as busy as it is.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import plyvel
import trio

from covey.contracts.auth import KeyLimits
from covey.contracts.feeds import KeyCreate
from covey.store.checking import check_reader
from covey.store.feeds import Feeds, open_feeds
from covey.store.identity import Identity
from covey.store.leveldb import open_leveldb
from covey.store.rows import KeyRow
from covey.store.writer import Store, open_store
from covey.telemetry.metrics import Metrics

WRITERS = 64


class WallClock:
    """Unix seconds."""

    def now(self) -> float:
        return time.time()


def key_create(number: int) -> KeyCreate:
    """A key as the auth role makes them."""
    return KeyCreate(
        id=f"{number:012d}", owner="a" * 16, digest=os.urandom(32), prefix="cvy_abcdef", label="laptop", models=(),
        limits=KeyLimits(), created_at=1_700_000_000, expires_at=None, by="a" * 16,
    )  # fmt: skip


def raw_puts(folder: Path, seconds: float, per_batch: int) -> float:
    """Durable puts a second straight through plyvel, of the bytes that one append writes."""
    database = plyvel.DB(str(folder / "raw"), create_if_missing=True, write_buffer_size=32 * 1024 * 1024)
    value, count, started = os.urandom(1100), 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        with database.write_batch(transaction=True, sync=True) as batch:
            for _ in range(per_batch):
                batch.put(b"e/%016d" % count, value)
                count += 1
    database.close()
    return count / (time.perf_counter() - started)


async def rate(work: Callable[[int], Awaitable[object]], writers: int, seconds: float) -> tuple[float, float]:
    """How many a second, and the median seconds that one took."""
    took: list[float] = []
    started = time.perf_counter()

    async def write(lane: int) -> None:
        number = lane
        while time.perf_counter() - started < seconds:
            before = time.perf_counter()
            await work(number)
            took.append(time.perf_counter() - before)
            number += writers

    async with trio.open_nursery() as nursery:
        for lane in range(writers):
            nursery.start_soon(write, lane)
    return len(took) / (time.perf_counter() - started), median(took)


async def durable_writes(store: Store, feeds: Feeds, folder: Path, seconds: float) -> None:
    value = os.urandom(1100)

    async def put(number: int) -> None:
        await store.commit(lambda _: ([(b"l/bench/%016d" % number, value)], None))

    async def append(number: int) -> None:
        await feeds.append(lambda _: [key_create(number)])

    for writers in (1, WRITERS):
        raw = await trio.to_thread.run_sync(raw_puts, folder, seconds, writers)
        puts, put_seconds = await rate(put, writers, seconds)
        appends, append_seconds = await rate(append, writers, seconds)
        print(f"{writers} writer{'s' * (writers > 1)}, durable:")
        print(f"  raw plyvel, {writers} a batch {raw:10,.0f}/s")
        for name, per_second, p50 in (("store.commit", puts, put_seconds), ("feeds.append", appends, append_seconds)):
            print(f"  {name:21} {per_second:10,.0f}/s  {per_second / raw:5.2f} of raw, p50 {p50 * 1e6:,.0f} µs")


def key_checks(feeds: Feeds, keys: int) -> None:
    names = [f"{number * 7919 % keys:012d}" for number in range(20_000)]
    started = time.perf_counter()
    for name in names:
        feeds.view.get(KeyRow, name)
    print(f"key check from the view: {(time.perf_counter() - started) / len(names) * 1e6:.1f} µs")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def fill(folder: Path, keys: int) -> None:
    before = resident_bytes()
    async with (
        open_store(open_leveldb(folder), Metrics()) as store,
        open_feeds(store, Identity.generate(), WallClock(), node_name="bench", found=True) as feeds,
    ):

        async def fill_lane(lane: int) -> None:
            for number in range(lane, keys, WRITERS):
                await feeds.append(lambda _, number=number: [key_create(number)])  # type: ignore[misc]

        async with trio.open_nursery() as nursery:
            for lane in range(WRITERS):
                nursery.start_soon(fill_lane, lane)
        key_checks(feeds, keys)
        grown = resident_bytes() - before
        disk = sum(path.stat().st_size for path in (folder / "store").iterdir())
        disk_mb, memory_mb = disk / keys / 10, grown / keys / 10
        print(f"per 100,000 keys: {disk_mb:.0f} MB on disk, {memory_mb:.0f} MB resident (from {keys:,})")
        started = time.perf_counter()
        report = await trio.to_thread.run_sync(check_reader, store.reader)
        assert not report.problems, report.problems
        print(
            f"verified and applied anew: {report.entries / (time.perf_counter() - started):,.0f} entries/s on one core"
        )


async def main(seconds: float, keys: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            open_store(open_leveldb(folder / "data"), Metrics()) as store,
            open_feeds(store, Identity.generate(), WallClock(), node_name="bench", found=True) as feeds,
        ):
            await durable_writes(store, feeds, folder, seconds)
        await fill(folder / "keys", keys)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each figure is measured")
    parser.add_argument("--keys", type=int, default=20_000, help="how many keys to fill a store with")
    arguments = parser.parse_args()
    trio.run(main, arguments.seconds, arguments.keys)
