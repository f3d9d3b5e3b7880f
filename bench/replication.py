"""The replicated store: catching up, a new auth machine, and how soon a revoked key is dead, in real processes.

    python -m bench.replication [--seconds 2]

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

import httpx
import trio
from nacl.signing import SigningKey

from bench.figure import Figure, show
from bench.processes import Machine, place, until
from bench.store import key_create
from covey.contracts.auth import CREATE_KEY, REVOKE_KEY, Actor, CreateKey, RevokeKey
from covey.contracts.feeds import Op
from covey.store.feed_log import GENESIS_KEY
from covey.store.feeds import Author, SystemClock, open_feeds
from covey.store.identity import Identity, open_identity
from covey.store.ingest import batches_after, ingest, install, network_of
from covey.store.leveldb import open_leveldb
from covey.store.writer import open_store
from covey.telemetry.metrics import Metrics

CATCH_UP_KEYS = 20_000
CATCH_UP_RATIO_MIN = 20 / 23
"""20,000 entries a second where a core verifies 23,000 signatures."""
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


async def joiner(keys: int) -> tuple[float, float, float, float]:
    """Seconds from `covey join` until a new auth machine serves a network with so many keys, its memory in MB, the
    network's store on disk in MB, and the same seconds for a network with none.
    """
    took: list[float] = []
    memory = disk = 0.0
    for count in (0, keys):
        with place() as folder:
            first, second = Machine(folder, "first", roles='"auth"'), Machine(folder, "second")
            try:
                await fill(first.data, count)
                await first.launch("up")
                token = await first.invite("auth")
                began = trio.current_time()
                await second.launch("join", token)
                await until(lambda second=second: serves(second))  # type: ignore[misc]
                took.append(trio.current_time() - began)
                memory = second.resident_bytes / 1e6
                disk = sum(path.stat().st_size for path in (second.data / "store").iterdir()) / 1e6
            finally:
                second.close()
                first.close()
    return took[1], memory, disk, took[0]


async def serves(machine: Machine) -> bool:
    """Whether a new auth machine has said that it has everything."""
    await trio.lowlevel.checkpoint()
    return "has all accounts and keys, and serves" in machine.said()


async def revocations(rounds: int) -> tuple[list[float], list[float]]:
    """From the revocation's start on one auth machine until a gateway refuses the key, and a bare request's seconds.

    Three machines: two auth, and a gateway.
    """
    seen: list[float] = []
    bare: list[float] = []
    with place() as folder:
        first, second, gateway = (Machine(folder, name, roles=roles) for name, roles in
                                  (("first", '"auth"'), ("second", '"auth"'), ("gateway", '"gateway"')))  # fmt: skip
        try:
            await first.launch("up")
            await second.launch("join", await first.invite("auth"))
            await gateway.launch("join", await first.invite("gateway"))
            async with first.client() as client, httpx.AsyncClient(base_url=gateway.url) as web:

                async def status(key: str) -> int:
                    answer = await web.get("/v1/models", headers={"authorization": f"Bearer {key}"})
                    return answer.status_code

                for _ in range(rounds):
                    made = await client.bus.call(CREATE_KEY, CreateKey(Actor()))
                    while await status(made.key) != 200:  # noqa: ASYNC110 - it is another process that changes
                        await trio.sleep(0.002)
                    began = time.perf_counter()
                    await status(made.key)
                    bare.append(time.perf_counter() - began)
                    began = time.perf_counter()
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(client.bus.call, REVOKE_KEY, RevokeKey(Actor(), made.id))
                        while await status(made.key) == 200:
                            pass
                        seen.append(time.perf_counter() - began)
        finally:
            for machine in (gateway, second, first):
                machine.close()
    return seen, bare


def run(seconds: float) -> Iterable[Figure]:
    """`seconds`: a hundred revocations for each two; the rest takes as long as it does."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trio.run(fill, folder / "source", CATCH_UP_KEYS)
        bare = verifications()
        by_clock, by_cpu = trio.run(catch_up, folder / "source", folder / "target")
        goal = round(CATCH_UP_RATIO_MIN * bare)
        yield Figure("catch-up: verified and applied", by_clock, "1/s", bare, "bare verifications", goal_min=goal)
        yield Figure("catch-up: for a second of processor time", by_cpu, "1/CPU s", bare, "bare verifications")
    seen, bare_request = trio.run(revocations, max(20, int(seconds / 2 * REVOCATIONS)))
    plain = statistics.median(bare_request) * 1e3
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        value = sorted(seen)[min(len(seen) - 1, int(len(seen) * share))] * 1e3
        yield Figure(f"revoked here, refused there: {name}", value, "ms", plain, "a request", goal_max=1000)
    took, memory, disk, without = trio.run(joiner, KEYS)
    yield Figure(f"a new auth machine, {KEYS:,} keys: ready", took, "s", without, "with none", goal_max=20)
    yield Figure(f"its memory with {KEYS:,} keys", memory, "MB")
    yield Figure(f"its disk with {KEYS:,} keys", disk, "MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    show("replication", run(parser.parse_args().seconds))
