"""Leases on virtual time: keys are vouched for as long as the bound says, and not a second longer."""

import random

import pytest
import trio
from trio.testing import MockClock

from covey.backends.base import Plugged
from covey.backends.echo import BACKEND, EchoConfig
from covey.cluster.lease import LeasePolicy
from covey.contracts.auth import (
    CREATE_KEY,
    REVOKE_KEY,
    VERIFY,
    Actor,
    CreateKey,
    NewKey,
    RevokeKey,
    VerifyKey,
)
from covey.contracts.gateway import COMPLETE, Completion
from covey.contracts.inference import ChatRequest, Message
from covey.contracts.keys import parse
from covey.contracts.membership import REMOVE_NODE, RemoveNode
from covey.errors import CallError
from covey.roles.auth.config import AuthConfig
from covey.roles.auth.role import ROLE as AUTH
from covey.roles.gateway.role import ROLE as GATEWAY
from covey.roles.gateway.role import GatewayConfig
from covey.roles.inference.role import ROLE as INFERENCE
from covey.roles.inference.role import InferenceConfig
from covey.store.rows import KeyRow
from covey.store.view import View
from covey.testing.cluster import MemoryCluster, MemoryNode, RunRole, open_memory_cluster

OPERATOR = Actor()
LEASE_SECONDS = 300
ECHO = Plugged(BACKEND, EchoConfig())
RUN_GATEWAY: RunRole = (GATEWAY, GatewayConfig())


def auth(policy: LeasePolicy = "auto") -> RunRole:
    return (AUTH, AuthConfig(argon2_memory_kibibytes=8, argon2_passes=1, lease_policy=policy))


async def new_key(node: MemoryNode) -> NewKey:
    return await node.operator.call(CREATE_KEY, CreateKey(OPERATOR))


async def revoke(node: MemoryNode, key: NewKey) -> None:
    await node.operator.call(REVOKE_KEY, RevokeKey(OPERATOR, key.id))


async def check(node: MemoryNode, key: NewKey) -> str:
    """`ok`, or how a gateway of that node refuses the key."""
    parsed = parse(key.key)
    assert parsed is not None
    try:
        await node.bus.stamped("gateway").call(VERIFY, VerifyKey(parsed.key_id, parsed.digest))
    except CallError as error:
        return error.reason or error.code
    return "ok"


async def says(node: MemoryNode, key: NewKey, expected: str, *, within_seconds: float) -> float:
    """Wait for an answer; returns how long that took."""
    began = trio.current_time()
    while (said := await check(node, key)) != expected:
        assert trio.current_time() - began <= within_seconds, f"{node.name} says {said} and not {expected}"
        await trio.sleep(0.1)
    return trio.current_time() - began


async def lasts(node: MemoryNode, key: NewKey, *, seconds_max: float) -> float:
    """For how long a key still counts there."""
    began = trio.current_time()
    while await check(node, key) == "ok":
        assert trio.current_time() - began <= seconds_max
        await trio.sleep(1.0)
    return trio.current_time() - began


async def world(
    cluster: MemoryCluster, auths: int = 3, policy: LeasePolicy = "auto"
) -> tuple[list[MemoryNode], MemoryNode, NewKey]:
    """Some auth nodes, a gateway that has its lease, and a key."""
    nodes = [await cluster.found("alice", run=[auth(policy)])]
    for name in ("bob", "carol")[: auths - 1]:
        nodes.append(await cluster.join(name, run=[auth(policy)]))
    gina = await cluster.join("gina", run=[RUN_GATEWAY])
    key = await new_key(nodes[0])
    await cluster.linked()
    for node in (*nodes, gina):
        await says(node, key, "ok", within_seconds=10)
    return nodes, gina, key


def cut(cluster: MemoryCluster, here: list[MemoryNode], there: list[MemoryNode], *, heal: bool = False) -> None:
    for one in here:
        for other in there:
            (cluster.network.heal if heal else cluster.network.cut)(one.machine, other.machine)


