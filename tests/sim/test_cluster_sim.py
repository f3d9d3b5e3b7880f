"""Whole clusters on virtual time, with random faults: all is real but the
wire. Bounds in seconds are of virtual time.
"""

import gc
import logging
import random
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from trio.testing import MockClock

from covey.bus import wire
from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.cluster import cluster as cluster_module
from covey.cluster import exchange, relaying
from covey.cluster.choosing import GIVE_WAY_SECONDS_MAX
from covey.cluster.cluster import NetworkConfig
from covey.cluster.invites import parse_invite
from covey.contracts.auth import Actor
from covey.contracts.cluster import LinkStatus
from covey.contracts.membership import INVITE_NODE, REMOVE_NODE, InviteNode, RemoveNode
from covey.contracts.method import Nothing, Streaming, Unary
from covey.errors import CallError
from covey.roles.base import Parts, Role
from covey.testing.cluster import MemoryCluster, MemoryNode, NotLinked, open_memory_cluster
from covey.testing.memory_host import memory_hosts
from covey.transport.memory import LinkQuality

LAN = LinkQuality(delay_seconds=0.0005, jitter_seconds=0.001)
HEAL_SECONDS = 60.0
"""The longest back-off with its jitter, and a dial that was begun before."""


class Where(msgspec.Struct, frozen=True):
    machine: str


WHERE = Unary("where.where", Nothing, Where, access=frozenset({"member", "operator"}), timeout_seconds=2)
POUR = Streaming("where.pour", Nothing, Where, access=frozenset({"member"}), idle_seconds=30)


class WhereConfig(msgspec.Struct, frozen=True):
    pass


@asynccontextmanager
async def open_where(config: WhereConfig, parts: Parts) -> AsyncGenerator[None, None]:
    """A plug-in's role: says which machine it runs on."""

    async def where(caller: Caller, request: Nothing) -> Where:
        return Where(parts.folder.name)

    async def pour(caller: Caller, request: Nothing, emit: Emit[Where]) -> None:
        while True:
            await emit(Where("x" * 1_000))

    parts.bus.serve(WHERE, where)
    parts.bus.serve_stream(POUR, pour)
    yield


WHERE_ROLE = (Role("where", WhereConfig, open_where), WhereConfig())


async def grown(cluster: MemoryCluster, count: int, *, linked: bool = True) -> list[MemoryNode]:
    """A network of so many nodes, each of which can say where it is."""
    nodes = [await cluster.found("node0", run=[WHERE_ROLE])]
    nodes += [await cluster.join(f"node{number}", run=[WHERE_ROLE]) for number in range(1, count)]
    if linked:
        await cluster.linked()
    return nodes


def link(node: MemoryNode, other: MemoryNode) -> LinkStatus:
    return next(one for one in node.cluster.links() if one.peer == other.peer_id)


async def tasks() -> int:
    """How many there are where nothing happens to be under way."""
    least = trio.lowlevel.current_statistics().tasks_living
    for _ in range(20):
        await trio.sleep(0.07)
        least = min(least, trio.lowlevel.current_statistics().tasks_living)
    return least


def knows_only(node: MemoryNode, known: MemoryNode) -> None:
    """Forget where everybody else is."""
    prefix = b"l/addresses/"
    node.disk.write([(key, None) for key, _ in node.disk.scan(prefix) if key != prefix + known.peer_id.encode()])


async def ask(node: MemoryNode, other: MemoryNode) -> str:
    return (await node.bus.stamped("member").call(WHERE, Nothing(), to=other.peer_id)).machine


# Finding each other


async def test_everybody_finds_everybody_through_the_issuer(autojump_clock: MockClock, seed: int) -> None:
    chance = random.Random(seed)
    async with open_memory_cluster(seed=seed, quality=LAN) as cluster:
        founder = await cluster.found("node0")
        nodes = [await cluster.admit(f"node{number}") for number in range(1, chance.randint(3, 10))]
        for node in nodes:
            knows_only(node, founder)
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(cluster.start, node)
        assert await cluster.linked() <= 10
        await trio.sleep(60)
        assert not cluster.trouble()
        for node in cluster.nodes.values():
            assert [one.reconnects for one in node.cluster.links()] == [0] * len(nodes)
            assert len(node.bus.directory.serving("cluster.notice")) == len(nodes)


