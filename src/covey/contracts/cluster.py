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


class KnownAddresses(msgspec.Struct, frozen=True):
    """Where members can be found, by peer id: the sender's own announced addresses, and what it has learnt. Hints."""

    addresses: dict[str, tuple[str, ...]]


EXCHANGE_ADDRESSES = Unary(
    "cluster.exchange_addresses",
    KnownAddresses,
    KnownAddresses,
    access=frozenset({"member"}),
    timeout_seconds=5,
    idempotent=True,
)
"""Peer exchange: each side tells the other where members are."""


class Notice(msgspec.Struct, frozen=True):
    """Something that the other side's administrator should know, in one line."""

    reason: str
    message: str


NOTICE = Unary("cluster.notice", Notice, Nothing, access=frozenset({"member"}), timeout_seconds=2, idempotent=True)
"""Goes to the peer's log: that a copy of its identity was refused, for one."""
