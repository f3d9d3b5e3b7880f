"""Limits over a whole cluster, on virtual time: three auth nodes, four gateways, one key offered ten times its rate.

Allowed in a window: the burst, which is the whole limit of a minute, and the rate for as long as the window is.
"""


from limits_world import Load, world, worst
from trio.testing import MockClock

from covey.contracts.auth import Identity, KeyLimits
from covey.testing.cluster import open_memory_cluster

LIMIT = 600
RATE = LIMIT / 60
SECONDS = 60.0


def identity(key: str = "k", **limits: int) -> Identity:
    return Identity(key, "ada", limits=KeyLimits(**limits))


async def test_ten_times_the_rate_is_let_in_at_the_rate(autojump_clock: MockClock, seed: int) -> None:
    """Mutation: lend without counting what is held against the burst."""
    async with open_memory_cluster(seed=seed) as cluster:
        _, doors, counting = await world(cluster)
        load = Load(identity(requests_per_minute=LIMIT))
        await load.offer_all(counting, doors, 10 * RATE, SECONDS, seed)
        requests = [(at, 1) for at, _, _ in load.admitted]
        assert load.reasons == {"requests"}
        assert worst(requests, LIMIT) <= 1.0
        assert len(requests) >= 0.94 * (LIMIT + RATE * SECONDS)
        assert len({door for _, door, _ in load.admitted}) == 4