async def test_one_session_where_both_dial_at_once(autojump_clock: MockClock, seed: int) -> None:
    """Links are broken again and again while both know where the other is, so that they dial at the same moment."""
    chance = random.Random(seed)
    quality = LinkQuality(delay_seconds=chance.choice([0, 0.001, 0.05, 0.4]), jitter_seconds=chance.choice([0, 0.05]))
    async with open_memory_cluster(seed=seed, quality=quality) as cluster:
        alice, bob = await grown(cluster, 2)
        for _ in range(20):
            await trio.sleep(chance.uniform(6, 20))
            cluster.network.drop(alice.machine, bob.machine)
            assert await cluster.linked() <= 10
            await trio.sleep(GIVE_WAY_SECONDS_MAX + 3)  # a slow dial of the other side may have come second
            assert not cluster.trouble()
            assert await ask(alice, bob) == "node1"
            assert await ask(bob, alice) == "node0"


async def test_a_node_that_only_dials_out(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed, quality=LAN) as cluster:
        alice, bob = await grown(cluster, 2)
        carol = await cluster.admit("carol", run=[WHERE_ROLE])
        carol.config = NetworkConfig(listen="none")
        await cluster.start(carol)
        await cluster.linked()
        assert [await ask(node, carol) for node in (alice, bob)] == ["carol", "carol"]
        await cluster.restart(bob)
        await cluster.linked()


# Faults


async def test_random_faults_heal(autojump_clock: MockClock, seed: int) -> None:
    chance = random.Random(seed)
    async with open_memory_cluster(seed=seed, quality=LAN) as cluster:
        nodes = await grown(cluster, chance.randint(3, 6))
        await trio.sleep(60)
        before = await tasks()
        for _ in range(3):
            for _ in range(chance.randint(1, 8)):
                await one_fault(cluster, chance)
                await trio.sleep(chance.choice([0, 0.1, 1, 5, 20, 60]) * chance.random())
            await heal(cluster)
            try:
                await cluster.linked(nodes, within_seconds=HEAL_SECONDS)
            except NotLinked:
                report(nodes)
                raise
            for node in nodes:
                others = {other.peer_id for other in nodes if other is not node}
                assert set(node.bus.directory.serving(WHERE.name)) == others, "a ghost, or somebody missing"
                assert [await ask(node, other) for other in nodes] == [other.name for other in nodes]
            await trio.sleep(60)
            assert not cluster.trouble(nodes)
            assert await tasks() == before


async def one_fault(cluster: MemoryCluster, chance: random.Random) -> None:
    network = cluster.network
    one, other = chance.sample(list(cluster.nodes.values()), 2)
    fault = chance.choice(
        ["cut", "cut", "one way", "freeze", "thaw", "drop", "kill", "restart", "stop", "power", "move"]
    )
    if fault == "cut":
        network.cut(one.machine, other.machine)
    elif fault == "one way":
        network.cut(one.machine, other.machine, one_way=True)
    elif fault == "freeze":
        network.freeze(one.machine)
    elif fault == "thaw":
        network.thaw(one.machine)
    elif fault == "drop":
        network.drop(one.machine, other.machine)
    elif fault == "move" and one.running:
        await cluster.move(one)
    elif fault in ("kill", "restart", "stop", "power"):
        ends = {"kill": cluster.kill, "restart": cluster.kill, "stop": cluster.stop, "power": cluster.lose_power}
        if one.running:
            await ends[fault](one)
        if fault == "restart" or chance.random() < 0.3:
            await cluster.start(one)


async def heal(cluster: MemoryCluster) -> None:
    nodes = list(cluster.nodes.values())
    for node in nodes:
        cluster.network.thaw(node.machine)
        for other in nodes:
            cluster.network.heal(node.machine, other.machine)
    for node in nodes:
        if not node.running:
            await cluster.start(node)


def report(nodes: list[MemoryNode]) -> None:
    for node in nodes:
        for one in node.cluster.links():
            print(node.name, one.name, one.path, one.address, one.failure)


@pytest.mark.parametrize("seconds", [8, 60, 900])
async def test_back_soon_after_a_partition(autojump_clock: MockClock, seed: int, seconds: float) -> None:
    chance = random.Random(seed)
    async with open_memory_cluster(seed=seed, quality=LAN) as cluster:
        nodes = await grown(cluster, 4)
        left, right = nodes[:2], nodes[2:]
        for one in left:
            for other in right:
                cluster.network.cut(one.machine, other.machine)
        await trio.sleep(seconds * chance.uniform(1, 1.2))
        await heal(cluster)
        healed_at = trio.current_time()
        while all(link(one, other).path == "down" for one in left for other in right):  # noqa: ASYNC110 - virtual time
            await trio.sleep(0.05)
        first_seconds = trio.current_time() - healed_at
        assert first_seconds <= (2 if seconds < 10 else HEAL_SECONDS)
        # What brought one link back has brought back the others: they do not wait for their own back-off. But whoever
        # just dials into the dark has to wait for that to fail.
        assert await cluster.linked() <= 8


