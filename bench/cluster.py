"""What a node costs for each peer as the network grows, and how fast machines come in: many nodes on a memory network.

    python -m bench.cluster [--seconds 10]

All nodes share one process, so a node's share is the whole divided by their number; of many, each also suffers from the
others in its caches. Idle time is virtual: CPU time for each second that passes in the cluster. Real links add libp2p's
own cost, which `bench.machines` measures.
"""

import argparse
import gc
import time
from collections.abc import Iterable
from pathlib import Path

import trio
from trio.testing import MockClock

from bench.figure import Figure, show
from covey.backends.base import Plugged
from covey.backends.echo import BACKEND as ECHO
from covey.backends.echo import EchoConfig
from covey.contracts.auth import Actor
from covey.contracts.gateway import LIST_MODELS, ListModels
from covey.roles.gateway.role import ROLE as GATEWAY
from covey.roles.gateway.role import GatewayConfig
from covey.roles.inference.role import ROLE as INFERENCE
from covey.roles.inference.role import InferenceConfig
from covey.testing.cluster import MemoryCluster, open_memory_cluster

SIZES = (3, 10, 30)
LARGE = 100
"""Takes minutes and 1.2 GB: only where each figure gets 10 seconds or more."""
IDLE_SECONDS = 30.0
JOINS = 30
PLACED = 10


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


async def grow(cluster: MemoryCluster, size: int) -> None:
    """All join before any starts: the news of each would otherwise go round among all."""
    gc.disable()
    await cluster.found("node0")
    nodes = [await cluster.admit(f"node{number}") for number in range(1, size)]
    for node in nodes:
        await cluster.start(node)
    while cluster.trouble():  # noqa: ASYNC110 - virtual time
        await trio.sleep(0.5)
    gc.enable()


async def idle(size: int) -> tuple[float, float]:
    """CPU microseconds a second, and bytes, of one node for each of its peers."""
    gc.collect()
    empty = resident_bytes()
    async with open_memory_cluster(seed=1) as cluster:
        await grow(cluster, size)
        await trio.sleep(60)  # what is said once has been said
        gc.collect()
        gc.freeze()  # a real node's collector has no other nodes to look through
        held = resident_bytes() - empty
        began, cpu = trio.current_time(), time.process_time()
        await trio.sleep(IDLE_SECONDS)
        used = (time.process_time() - cpu) / (trio.current_time() - began)
        gc.unfreeze()
    return used * 1e6 / size / (size - 1), held / size / (size - 1)


async def joining() -> float:
    """Machines a second that come in, one after the other, each linked to all before the next: CPU time."""
    async with open_memory_cluster(seed=1) as cluster:
        await cluster.found("node0")
        began = time.process_time()
        for number in range(1, JOINS + 1):
            await cluster.join(f"node{number}")
        while cluster.trouble():  # noqa: ASYNC110 - virtual time
            await trio.sleep(0.1)
        return JOINS / (time.process_time() - began)


async def placing() -> float:
    """The most seconds (of the cluster's own time) from the start of a join until the gateway lists the new models."""
    worst = 0.0
    async with open_memory_cluster(seed=1) as cluster:
        alice = await cluster.found("alice", run=[(GATEWAY, GatewayConfig())])
        for number in range(PLACED):
            echo = Plugged(ECHO, EchoConfig(models=(f"model{number}",)))
            settings = InferenceConfig(backends=("echo",), default_model=f"model{number}")
            began = trio.current_time()
            await cluster.join(f"node{number}", run=[(INFERENCE, settings)], backends=[echo])
            while not await lists(cluster, f"model{number}"):  # noqa: ASYNC110 - virtual time
                await trio.sleep(0.02)
            worst = max(worst, trio.current_time() - began)
        assert alice.running
    return worst


async def lists(cluster: MemoryCluster, model: str) -> bool:
    """Whether the gateway would place a request for the model."""
    found = await cluster.nodes["alice"].operator.call(LIST_MODELS, ListModels(Actor()))
    return model in {one.name for one in found.models}


def run(seconds: float) -> Iterable[Figure]:
    """Each size from the smallest on. The time is virtual; `seconds` only says whether the largest is worth it."""
    base_cpu = base_bytes = None
    for size in (*SIZES, LARGE) if seconds >= 10 else SIZES:
        cpu, held = trio.run(idle, size, clock=MockClock(autojump_threshold=0))
        base_cpu, base_bytes = base_cpu or cpu, base_bytes or held
        yield Figure(f"idle CPU for each peer, {size} nodes", cpu, "µs/s", base_cpu, "3 nodes", goal_max=2 * base_cpu)
        yield Figure(f"memory for each peer, {size} nodes", held / 1024, "KiB", base_bytes / 1024, "3 nodes")
    yield Figure("joins, each known to all", trio.run(joining, clock=MockClock(autojump_threshold=0)), "1/CPU s")
    placed = trio.run(placing, clock=MockClock(autojump_threshold=0))
    yield Figure("from join to the gateway's placing", placed, "s", goal_max=3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="from 10 on: 100 nodes, too")
    show("cluster", run(parser.parse_args().seconds))
