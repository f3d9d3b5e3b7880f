"""What people see of several auth nodes, on virtual time: who has a change, names in conflict, promotion, recovery."""

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from covey.contracts.audit import AUDIT, Audit, AuditStanding
from covey.contracts.auth import CREATE_KEY, REVOKE_KEY, Actor, CreateKey, NewKey, RevokeKey
from covey.contracts.membership import REMOVE_NODE, RemoveNode
from covey.errors import CallError
from covey.store.entries import KINDS
from covey.store.ingest import batches_after, ingest
from covey.store.view import View
from covey.testing.cluster import CHEAP_AUTH, MemoryClock, MemoryCluster, MemoryNode, open_memory_cluster

OPERATOR = Actor()


async def auth_nodes(cluster: MemoryCluster, *names: str) -> list[MemoryNode]:
    nodes = [await cluster.found(names[0])]
    for name in names[1:]:
        nodes.append(await cluster.join(name, run=[CHEAP_AUTH]))
    await cluster.linked()
    await agreed(nodes)
    return nodes


def hashes(node: MemoryNode) -> dict[str, str]:
    return {kind: View(node.store.reader).hash(kind) for kind in KINDS}


async def agreed(nodes: Sequence[MemoryNode], *, within_seconds: float = 60.0) -> None:
    with trio.fail_after(within_seconds):
        while any(hashes(node) != hashes(nodes[0]) for node in nodes):  # noqa: ASYNC110 - on virtual time
            await trio.sleep(0.1)


async def new_key(node: MemoryNode) -> NewKey:
    return await node.operator.call(CREATE_KEY, CreateKey(OPERATOR))


# Who has it


async def test_a_change_says_who_has_it(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob = await auth_nodes(cluster, "alice", "bob")
        key = await new_key(alice)
        assert key.held_by == ("bob",)
        cluster.network.cut(alice.machine, bob.machine)
        await trio.sleep(30)
        began = trio.current_time()
        assert (await new_key(alice)).held_by == ()
        assert trio.current_time() - began < 0.5  # nobody is waited for who is not there


async def test_a_revocation_waits_for_every_live_node_that_checks_keys(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob, carol = await auth_nodes(cluster, "alice", "bob", "carol")
        gateway = await cluster.join("gw1", roles=["gateway"])
        await cluster.join("worker", roles=["inference"])
        await cluster.linked()
        key = await new_key(alice)
        info = await alice.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, key.id))
        assert (info.state, info.held_by, info.not_held_by) == ("revoked", ("bob", "carol", "gw1"), ())

        other = await new_key(bob)
        for node in (alice, bob, gateway):
            cluster.network.cut(node.machine, carol.machine)
        await trio.sleep(30)
        began = trio.current_time()
        info = await bob.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, other.id))
        assert (info.held_by, info.not_held_by) == (("alice", "gw1"), ("carol",))
        assert trio.current_time() - began < 0.5

        for node in (alice, bob, gateway):
            cluster.network.heal(node.machine, carol.machine)
        await cluster.linked()
        await agreed([alice, bob, carol])
        await trio.sleep(1)
        info = await alice.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, other.id))  # again, to ask who has it by now
        assert (info.held_by, info.not_held_by) == (("bob", "carol", "gw1"), ())


async def test_a_node_alone_names_nobody(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice = await cluster.found("alice")
        key = await new_key(alice)
        info = await alice.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, key.id))
        assert (key.held_by, info.held_by, info.not_held_by) == ((), (), ())


# The audit


async def test_what_a_removed_node_said_too_late_is_void_in_the_audit(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob, carol = await auth_nodes(cluster, "alice", "bob", "carol")
        early = await new_key(bob)
        await agreed([alice, bob, carol])
        for node in (alice, carol):
            cluster.network.cut(node.machine, bob.machine)
        await trio.sleep(30)
        late = await new_key(bob)
        await alice.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob"))
        with pytest.raises(CallError) as nobody:
            await alice.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, late.id))
        assert nobody.value.code == "not_found"

        # What it wrote beyond the cutoff comes in by somebody who had it, and counts for nothing.
        for batch in batches_after(bob.store.reader, "keys", {}):
            await ingest(alice.store, "keys", batch, now=alice.clock.now())
        page = await alice.operator.call(AUDIT, Audit(OPERATOR))
        standings = {record.subject: record.standing for record in page.records if "was made" in record.what}
        assert standings == {early.id: "counts", late.id: "void"}
        assert [record.node for record in page.records if record.what == "The machine bob was removed."] == ["alice"]


async def test_what_a_clock_far_ahead_said_waits_in_the_audit(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob = await auth_nodes(cluster, "alice", "bob")
        bob.clock = MemoryClock(alice.clock.now() + 7 * 24 * 3600)
        await cluster.restart(bob)
        await cluster.linked()
        key = await new_key(bob)
        await told(alice, key.id, ["waits"])
        await bob.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, key.id))
        await told(alice, key.id, ["counts", "waits"])  # what denies never waits


async def told(node: MemoryNode, subject: str, standings: list[AuditStanding]) -> None:
    """Until the audit has this of a subject, the latest first."""
    with trio.fail_after(30):
        while True:
            page = await node.operator.call(AUDIT, Audit(OPERATOR))
            if [record.standing for record in page.records if record.subject == subject] == standings:
                return
            await trio.sleep(0.1)