async def test_a_restart_after_power_loss_is_let_in_at_once(autojump_clock: MockClock, seed: int) -> None:
    """The others still believe in the old link, which is silent."""
    async with open_memory_cluster(seed=seed, quality=LAN) as cluster:
        _, bob, _ = await grown(cluster, 3)
        await trio.sleep(random.Random(seed).uniform(0, 10))
        await cluster.lose_power(bob)
        await cluster.start(bob)
        assert await cluster.linked() <= 1.5


# Identities


async def test_a_copied_identity(autojump_clock: MockClock, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    async with open_memory_cluster(seed=seed, quality=LAN) as cluster:
        alice, bob, carol = await grown(cluster, 3)
        thief = cluster.copy(bob, "thief")
        caplog.clear()
        await cluster.start(thief)
        for _ in range(100):
            await trio.sleep(3)
            assert [await ask(node, bob) for node in (alice, carol)] == ["node1", "node1"]
        assert "Two machines run with the identity of node1" in link(thief, alice).failure
        told = {record.getMessage().partition(":")[0] for record in caplog.records if record.levelno == logging.ERROR}
        assert "The node node0 says" in told, "the older one was not told"
        assert "Two machines run with the identity of node1" in told
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) < 20, (
            "people are flooded"
        )
        assert not cluster.trouble([alice, carol, bob])
        assert [one.reconnects for one in bob.cluster.links()] == [0, 0]
        await cluster.stop(bob)
        await cluster.linked([alice, carol, thief])


async def test_two_machines_want_one_name(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed, quality=LAN) as cluster:
        alice = await cluster.found("alice")
        made = await alice.operator.call(INVITE_NODE, InviteNode(Actor(), uses=5))
        made_up = [cluster.add(f"m{number}") for number in range(5)]
        async with trio.open_nursery() as nursery:
            for node in made_up:
                node.wish = "Alice"
                nursery.start_soon(cluster.use_invite, node, parse_invite(made.token))
        for node in made_up:
            await cluster.start(node)
        await cluster.linked()
        names = {alice.cluster.membership.name(node.peer_id) for node in made_up}
        assert names == {f"Alice-{number}" for number in range(2, 7)}
        assert {node.bus.name_of(node.peer_id) for node in made_up} == names


# Removal


async def removed(cluster: MemoryCluster, node: MemoryNode) -> None:
    issuer = next(iter(cluster.nodes.values()))
    await issuer.operator.call(REMOVE_NODE, RemoveNode(Actor(), node.peer_id))


async def test_a_removed_node_is_out_within_a_second(autojump_clock: MockClock, seed: int) -> None:
    async with open_memory_cluster(seed=seed, quality=LAN) as cluster:
        *others, mallory = await grown(cluster, 6)
        await removed(cluster, mallory)
        await trio.sleep(1)
        for node in others:
            assert mallory.peer_id not in {one.peer for one in node.cluster.links()}
            assert mallory.peer_id not in node.bus.directory.serving(WHERE.name)
            assert cluster.network.connections(node.machine, mallory.machine) == 0
        assert "was removed from its network" in mallory.cluster.removed
        assert not mallory.cluster.awake
        with pytest.raises(CallError, match="was removed"):
            await cluster.restart(mallory)
        await trio.sleep(60)
        assert not cluster.trouble(others)


async def test_a_node_removed_in_its_absence_learns_why(autojump_clock: MockClock, seed: int) -> None:
    """Cut off from the auth node, off, or cut off from all: whatever, it learns it once it can."""
    async with open_memory_cluster(seed=seed, quality=LAN) as cluster:
        alice, *others, mallory = await grown(cluster, 4)
        how = seed % 3
        if how == 0:
            await cluster.kill(mallory)
        for node in [alice, *(others if how == 1 else [])]:
            cluster.network.cut(node.machine, mallory.machine)
        await trio.sleep(40)
        await removed(cluster, mallory)
        await trio.sleep(40)
        await heal(cluster)
        await trio.sleep(HEAL_SECONDS)
        assert "was removed from its network" in mallory.cluster.removed
        assert not cluster.trouble([alice, *others])


async def test_a_removed_node_that_insists(autojump_clock: MockClock, seed: int) -> None:
    """It has forgotten that it was removed, and has its old disk."""
    async with open_memory_cluster(seed=seed, quality=LAN) as cluster:
        *others, mallory = await grown(cluster, 3)
        old = mallory.disk.copy()
        await removed(cluster, mallory)
        await trio.sleep(1)
        await cluster.kill(mallory)
        mallory.disk = old
        await cluster.start(mallory)
        for _ in range(200):
            await trio.sleep(0.05)
            for node in others:
                assert mallory.peer_id not in node.bus.directory.serving(WHERE.name)
        assert "was removed from its network" in mallory.cluster.removed


# Bad company


