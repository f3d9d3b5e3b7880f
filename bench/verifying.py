"""Checking keys on a gateway from its own view, beside a bare look-up; and cutting what runs with a revoked key.

`python -m bench verifying [--seconds 2]`.
"""

import hashlib
import hmac
import math
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import trio
import trio.testing

from bench.figure import Figure
from covey.bus.bus import Bus, BusHandle
from covey.bus.caller import Caller
from covey.bus.replies import Replies
from covey.cluster.lease import Freshness
from covey.contracts.auth import VERIFY, KeyLimits, VerifyKey
from covey.contracts.feeds import KeyCreate, KeyRevoke, OwnerStanding
from covey.contracts.inference import CHAT
from covey.errors import CallError
from covey.roles.gateway.live import LiveRequests
from covey.store.denied import HeededRows
from covey.store.feeds import Feeds, SystemClock, open_feeds
from covey.store.identity import Identity
from covey.store.leveldb import open_leveldb
from covey.store.replica import Replica
from covey.store.writer import open_store
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId

KEYS = 20_000
KEYS_PER_ENTRY = 500
OWNERS = 100
LIVE = 500
CUTS = 20
VERIFY_MICROSECONDS_MAX = 20.0
CUT_MILLISECONDS_MAX = 100.0


Verify = Callable[[VerifyKey], Awaitable[object]]
CALLER = Caller(PeerId("gina"), "gateway")


def digest(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def key_id(number: int) -> str:
    return f"{number:012d}"


def asked(number: int) -> VerifyKey:
    return VerifyKey(key_id(number), digest(number))


@dataclass
class World:
    feeds: Feeds
    replica: Replica
    gateway: BusHandle


@asynccontextmanager
async def world() -> AsyncGenerator[World, None]:
    """A gateway whose own LevelDB holds the keys, and whose lease is that of one of three auth nodes."""
    metrics, bus = Metrics(), Bus(PeerId("gina"), Metrics())
    fresh, others = Freshness[str](), frozenset({"bob", "carol"})
    for other in others:
        fresh.applied(other, time.monotonic())

    def check_lease() -> None:
        if fresh.since(others, "auto") + 3600 < time.monotonic():
            raise AssertionError("the bench took an hour")

    with tempfile.TemporaryDirectory() as name:
        async with (
            open_store(open_leveldb(Path(name)), metrics) as store,
            open_feeds(store, Identity.generate(), SystemClock(), node_name="bench", found=True) as feeds,
            bus.open(),
        ):
            owners = [OwnerStanding(owner=f"U{n:015d}", epoch=1, active=True, by="x") for n in range(OWNERS)]
            await feeds.append(lambda _: owners)
            for start in range(0, KEYS, KEYS_PER_ENTRY):
                created = [create(number) for number in range(start, start + KEYS_PER_ENTRY)]
                await feeds.append(lambda _, created=created: created)  # type: ignore[misc]
            replica = Replica(store, HeededRows(store.reader), SystemClock(), check_lease, metrics)
            replica.serve(bus.stamped("gateway"))
            yield World(feeds, replica, bus.stamped("gateway"))


def create(number: int) -> KeyCreate:
    """A key as the auth role makes them."""
    return KeyCreate(
        id=key_id(number), owner=f"U{number % OWNERS:015d}", digest=digest(number), prefix="cvy_abcdef", label="laptop",
        models=(), limits=KeyLimits(), created_at=1_700_000_000, expires_at=None, by="U" * 16,
    )  # fmt: skip


async def verify_microseconds(verify: Verify, requests: list[VerifyKey], seconds: float) -> float:
    """Of processor time, for one key, over all of these in turn; the best of several rounds."""
    best, ends = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < ends:
        started = time.thread_time()
        for request in requests:
            try:
                await verify(request)
            except CallError as error:
                if error.code != "unauthenticated":
                    raise
        best = min(best, (time.thread_time() - started) / len(requests) * 1e6)
    return best


def bare_microseconds(seconds: float) -> float:
    """A dict of digests, and the comparison in constant time: what cannot be done without."""
    known = {key_id(number): digest(number) for number in range(KEYS)}
    requests, best, ends = spread(), math.inf, time.perf_counter() + seconds
    while time.perf_counter() < ends:
        started = time.thread_time()
        for request in requests:
            if not hmac.compare_digest(known[request.key_id], request.digest):
                raise AssertionError(request)
        best = min(best, (time.thread_time() - started) / len(requests) * 1e6)
    return best


def spread() -> list[VerifyKey]:
    """Keys from all over the store."""
    return [asked(number * 7919 % KEYS) for number in range(2_000)]


async def cut_milliseconds(here: World) -> float:
    """From a revocation to the end of the request that runs with the key, among many others; the median."""
    requests, took = LiveRequests(here.gateway), list[float]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(requests.follow)
        await trio.testing.wait_all_tasks_blocked(0.05)
        for number in range(LIVE, LIVE + CUTS):
            took.append(await _cut_one(here, requests, number))
        nursery.cancel_scope.cancel()
    return median(took) * 1000


async def _cut_one(here: World, requests: LiveRequests, number: int) -> float:
    others = [requests.watch(asked(other)) for other in range(LIVE)]
    for other in others:
        other.__enter__()
    with requests.watch(asked(number)) as live:
        revoke = KeyRevoke(id=key_id(number), by="x")
        started = time.perf_counter()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(here.feeds.append, lambda _: [revoke])
            replies = Replies(CHAT)
            live.follow(replies)
            with suppress(CallError):
                await replies.batch()
            took = time.perf_counter() - started
    for other in others:
        other.__exit__(None, None, None)
    return took


async def measure(seconds: float) -> list[Figure]:
    """All of it."""
    bare = bare_microseconds(seconds)
    nobodys = [VerifyKey(f"x{number:011d}", bytes(32)) for number in range(2_000)]
    async with world() as here:

        async def by_bus(request: VerifyKey) -> object:
            return await here.gateway.call(VERIFY, request)

        async def alone(request: VerifyKey) -> object:
            return here.replica.verify(CALLER, request)

        check = await verify_microseconds(alone, spread(), seconds)
        call = await verify_microseconds(by_bus, spread(), seconds)
        refused = await verify_microseconds(by_bus, nobodys, seconds)
        cut = await cut_milliseconds(here)
    most = VERIFY_MICROSECONDS_MAX
    return [
        Figure(f"key check from the gateway's view, {KEYS:,} keys", check, "µs CPU", bare, "a dict", most),
        Figure("the same, called over the bus", call, "µs CPU", bare, "a dict", most),
        Figure("the same, for a key that nobody has", refused, "µs CPU", bare, "a dict"),
        Figure(f"from a revocation to the cut, {LIVE + 1} live", cut, "ms", goal_max=CUT_MILLISECONDS_MAX),
    ]


def run(seconds: float) -> Iterable[Figure]:
    """See `bench.figure`."""
    return trio.run(measure, seconds)