async def test_connected_a_revocation_takes_a_hop(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, gina, key = await world(cluster)
        await revoke(nodes[2], key)
        assert await says(gina, key, "invalid_api_key", within_seconds=1) < 1.0


async def test_a_revoked_key_counts_nowhere_beyond_the_lease(autojump_clock: MockClock, seed: int) -> None:
    """Cut off together: the gateway and an auth node that heard nothing. Mutation: count from the answer on, or never
    let the auth node's own freshness end.
    """
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, gina, key = await world(cluster)
        alice, bob, carol = nodes
        await trio.sleep(random.Random(seed).uniform(0, 120))
        cut(cluster, [alice, bob], [carol, gina])
        await revoke(alice, key)  # and bob has it
        assert await check(bob, key) == "invalid_api_key"
        began = trio.current_time()
        while trio.current_time() - began < LEASE_SECONDS + 30:
            late = trio.current_time() - began >= LEASE_SECONDS
            assert await check(alice, key) == "invalid_api_key"
            for node in (carol, gina):
                assert await check(node, key) in ({"no_lease"} if late else {"ok", "no_lease"})
            await trio.sleep(1.0)
        cut(cluster, [alice, bob], [carol, gina], heal=True)
        for node in (carol, gina):
            await says(node, key, "invalid_api_key", within_seconds=40)


async def test_a_gateway_cut_off_alone_goes_on_for_half_a_lease_at_most(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, gina, key = await world(cluster)
        cut(cluster, nodes, [gina])
        assert (
            LEASE_SECONDS / 3 - 10 < await lasts(gina, key, seconds_max=LEASE_SECONDS / 2 + 1) < LEASE_SECONDS / 2 + 1
        )


async def test_all_auth_nodes_down_and_back(autojump_clock: MockClock, seed: int) -> None:
    """Keys go on for most of a lease; then nothing, and all is well at once when one auth node's peers are back."""
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, gina, key = await world(cluster)
        for node in nodes:
            await cluster.kill(node)
        assert await lasts(gina, key, seconds_max=LEASE_SECONDS / 2 + 1) > LEASE_SECONDS / 3 - 10
        assert await check(gina, key) == "no_lease"
        await trio.sleep(60)
        await cluster.start(nodes[0])
        await trio.sleep(10)
        assert await check(nodes[0], key) == "no_lease"  # one of three knows nothing
        assert await check(gina, key) == "no_lease"
        await cluster.start(nodes[1])
        assert await says(gina, key, "ok", within_seconds=2) <= 2.0
        assert await check(nodes[0], key) == await check(nodes[1], key) == "ok"


async def test_a_minority_vouches_for_nothing(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, gina, key = await world(cluster)
        alice, bob, carol = nodes
        cut(cluster, [carol], [alice, bob])
        assert await lasts(carol, key, seconds_max=LEASE_SECONDS / 2 + 1) > 0
        assert await check(carol, key) == "no_lease"
        for node in (alice, bob, gina):  # the gateway is linked to both sides
            assert await check(node, key) == "ok"


async def test_a_new_key_works_on_the_majoritys_side(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, gina, _ = await world(cluster)
        cut(cluster, nodes[2:], nodes[:2])
        await trio.sleep(LEASE_SECONDS)
        await says(gina, await new_key(nodes[0]), "ok", within_seconds=1)


@pytest.mark.parametrize("policy", ["auto", "majority"])
async def test_two_auth_nodes_apart(autojump_clock: MockClock, seed: int, policy: LeasePolicy) -> None:
    """By default either goes on; who wants the bound instead says so."""
    async with open_memory_cluster(seed=seed) as cluster:
        (alice, bob), gina, key = await world(cluster, 2, policy)
        cut(cluster, [alice], [bob])
        await trio.sleep(LEASE_SECONDS + 1)
        expected = "ok" if policy == "auto" else "no_lease"
        assert {await check(node, key) for node in (alice, bob, gina)} == {expected}


async def test_one_auth_node_alone_always_vouches(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        alice = await cluster.found("alice", run=[auth(), RUN_GATEWAY])
        key = await new_key(alice)
        assert await check(alice, key) == "ok"
        alice.wake_after(10 * LEASE_SECONDS)
        assert await check(alice, key) == "ok"


async def test_a_started_gateway_has_none_until_it_hears_an_auth_node(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, gina, key = await world(cluster, 1)
        await cluster.kill(gina)
        cut(cluster, nodes, [gina])
        await cluster.start(gina)
        for _ in range(60):
            assert await check(gina, key) == "no_lease"
            await trio.sleep(1)
        cut(cluster, nodes, [gina], heal=True)
        await says(gina, key, "ok", within_seconds=40)


async def test_a_suspended_machine_wakes_without_its_lease(autojump_clock: MockClock, seed: int) -> None:
    """Mutation: leases by trio's own clock, which stands still in a suspend."""
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, gina, key = await world(cluster)
        gina.wake_after(LEASE_SECONDS / 2)
        assert await check(gina, key) == "no_lease"
        assert await says(gina, key, "ok", within_seconds=2) > 0
        nodes[0].wake_after(LEASE_SECONDS / 2)
        assert await check(nodes[0], key) == "no_lease"
        await says(nodes[0], key, "ok", within_seconds=2)


async def test_what_a_removed_author_had_revoked_stays_revoked(autojump_clock: MockClock, seed: int) -> None:
    """Only the gateway ever heard of it. Mutation: without `covey.store.denied`."""
    async with open_memory_cluster(seed=seed) as cluster:
        (alice, bob), gina, key = await world(cluster, 2)
        other = await new_key(alice)
        await says(gina, other, "ok", within_seconds=2)
        cut(cluster, [alice], [bob, gina])
        await revoke(bob, key)
        await says(gina, key, "invalid_api_key", within_seconds=2)
        await cluster.kill(bob)
        cut(cluster, [alice], [gina], heal=True)
        await alice.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob"))
        with trio.fail_after(60):
            while bob.peer_id in gina.cluster.membership.authors:  # noqa: ASYNC110 - on virtual time
                await trio.sleep(0.1)
        row = View(gina.store.reader).get(KeyRow, key.id)
        assert row is not None
        assert not row.revoked  # the view is everybody's, and knows nothing of it
        await says(gina, other, "ok", within_seconds=2)
        assert await check(gina, key) == "invalid_api_key"
        await cluster.restart(gina)
        await says(gina, other, "ok", within_seconds=10)
        assert await check(gina, key) == "invalid_api_key"


async def test_who_was_sent_what_it_does_not_know_vouches_for_nobody(autojump_clock: MockClock, seed: int) -> None:
    """It may be a denial. Not where its author was removed before it: then it counts for nothing."""
    async with open_memory_cluster(seed=seed) as cluster:
        (alice, bob), gina, key = await world(cluster, 2)
        await new_key(bob)
        feed = next(feed for feed in bob.cluster.sync.heads() if feed.startswith(f"keys/{bob.peer_id}/"))
        alice.cluster.sync.blocked[feed] = "as `Sync` notes it of an operation of a newer version"
        await trio.sleep(LEASE_SECONDS)
        assert await check(alice, key) == "no_lease"
        assert "Upgrade" in alice.cluster.lease.state.why
        assert await check(gina, key) == "ok"  # bob grants
        await cluster.kill(bob)
        await lasts(gina, key, seconds_max=LEASE_SECONDS)
        assert "Upgrade" in gina.cluster.lease.state.why
        await alice.operator.call(REMOVE_NODE, RemoveNode(OPERATOR, "bob"))
        for node in (alice, gina):
            await says(node, key, "ok", within_seconds=2)


# Inference nodes


async def ask(node: MemoryNode) -> str:
    """`ok`, or how a chat through that node's gateway ends."""
    request = Completion(OPERATOR, ChatRequest("echo", (Message("user", "one two"),)))
    try:
        async with node.operator.stream(COMPLETE, request, to=node.peer_id) as deltas:
            text = "".join([delta.text async for delta in deltas])
    except CallError as error:
        return error.reason or error.code
    assert text == "one two"
    return "ok"


async def test_an_inference_node_works_for_no_gateway_without_a_lease(autojump_clock: MockClock, seed: int) -> None:
    """Mutation: leave `check_gateway` out of CHAT."""
    async with open_memory_cluster(seed=seed) as cluster:
        nodes, gina, key = await world(cluster)
        ida = await cluster.join("ida", run=[(INFERENCE, InferenceConfig(("echo",), "echo"))], backends=[ECHO])
        await cluster.linked()
        assert await ask(gina) == "ok"
        cut(cluster, nodes, [gina])
        assert await ask(gina) == "ok"
        await lasts(gina, key, seconds_max=LEASE_SECONDS)
        await trio.sleep(2)
        assert await ask(gina) == "no_lease"
        cut(cluster, nodes, [gina], heal=True)
        await says(gina, key, "ok", within_seconds=40)
        assert await ask(gina) == "ok"
        await cluster.restart(ida)
        await cluster.linked()
        assert await ask(gina) == "ok"


async def test_every_node_that_has_all_roles_serves_the_others(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed) as cluster:
        run = [auth(), (INFERENCE, InferenceConfig(("echo",), "echo")), RUN_GATEWAY]
        await cluster.found("alice", run=run, backends=[ECHO])
        await cluster.join("bob", run=[auth(), RUN_GATEWAY])
        await cluster.linked()
        await trio.sleep(5)
        for name in ("alice", "bob"):
            assert await ask(cluster.nodes[name]) == "ok"