async def test_a_peer_that_floods_hurts_nobody_else(autojump_clock: MockClock, seed: int) -> None:
    """A member that never reads, and asks for streams, pings and answers without end."""
    async with open_memory_cluster(seed=seed, quality=LAN) as cluster:
        alice, bob = await grown(cluster, 2)
        mallory = await cluster.admit("mallory", roles=["where"])
        opener = memory_hosts(cluster.network, lambda: mallory.machine, lambda _: None)
        hello = wire.hello(wire.Hello(wire.VERSION, wire.VERSION_OLDEST, "boot", "mallory", wire.FEATURES, ()))
        nothing = msgspec.Raw(msgspec.msgpack.encode(Nothing()))
        sent = 0

        async def flood(kind: int) -> None:
            nonlocal sent
            stream, _ = await host.dial(alice.peer_id, (alice.machine,))
            await stream.send_all(hello)
            try:
                with trio.move_on_after(60):
                    for number in range(1, 20_001, 2):
                        opened = wire.open_call(number, wire.Open(POUR.name, "member", nothing, None, ""))
                        frame = [opened, wire.frame(wire.Type.PING, number), wire.credit(number, 64)][kind % 3]
                        await stream.send_all(frame * 20 if kind % 3 else frame)
                        sent += 1
            except trio.BrokenResourceError:
                pass  # this is what it gets
            await trio.aclose_forcefully(stream)

        async def hang_up(peer: object, stream: trio.abc.Stream) -> None:
            await trio.aclose_forcefully(stream)

        await trio.sleep(2)
        tracemalloc.start()
        async with (
            opener(mallory.identity, "none", is_member=lambda _: True, on_rpc=hang_up, on_join=hang_up) as host,
            trio.open_nursery() as nursery,
        ):
            for kind in range(3):
                nursery.start_soon(flood, kind)
            for _ in range(50):
                await trio.sleep(0.1)
                assert [await ask(alice, bob), await ask(bob, alice)] == ["node1", "node0"]
        assert sent > 1_000
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
        tracemalloc.stop()
        assert link(alice, bob).reconnects == link(bob, alice).reconnects == 0


async def test_wall_clocks_that_jump(autojump_clock: MockClock, seed: int) -> None:
    chance = random.Random(seed)
    async with open_memory_cluster(seed=seed, quality=LAN) as cluster:
        nodes = await grown(cluster, 3)
        for _ in range(20):
            cluster.clock.jump(chance.choice([-1, 1]) * chance.choice([1, 60, 86_400, 10 * 365 * 86_400]))
            await trio.sleep(chance.uniform(0, 20))
            assert not cluster.trouble()
        await cluster.restart(nodes[1])
        await cluster.linked()
        await cluster.join("late", run=[WHERE_ROLE])
        await cluster.linked()
        assert [one.reconnects for one in nodes[0].cluster.links()] == [0, 1, 0]


# A long time


@pytest.mark.slow
async def test_a_day_of_churn_leaves_nothing_behind(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """A link breaks, stalls or is cut every minute or so for 24 hours; a process dies now and then."""
    # The same work, with fewer looks at nothing: they would be nearly all that the day consists of.
    for module, name in (
        (exchange, "LOOK_SECONDS"),
        (relaying, "LOOK_SECONDS"),
        (cluster_module, "LOOK_AT_INTERFACES_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 10.0)
    caplog.set_level(logging.CRITICAL)  # pytest keeps what is logged
    seldom = NetworkConfig(ping_seconds=15, dead_seconds=30)
    chance, faults = random.Random(seed), 0
    sizes: list[tuple[int, int]] = []
    async with open_memory_cluster(seed=seed, config=seldom) as cluster:
        nodes = await grown(cluster, 3)
        for hour in range(1, 25):
            while trio.current_time() < 3_600 * hour:
                one, other = chance.sample(nodes, 2)
                fault = chance.choice(["drop", "drop", "cut", "one way", "freeze", "restart"])
                if fault == "drop":
                    cluster.network.drop(one.machine, other.machine)
                elif fault == "freeze":
                    cluster.network.freeze(one.machine)
                elif fault == "restart":
                    await cluster.restart(one)
                else:
                    cluster.network.cut(one.machine, other.machine, one_way=fault == "one way")
                await trio.sleep(chance.choice([1, 5, 30, 100]) * chance.random())
                await heal(cluster)
                await trio.sleep(chance.uniform(3, 60))
                faults += 1
            if hour in (2, 24):
                await cluster.linked()
                await trio.sleep(30)
                gc.collect()
                sizes.append((await tasks(), len(gc.get_objects())))
    (tasks_early, objects_early), (tasks_late, objects_late) = sizes
    assert faults > 1_000
    assert tasks_late == tasks_early
    assert objects_late - objects_early < 0.02 * objects_early
