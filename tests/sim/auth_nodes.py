"""Several auth nodes in one memory cluster, and whether they agree: for the simulations of what is replicated."""

from collections.abc import Sequence

import trio

from covey.contracts.auth import CREATE_KEY, Actor, CreateKey, NewKey
from covey.store.entries import KINDS
from covey.store.view import View
from covey.testing.cluster import CHEAP_AUTH, MemoryCluster, MemoryNode

OPERATOR = Actor()


async def auth_nodes(cluster: MemoryCluster, *names: str) -> list[MemoryNode]:
    """The first founds the network, the others join it; all hold the same when this returns."""
    nodes = [await cluster.found(names[0])]
    for name in names[1:]:
        nodes.append(await cluster.join(name, run=[CHEAP_AUTH]))
    await cluster.linked()
    await agreed(nodes)
    return nodes


def hashes(node: MemoryNode) -> dict[str, str]:
    """Of its views, by kind."""
    return {kind: View(node.store.reader).hash(kind) for kind in KINDS}


async def agreed(nodes: Sequence[MemoryNode], *, within_seconds: float = 60.0) -> None:
    """Until all have one view."""
    with trio.fail_after(within_seconds):
        while any(hashes(node) != hashes(nodes[0]) for node in nodes):  # noqa: ASYNC110 - on virtual time
            await trio.sleep(0.1)


async def new_key(node: MemoryNode) -> NewKey:
    """The operator's."""
    return await node.operator.call(CREATE_KEY, CreateKey(OPERATOR))
