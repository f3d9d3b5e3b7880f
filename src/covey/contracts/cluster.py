"""What every node says of itself, whatever its roles."""

import msgspec

from covey.contracts.method import Nothing, Unary


class NodeStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """`peer_id` is the libp2p peer id. `urls` are where its API and dashboard listen. `roles` in starting order."""

    name: str
    peer_id: str
    version: str
    roles: tuple[str, ...]
    urls: tuple[str, ...]
    started_at: int
    uptime_seconds: float
    memory_bytes: int
    draining: bool = False
    network_id: str = ""
    python: str = ""


NODE_STATUS = Unary(
    "cluster.node_status",
    Nothing,
    NodeStatus,
    access=frozenset({"member", "operator"}),
    timeout_seconds=2,
    idempotent=True,
)


class NodeList(msgspec.Struct, frozen=True):
    """Every live node that this one knows, itself first."""

    nodes: tuple[NodeStatus, ...]


NODES = Unary(
    "cluster.nodes", Nothing, NodeList, access=frozenset({"web", "operator"}), timeout_seconds=3, idempotent=True
)
