"""What a node says about its feeds and its lease, as an administrator reads it."""

import trio
from test_lease_sim import LEASE_SECONDS, cut, lasts, new_key, world
from trio.testing import MockClock

from covey.contracts.method import Nothing
from covey.contracts.replication import REPLICATION, REPLICATIONS, Replications
from covey.store.view import View
from covey.testing.cluster import MemoryNode, open_memory_cluster


async def look(node: MemoryNode) -> Replications:
    return await node.operator.call(REPLICATIONS, Nothing())


async def test_all_auth_nodes_agree_and_the_gateway_has_its_lease(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, gina, _ = await world(cluster)
        await trio.sleep(1)
        found = await look(gina)
        assert [one.node for one in found.nodes] == ["gina", "alice", "bob", "carol"]
        assert found.silent == ()
        own, *auths = found.nodes
        assert len({one.kinds[-1].view_hash for one in auths}) == 1
        for kind in own.kinds:
            assert kind.view_hash == View(nodes[0].store.reader).hash(kind.kind)
            assert {source.node for source in kind.sources} <= {"alice", "bob", "carol"}
            assert all(source.caught_up for source in kind.sources)
            assert len(kind.sources) == 2
        assert [kind.kind for kind in own.kinds] == ["members", "keys"]
        assert own.lease.needed
        assert own.lease.seconds_left
        assert 0 < own.lease.seconds_left <= LEASE_SECONDS / 2
        assert (own.behind_entries, own.lag_seconds, own.quarantined_entries) == (0, 0.0, 0)
        author = next(feed for feed in own.kinds[1].feeds if feed.author == "alice")
        assert author.seq == gina.cluster.sync.heads()[author.feed]


async def test_the_hash_follows_what_is_written(autojump_clock: MockClock, seed: int) -> None:
    """Mutation: a cache that knows nothing of the heads."""
    async with open_memory_cluster(seed=seed) as cluster:
        alice = await cluster.found("alice")
        await trio.sleep(1)

        async def keys() -> str:
            status = await alice.operator.call(REPLICATION, Nothing())
            return {kind.kind: kind.view_hash for kind in status.kinds}["keys"]

        before = await keys()
        assert before == await keys()
        await new_key(alice)
        assert await keys() == View(alice.store.reader).hash("keys") != before
        lease = (await alice.operator.call(REPLICATION, Nothing())).lease
        assert (lease.needed, lease.seconds_left, lease.why) == (True, None, "")


async def test_a_gateway_cut_off_says_who_is_silent_and_why_it_has_no_lease(
    autojump_clock: MockClock, seed: int
) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, gina, key = await world(cluster)
        cut(cluster, nodes, [gina])
        await lasts(gina, key, seconds_max=LEASE_SECONDS)
        found = await look(gina)
        assert found.silent == ("alice", "bob", "carol")
        assert found.nodes[0].lease.seconds_left == 0.0
        assert "cannot reach an auth node" in found.nodes[0].lease.why
        assert (await look(nodes[0])).silent == ()
