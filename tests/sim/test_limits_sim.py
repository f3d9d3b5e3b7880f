"""Limits over a whole cluster, on virtual time: three auth nodes, four gateways, one key offered ten times its rate.

Allowed in a window: the burst, which is the whole limit of a minute, and the rate for as long as the window is.
"""

import random

import trio
from limits_world import Load, owner_of, world, worst
from trio.testing import MockClock

from covey.contracts.auth import Identity, KeyLimits
from covey.testing.cluster import open_memory_cluster

LIMIT = 240
RATE = LIMIT / 60
SECONDS = 30.0


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


async def test_the_owner_dies_and_no_window_has_more(autojump_clock: MockClock, seed: int) -> None:
    """Twice. Mutation: let a new owner begin with a full burst."""
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, doors, counting = await world(cluster)
        load = Load(identity(requests_per_minute=LIMIT))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.offer_all, counting, doors, 10 * RATE, 3 * SECONDS, seed)
            for alive in (nodes, None):
                await trio.sleep(random.Random(seed).uniform(0.6, 1.2) * SECONDS)
                running = alive or [node for node in nodes if node.running]
                killed_at = trio.current_time()
                await cluster.kill(owner_of("key:k", running))
        requests = [(at, 1) for at, _, _ in load.admitted]
        assert worst(requests, LIMIT) <= 1.0
        after = [at for at, _ in requests if at > killed_at + 5]
        assert len(after) >= 0.9 * RATE * (trio.current_time() - killed_at - 5)


async def test_cut_apart_no_side_has_more_than_its_gateways_share(autojump_clock: MockClock, seed: int) -> None:
    """The owner and one gateway here, all others there: for as long as a link takes to be found dead each side may have
    all of it, and then both together; and so they have when they are one again. Mutation: lend every owner all of it.
    """
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, doors, counting = await world(cluster)
        dead_seconds = nodes[0].config.dead_seconds
        load = Load(identity(requests_per_minute=LIMIT))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.offer_all, counting, doors, 10 * RATE, 190.0, seed)
            await trio.sleep(20)
            owner = owner_of("key:k", nodes)
            here, there = [owner, doors[0]], [*(node for node in nodes if node is not owner), *doors[1:]]
            cut_at = trio.current_time()
            for one in here:
                for other in there:
                    cluster.network.cut(one.machine, other.machine)
            await trio.sleep(80)
            healed_at = trio.current_time()
            for one in here:
                for other in there:
                    cluster.network.heal(one.machine, other.machine)
        requests = [(at, 1) for at, _, _ in load.admitted]
        assert worst(requests, LIMIT) <= 2.0
        assert worst([one for one in requests if one[0] < cut_at], LIMIT) <= 1.0
        assert worst(requests, LIMIT, after=cut_at + dead_seconds) <= 1.0
        for side in (doors[:1], doors[1:]):
            names = {door.name for door in side}
            between = [at for at, door, _ in load.admitted if door in names and cut_at + 30 < at < healed_at]
            seconds = healed_at - cut_at - 30
            assert 0.9 * len(names) / 4 <= len(between) / (RATE * seconds) <= 1.05 * len(names) / 4
        late = [at for at, _ in requests if at > healed_at + 60]
        assert len(late) >= 0.94 * RATE * (trio.current_time() - healed_at - 60)


async def test_a_gateway_alone_keeps_its_share(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, doors, counting = await world(cluster)
        dead_seconds = nodes[0].config.dead_seconds
        load = Load(identity(requests_per_minute=LIMIT))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.offer_all, counting, doors, 10 * RATE, 120.0, seed)
            await trio.sleep(20)
            cut_at = trio.current_time()
            for other in [*nodes, *doors[1:]]:
                cluster.network.cut(doors[0].machine, other.machine)
            await trio.sleep(80)
            for other in [*nodes, *doors[1:]]:
                cluster.network.heal(doors[0].machine, other.machine)
        requests = [(at, 1) for at, _, _ in load.admitted]
        assert worst(requests, LIMIT) <= 2.0
        assert worst(requests, LIMIT, after=cut_at + dead_seconds) <= 1.0
        alone = [at for at, door, _ in load.admitted if door == doors[0].name and cut_at + 30 < at < cut_at + 80]
        assert 0.9 <= len(alone) / (RATE / 4 * 50) <= 1.05


