"""Several auth nodes on virtual time: any of them takes writes, and all of them come to one view."""

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from covey.contracts.auth import CREATE_KEY, REVOKE_KEY, Actor, CreateKey, NewKey, RevokeKey
from covey.contracts.membership import (
    INVITE_NODE,
    LIST_INVITES,
    REMOVE_NODE,
    REVOKE_INVITE,
    InviteNode,
    ListInvites,
    RemoveNode,
    RevokeInvite,
)
from covey.errors import CallError
from covey.store.entries import KINDS
from covey.store.rows import KeyRow
from covey.store.view import View
from covey.testing.cluster import CHEAP_AUTH, MemoryCluster, MemoryNode, open_memory_cluster

OPERATOR = Actor()


async def three(cluster: MemoryCluster) -> list[MemoryNode]:
    nodes = [await cluster.found("alice")]
    for name in ("bob", "carol"):
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


def is_revoked(node: MemoryNode, key: NewKey) -> bool:
    row = View(node.store.reader).get(KeyRow, key.id)
    return row is not None and row.revoked


async def test_any_auth_node_takes_writes_and_all_have_them(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        nodes = await three(cluster)
        keys = [await new_key(node) for node in nodes]
        await agreed(nodes)
        for node in nodes:
            assert all(View(node.store.reader).get(KeyRow, key.id) for key in keys)
        await nodes[2].operator.call(REVOKE_KEY, RevokeKey(OPERATOR, keys[0].id))
        await agreed(nodes)
        assert all(is_revoked(node, keys[0]) for node in nodes)


async def test_an_acknowledged_write_is_on_two_disks(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        nodes = await three(cluster)
        key = await new_key(nodes[0])
        assert sum(View(node.store.reader).get(KeyRow, key.id) is not None for node in nodes) >= 2


async def test_a_partition_takes_writes_on_both_sides_and_heals(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        nodes = await three(cluster)
        alice, bob, carol = nodes
        key = await new_key(alice)
        await agreed(nodes)
        for other in (bob, carol):
            cluster.network.cut(alice.machine, other.machine)
        await trio.sleep(30)
        here, there = await new_key(alice), await new_key(bob)
        await alice.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, key.id))
        assert not is_revoked(carol, key)
        for other in (bob, carol):
            cluster.network.heal(alice.machine, other.machine)
        await agreed(nodes)
        for node in nodes:
            assert is_revoked(node, key)
            assert all(View(node.store.reader).get(KeyRow, made.id) for made in (here, there))


async def test_a_new_auth_node_answers_nobody_before_it_knows_who_there_is(
    autojump_clock: MockClock, seed: int
) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice = await cluster.found("alice")
        key = await new_key(alice)
        bob = await cluster.admit("bob", run=[CHEAP_AUTH])
        cluster.network.cut(alice.machine, bob.machine)
        await cluster.start(bob)
        await trio.sleep(10)
        with pytest.raises(CallError) as refusal:
            await new_key(bob)
        assert refusal.value.code == "unreachable"
        assert "auth" in bob.lifecycle.missing
        cluster.network.heal(alice.machine, bob.machine)
        await agreed([alice, bob])
        await trio.sleep(1)
        assert not bob.lifecycle.missing
        assert View(bob.store.reader).get(KeyRow, key.id)
        await new_key(bob)
        await cluster.restart(bob)  # complete for good
        await new_key(bob)


async def test_any_auth_node_lists_every_invite_and_passes_its_revocation_to_the_issuer(
    autojump_clock: MockClock, seed: int
) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob, carol = await three(cluster)
        made = [await node.operator.call(INVITE_NODE, InviteNode(OPERATOR)) for node in (alice, bob)]
        listed = await carol.operator.call(LIST_INVITES, ListInvites(OPERATOR))
        assert {invite.id for invite in listed.invites} >= {invite.id for invite in made}
        assert listed.silent == ()
        await carol.operator.call(REVOKE_INVITE, RevokeInvite(OPERATOR, made[1].id))
        (revoked,) = [
            invite
            for invite in (await alice.operator.call(LIST_INVITES, ListInvites(OPERATOR))).invites
            if invite.id == made[1].id
        ]
        assert revoked.revoked
        assert revoked.issuer == bob.peer_id
        with pytest.raises(CallError) as refusal:
            await carol.operator.call(REVOKE_INVITE, RevokeInvite(OPERATOR, "nosuchinvite"))
        assert refusal.value.code == "not_found"
        await cluster.lose_power(bob)
        listed = await carol.operator.call(LIST_INVITES, ListInvites(OPERATOR))
        assert listed.silent == ("bob",) or made[1].id not in {invite.id for invite in listed.invites}


async def test_a_removal_s_cutoff_is_what_any_reachable_auth_node_holds(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice, bob, carol = await three(cluster)
        cluster.network.cut(alice.machine, bob.machine)
        await trio.sleep(30)
        key = await new_key(bob)  # carol has it; alice will, through carol, if not at once
        await agreed([bob, carol])
        await alice.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob"))
        await agreed([alice, carol])
        for node in (alice, carol):
            row = View(node.store.reader).get(KeyRow, key.id)
            assert row is not None
            assert row.created is not None
