"""What every node says of itself, whatever its roles."""

from typing import Literal

import msgspec

from covey.contracts.auth import Actor
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


class LinkStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """The link to one other member. `roles`: those that it was admitted with. `labels`: an administrator's.

    `address`: where it was reached, or came from, the last time. `failure`: why the link is down, or could not be
    brought up the last time; "" while it is up. `rtt_seconds`: of the last PING; `None` before the first. Bytes count
    since this node started.
    `calls_made` and `calls_served`: under way now, this node's there and the peer's here.
    """

    peer: str
    name: str
    roles: tuple[str, ...]
    path: Literal["direct", "relayed", "down"]
    rtt_seconds: float | None = None
    reconnects: int = 0
    address: str = ""
    failure: str = ""
    received_bytes: int = 0
    sent_bytes: int = 0
    calls_made: int = 0
    calls_served: int = 0
    labels: tuple[str, ...] = ()


class LinkList(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answering node's links to all other members, by name. `roles`: those that it was itself admitted with; none
    where it belongs to no network. `removed`: why it is a member no more; "" while it is. `labels`: its own.
    """

    links: tuple[LinkStatus, ...]
    roles: tuple[str, ...] = ()
    removed: str = ""
    labels: tuple[str, ...] = ()


LINKS = Unary(
    "cluster.links", Nothing, LinkList, access=frozenset({"web", "operator"}), timeout_seconds=2, idempotent=True
)


class Drain(msgspec.Struct, frozen=True, omit_defaults=True):
    """Have a node finish what it does and take no new work, until `undo`, or until it starts anew.

    `node` is a name or a peer id; "": the node that is called. Any node passes it on. Unless it comes from the node's
    own operator or from an auth node, `actor` has to be an administrator.
    """

    actor: Actor
    node: str = ""
    undo: bool = False


class Drained(msgspec.Struct, frozen=True):
    """What the node called `name` does from now on."""

    name: str
    peer: str
    draining: bool


DRAIN = Unary(
    "cluster.drain", Drain, Drained, access=frozenset({"web", "operator", "member"}), timeout_seconds=5, idempotent=True
)