async def test_tokens_are_reserved_and_settled(autojump_clock: MockClock, seed: int) -> None:
    """Requests that reserve ten times what they use, and take a while. Mutation: let what is reserved come back whole,
    however full the bucket has become since.
    """
    async with open_memory_cluster(seed=seed) as cluster:
        _, doors, counting = await world(cluster)
        limit = 60_000
        load = Load(identity(tokens_per_minute=limit))
        await load.offer_all(counting, doors, 40.0, 60.0, seed, prompt=50, answer=1000, lasts_seconds=3.0, used=0.2)
        used = [(at, tokens) for at, _, tokens in load.admitted]
        assert load.reasons == {"tokens"}
        assert worst(used, limit) <= 1.0
        assert sum(tokens for _, tokens in used) >= 0.8 * (limit + limit)


async def test_requests_at_once_are_counted_everywhere(autojump_clock: MockClock, seed: int) -> None:
    """Through the owner's death, too."""
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, doors, counting = await world(cluster)
        running, highest, let_in, chance = 0, 0, 0, random.Random(seed)
        key = identity(concurrency=5)

        async def request(number: int) -> None:
            nonlocal running, highest, let_in
            charge = await counting.of(doors[number % 4]).admit(key, prompt_tokens=1, answer_tokens_max=None)
            if charge.refusal is not None:
                assert charge.refusal.reason == "concurrency"
                return
            running, let_in = running + 1, let_in + 1
            highest = max(highest, running)
            await trio.sleep(chance.uniform(0, 4))
            running -= 1
            charge.settle(1)

        async with trio.open_nursery() as nursery:
            for number in range(1500):
                nursery.start_soon(request, number)
                await trio.sleep(0.02)
                if number == 700:
                    await cluster.kill(owner_of("key:k", nodes))
        assert highest == 5
        assert let_in >= 0.8 * 5 * 30 / 2


async def test_a_budget_is_spent_once_over_owners_and_gateways(autojump_clock: MockClock, seed: int) -> None:
    """The owner is killed when some of it is used, and comes back empty. Mutation: write nothing down."""
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, doors, counting = await world(cluster)
        budget = 20_000
        load = Load(identity(tokens_per_day=budget))

        def used() -> int:
            return sum(tokens for _, _, tokens in load.admitted)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: load.offer_all(counting, doors, 20.0, 60.0, seed, prompt=10, answer=20, lasts_seconds=0.5)
            )
            await trio.sleep(10)
            owner = owner_of("key:k", nodes)
            await cluster.kill(owner)
            await trio.sleep(10)
            await cluster.start(owner)
        assert load.reasons == {"insufficient_quota"} or load.reasons == {"insufficient_quota", "tokens"}
        assert 0.97 * budget <= used() <= budget
        for door in doors:  # whoever dies then, it stays spent
            await cluster.restart(door)
        for node in nodes:
            await cluster.restart(node)
        await cluster.linked()
        await trio.sleep(70)
        before = len(load.admitted)
        await load.offer_all(counting, doors, 20.0, 10.0, seed, prompt=500, answer=600)
        assert load.admitted[before:] == []


async def test_a_key_that_rests_over_midnight_has_its_budget_in_the_morning(
    autojump_clock: MockClock, seed: int
) -> None:
    """Mutation: report yesterday's budget until an owner has taken note of it, which it does not any more."""
    async with open_memory_cluster(seed=seed) as cluster:
        _, doors, counting = await world(cluster, auths=1, gateways=1)
        asked = identity(tokens_per_day=1000, tokens_per_month=5000)
        for spent in (1000, 1000):
            charge = await counting.of(doors[0]).admit(asked, prompt_tokens=900, answer_tokens_max=100)
            assert charge.refusal is None
            charge.settle(spent)
            await trio.sleep(5)
            refused = await counting.of(doors[0]).admit(asked, prompt_tokens=1, answer_tokens_max=1)
            assert refused.refusal is not None
            cluster.clock.jump(26 * 3600)
