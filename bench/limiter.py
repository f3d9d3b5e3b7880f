"""Limits over a cluster: one key offered ten times its rate at four gateways, and what counting a request costs.

    python -m bench.limiter [--seconds 2]

One auth machine and four gateways are real `covey` processes over libp2p on loopback. Allowed in a window: the burst,
and the rate while it lasts; a window lasts from when its first request was sent until its last was answered.
"""

import argparse
import time
from collections.abc import Iterable

import httpx
import trio

from bench.figure import Figure, show
from bench.processes import Machine, place
from covey.bus.bus import Bus
from covey.bus.caller import Caller
from covey.contracts.auth import CREATE_KEY, Actor, CreateKey, Identity, KeyLimits
from covey.contracts.limits import LEASE_LIMITS, LeaseLimits, LimitGrants, LimitsLeased
from covey.roles.auth.limits import Rate
from covey.roles.gateway.limiting import Limiter
from covey.store.feeds import SystemClock
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId

LIMIT = 600
RATE = LIMIT / 60
GATEWAYS = 4
SECONDS_MIN = 15.0
SHARE_MIN = 0.94
ADMISSIONS = 20_000

FULL_SECONDS = 60.0
"""An auth machine that has just begun has no burst to lend; after that it has all of it."""
REFUSED_MIN = 40
"""So many refusals say that the burst is spent."""
SETTLE_SECONDS = 3.0
"""After that what was lent of it is spent or over, too."""

Admitted = list[tuple[float, float]]
"""When each request was sent and answered."""


class Load:
    """Ten times the rate, over all gateways, at a steady pace; nobody has a model, and who is let in is told so.

    `spent_at`: when the burst was spent.
    """

    def __init__(self, key: str, seconds: float) -> None:
        self.admitted: Admitted = []
        self.spent_at = float("inf")
        self._key = key
        self._seconds = seconds
        self._refused = 0

    async def offer(self, url: str) -> None:
        """At one gateway, until it has been measured for long enough."""
        body = {"model": "none", "messages": [{"role": "user", "content": "x"}]}
        every_seconds = GATEWAYS / (10 * RATE)
        async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {self._key}"}) as web:
            while (sent := time.monotonic()) < self.spent_at + self._seconds:
                answer = await web.post("/v1/chat/completions", json=body)
                self._note(sent, answer.json()["error"]["code"])
                await trio.sleep(max(sent + every_seconds - time.monotonic(), 0))

    def _note(self, sent: float, code: str) -> None:
        if code == "no_capacity":
            self.admitted.append((sent, time.monotonic()))
        else:
            self._refused += 1
            if self._refused == REFUSED_MIN:
                self.spent_at = time.monotonic() + SETTLE_SECONDS

    @property
    def share(self) -> float:
        """Of the rate, that was let in after the burst was spent."""
        ends_at = self.spent_at + self._seconds
        return sum(self.spent_at <= sent < ends_at for sent, _ in self.admitted) / (RATE * self._seconds)


def worst(admitted: Admitted) -> float:
    """The highest share of what is allowed, over every window of a second and more."""
    events, highest = sorted(admitted), 0.0
    for first, (begin, _) in enumerate(events):
        for count, (_, end) in enumerate(events[first:], start=1):
            highest = max(highest, count / (LIMIT + RATE * max(end - begin, 1.0)))
    return highest


async def cluster(seconds: float) -> tuple[float, float]:
    """The worst window, and the share of the rate that is let in once the burst is spent."""
    with place() as folder:
        auth = Machine(folder, "auth", roles='"auth"')
        gateways = [Machine(folder, f"gateway{number}", roles='"gateway"') for number in range(GATEWAYS)]
        try:
            await auth.launch("up")
            for gateway in gateways:
                await gateway.launch("join", await auth.invite("gateway"))
            async with auth.client() as client:
                limits = KeyLimits(requests_per_minute=LIMIT)
                key = (await client.bus.call(CREATE_KEY, CreateKey(Actor(), limits=limits))).key
            for gateway in gateways:
                await _known(gateway.url, key)
            await trio.sleep(FULL_SECONDS)
            load = Load(key, seconds)
            async with trio.open_nursery() as nursery:
                for gateway in gateways:
                    nursery.start_soon(load.offer, gateway.url)
        finally:
            for machine in (*gateways, auth):
                machine.close()
    return worst(load.admitted), load.share


async def _known(url: str, key: str) -> None:
    async with httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}) as web:
        while not (await web.get("/v1/models")).is_success:  # noqa: ASYNC110 - another process
            await trio.sleep(0.05)


async def admissions() -> tuple[float, float]:
    """Microseconds to count and settle a request: without a limit; with one, whose owner is in this process."""
    bus = Bus(PeerId("bench"), Metrics())
    rates: dict[str, Rate] = {}

    async def lease(caller: Caller, request: LeaseLimits) -> LimitsLeased:
        now = trio.current_time()
        answers: list[LimitGrants] = []
        for report in request.reports:
            use = report.uses[0]
            rate = rates.setdefault(report.id, Rate(use.limit, now, since=float("-inf")))
            rate.advance(use.limit, 1.0, now)
            answers.append(LimitGrants(report.id, owned=True, grants=(rate.lease("bench", request.term, use, now),)))
        return LimitsLeased(1, tuple(answers))

    bus.stamped("auth").serve(LEASE_LIMITS, lease)
    limiter = Limiter(bus.stamped("gateway"), SystemClock())

    async def microseconds(identity: Identity) -> float:
        began = time.perf_counter()
        for _ in range(ADMISSIONS):
            charge = await limiter.admit(identity, prompt_tokens=10, answer_tokens_max=10)
            assert charge.refusal is None
            charge.settle(20)
        return (time.perf_counter() - began) / ADMISSIONS * 1e6

    return (
        await microseconds(Identity("free", "ada")),
        await microseconds(Identity("limited", "ada", limits=KeyLimits(requests_per_minute=10**7))),
    )


def run(seconds: float) -> Iterable[Figure]:
    """`seconds`: of load for each two, a quarter of a minute; at least that."""
    free, limited = trio.run(admissions)
    yield Figure("counting a request: no limit", free, "µs", goal_max=10)
    yield Figure("counting a request: a limit, the owner here", limited, "µs", free, "without", goal_max=100)
    highest, share = trio.run(cluster, max(SECONDS_MIN, seconds / 2 * SECONDS_MIN))
    yield Figure(f"{GATEWAYS} gateways: let in of allowed, worst window", highest, "", goal_max=1.0)
    yield Figure(f"{GATEWAYS} gateways: let in of the rate", share, "", goal_min=SHARE_MIN)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    show("limiter", run(parser.parse_args().seconds))
