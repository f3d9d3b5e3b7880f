"""The store beside raw LevelDB: durable writes, the key check, catch-up, and what keys cost on disk and in memory.

    python -m bench.store [--seconds 2] [--keys 20000]

Every figure is for this machine, as busy as it is.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from statistics import median

import plyvel
import trio

from bench.figure import Figure, show
from covey.contracts.auth import KeyLimits
from covey.contracts.feeds import KeyCreate
from covey.store.checking import check_reader
from covey.store.feeds import Feeds, open_feeds
from covey.store.identity import Identity, verify
from covey.store.leveldb import open_leveldb
from covey.store.rows import KeyRow
from covey.store.view import row_key
from covey.store.writer import Store, open_store
from covey.telemetry.metrics import Metrics

WRITERS = 64
APPENDS_PER_SECOND_MIN = 5_000
KEYS = 20_000
CHECKS = 20_000
PER_KEYS = 100_000


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


async def durable_writes(store: Store, feeds: Feeds, folder: Path, seconds: float) -> list[Figure]:
    value, figures = os.urandom(1100), list[Figure]()

    async def put(number: int) -> None:
        await store.commit(lambda _: ([(b"l/bench/%016d" % number, value)], None))

    async def append(number: int) -> None:
        await feeds.append(lambda _: [key_create(number)])

    for writers in (1, WRITERS):
        raw = await trio.to_thread.run_sync(raw_puts, folder, seconds, writers)
        by, baseline = f"{writers} writer{'s' * (writers > 1)}", f"raw plyvel, {writers} a batch"
        for name, work in (("store.commit", put), ("feeds.append", append)):
            per_second, p50_seconds = await rate(work, writers, seconds)
            goal = APPENDS_PER_SECOND_MIN if (name, writers) == ("feeds.append", WRITERS) else None
            figures.append(Figure(f"{name}, durable, {by}", per_second, "/s", raw, baseline, goal_min=goal))
            figures.append(Figure(f"{name}, durable, {by}, p50", p50_seconds * 1e6, "µs"))
    return figures


def microseconds(check: Callable[[int], object]) -> float:
    """Of one check, over many keys in no order."""
    started = time.perf_counter()
    for number in range(CHECKS):
        check(number * 7919)
    return (time.perf_counter() - started) / CHECKS * 1e6


def key_checks(store: Store, feeds: Feeds, keys: int) -> Figure:
    """Reading a key's row, beside reading its bytes."""
    rows = [feeds.view.get(KeyRow, f"{number:012d}") for number in range(keys)]
    names = [row.id for row in rows if row is not None]
    places = [row_key(row) for row in rows if row is not None]
    assert len(names) == keys
    bare = microseconds(lambda number: store.reader.get(places[number % keys]))
    checked = microseconds(lambda number: feeds.view.get(KeyRow, names[number % keys]))
    return Figure("key check from the view", checked, "µs", bare, "a bare read")


def signature_checks(seconds: float) -> float:
    """A second, on one core."""
    identity, payload, count = Identity.generate(), os.urandom(300), 0
    signature = identity.sign("bench", payload)
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        assert verify(identity.peer_id, "bench", payload, signature)
        count += 1
    return count / (time.perf_counter() - started)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def fill(folder: Path, keys: int, seconds: float) -> list[Figure]:
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
        grown = resident_bytes() - before
        disk = sum(path.stat().st_size for path in (folder / "store").iterdir())
        stored = sum(len(key) + len(value) for key, value in store.reader.scan(b""))
        checks = key_checks(store, feeds, keys)
        started = time.perf_counter()
        report = await trio.to_thread.run_sync(check_reader, store.reader)
        verified = report.entries / (time.perf_counter() - started)
        assert not report.problems, report.problems
    per = PER_KEYS / keys / 1e6
    return [
        checks,
        Figure(f"on disk, per {PER_KEYS:,} keys", disk * per, "MB", stored * per, "its keys and values"),
        Figure(f"in memory, per {PER_KEYS:,} keys", grown * per, "MB"),
        Figure("verified and applied anew, on one core", verified, "/s", signature_checks(seconds), "signature checks"),
    ]


async def measure(seconds: float, keys: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with (
            open_store(open_leveldb(folder / "data"), Metrics()) as store,
            open_feeds(store, Identity.generate(), WallClock(), node_name="bench", found=True) as feeds,
        ):
            writes = await durable_writes(store, feeds, folder, seconds)
        return [*writes, *await fill(folder / "keys", keys, seconds)]


def run(seconds: float, keys: int = KEYS) -> Iterable[Figure]:
    """See `bench.figure`."""
    return trio.run(measure, seconds, keys)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--keys", type=int, default=KEYS, help="how many keys to fill a store with")
    arguments = parser.parse_args()
    show("store", run(arguments.seconds, arguments.keys))
