"""The replicated store: catching up, a new auth machine, and how soon a revoked key is dead, in real processes.

    python -m bench.replication [--seconds 2] [--keys 100000]

Catch-up is measured beside what it cannot do without, the bare verification of as many signatures; the machines are
real `covey` processes over libp2p on loopback.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import trio
from nacl.signing import SigningKey

from bench.figure import Figure, show
from bench.store import key_create
from covey.contracts.feeds import Op
from covey.store.feed_log import GENESIS_KEY
from covey.store.feeds import Author, SystemClock, open_feeds
from covey.store.identity import Identity, open_identity
from covey.store.ingest import batches_after, ingest, install, network_of
from covey.store.leveldb import open_leveldb
from covey.store.writer import open_store
from covey.telemetry.metrics import Metrics

CATCH_UP_KEYS = 20_000
KEYS = 100_000
REVOCATIONS = 100


async def fill(folder: Path, keys: int) -> Identity:
    """A network founded in this folder, with so many keys, each in an entry of its own as the auth role makes them."""
    identity = open_identity(folder)
    async with (
        open_store(open_leveldb(folder), Metrics()) as store,
        open_feeds(store, identity, SystemClock(), node_name="bench", found=True) as feeds,
    ):
        await feeds.recovery_key_shown()
        author = Author(identity, store.reader.get(GENESIS_KEY) or b"")

        async def write(lane: int) -> None:
            for number in range(lane, keys, 64):
                ops: Sequence[Op] = [key_create(number)]
                await store.commit(lambda reader, ops=ops: author.write(reader, ops, time.time()))  # type: ignore[misc]

        async with trio.open_nursery() as nursery:
            for lane in range(64):
                nursery.start_soon(write, lane)
    return identity


async def catch_up(source: Path, target: Path) -> tuple[float, float]:
    """Entries a second that an empty store takes in, by the clock and by the processor's time."""
    async with (
        open_store(open_leveldb(source), Metrics()) as store,
        open_store(open_leveldb(target), Metrics()) as mine,
    ):
        genesis = store.reader.get(GENESIS_KEY) or b""
        members = [entry for batch in batches_after(store.reader, "members", {}) for entry in batch]
        await install(mine, genesis, network_of(store.reader), members, now=time.time())
        batches = list(batches_after(store.reader, "keys", {}))
        began, cpu = time.perf_counter(), time.process_time()
        applied = 0
        for batch in batches:
            applied += (await ingest(mine, "keys", batch, now=time.time())).applied
        assert applied == sum(map(len, batches))
        return applied / (time.perf_counter() - began), applied / (time.process_time() - cpu)


def verifications() -> float:
    """Signatures of an entry's size that this machine verifies in a second on one core; the best of several tries."""
    key = SigningKey(b"v" * 32)
    signed, public = key.sign(os.urandom(300)), key.verify_key
    rates: list[float] = []
    for _ in range(10):
        began = time.process_time()
        for _ in range(1000):
            public.verify(signed)
        rates.append(1000 / (time.process_time() - began))
    return statistics.median(rates)


def run(seconds: float) -> Iterable[Figure]:
    """`seconds` says nothing here: as much is done as has to be."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        trio.run(fill, place / "source", CATCH_UP_KEYS)
        bare = verifications()
        by_clock, by_cpu = trio.run(catch_up, place / "source", place / "target")
        yield Figure("catch-up: verified and applied", by_clock, "1/s", bare, "bare verifications", goal_min=20_000)
        yield Figure("catch-up: for a second of processor time", by_cpu, "1/CPU s", bare, "bare verifications")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    show("replication", run(parser.parse_args().seconds))
