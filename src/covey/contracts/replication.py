"""How feeds spread: auth nodes tail each other, every other member tails auth nodes; one contract for each kind.

Who may read which kind is the contract's `access`, and nothing else (`covey.store.membership.READERS`).
"""

import msgspec

from covey.contracts.feeds import Kind
from covey.contracts.method import Nothing, Party, Streaming, Unary

HASH_BYTES = 16
"""As much of an entry's hash as a head carries: what is compared is signed anyway."""


class Tail(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the reader has: the last sequence number of each feed, and (`hashes`) the beginning of that entry's hash."""

    vector: dict[str, int]
    hashes: dict[str, bytes] = {}


class FeedEntries(msgspec.Struct, frozen=True, omit_defaults=True):
    """Entries in an order in which each follows its feed's last: exact bytes, signature first. None: a heartbeat.

    `heads`: the last sequence number of each feed that the sender holds; `hashes`: the beginning of that entry's hash.
    `proofs`: pairs of entries by which authors are shown to have equivocated.
    """

    entries: tuple[bytes, ...]
    heads: dict[str, int]
    hashes: dict[str, bytes] = {}
    proofs: tuple[tuple[bytes, bytes], ...] = ()


TAIL_MEMBERS = Streaming("feeds.tail_members", Tail, FeedEntries, access=frozenset({"member"}), idle_seconds=30)
"""A kind of feed, from where the reader stands, then live, with heartbeats. Served by every auth node."""
TAIL_KEYS = Streaming(
    "feeds.tail_keys", Tail, FeedEntries, access=frozenset({"gateway", "web", "auth"}), idle_seconds=30
)
TAIL_SECRET = Streaming("feeds.tail_secret", Tail, FeedEntries, access=frozenset({"auth"}), idle_seconds=30)
TAILS: dict[Kind, Streaming[Tail, FeedEntries]] = {
    "members": TAIL_MEMBERS,
    "keys": TAIL_KEYS,
    "secret": TAIL_SECRET,
}


class Heads(msgspec.Struct, frozen=True):
    """The last sequence number of each feed that a node holds, of whatever kinds it reads."""

    heads: dict[str, int]


HEADS = Unary("feeds.heads", Nothing, Heads, access=frozenset({"auth"}), timeout_seconds=2, idempotent=True)
"""Asked of auth nodes by each other: whoever has applied what the answer names has all that was acknowledged there."""

ACKNOWLEDGE = Unary(
    "feeds.acknowledge", Heads, Nothing, access=frozenset({"member"}), timeout_seconds=5, idempotent=True
)
"""What a member holds durably by now, told to auth nodes: a write waits for it, and says who has it."""


# How it goes


class FeedStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One feed as a node holds it. `author`: what its author is called. `frozen`: its author wrote two entries for one
    place, and nothing beyond counts.
    """

    feed: str
    author: str
    seq: int
    frozen: bool = False


class SourceStatus(msgspec.Struct, frozen=True):
    """An auth node that is followed."""

    node: str
    caught_up: bool


class KindStatus(msgspec.Struct, frozen=True):
    """One kind of feed. `view_hash`: as `View.hash`: equal on all nodes that hold the same."""

    kind: Kind
    view_hash: str
    feeds: tuple[FeedStatus, ...]
    sources: tuple[SourceStatus, ...]


class LeaseStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether a node may vouch for keys. `needed`: it has the role gateway or auth. `seconds_left` `None`: without an
    end. `why`: it may not, and what to do; "" where it may.
    """

    needed: bool
    seconds_left: float | None = None
    why: str = ""


class ReplicationStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one node's copy of the feeds does. `roles`: what it was admitted as; none: it belongs to no network.

    `behind_entries`: named by others and not here yet, for `lag_seconds`. `quarantined_entries` came too early.
    `refused_entries`: by reason, since the node started. `blocked`: feeds that hold what its version does not know, and
    what to do. `ahead`: authors whose clock is too far ahead.
    """

    node: str
    peer: str
    roles: tuple[str, ...]
    kinds: tuple[KindStatus, ...]
    lease: LeaseStatus
    behind_entries: int = 0
    lag_seconds: float = 0.0
    quarantined_entries: int = 0
    refused_entries: dict[str, int] = {}
    blocked: dict[str, str] = {}
    ahead: tuple[str, ...] = ()


WATCHERS: frozenset[Party] = frozenset({"web", "operator", "member"})

REPLICATION = Unary(
    "cluster.replication", Nothing, ReplicationStatus, access=WATCHERS, timeout_seconds=5, idempotent=True
)
"""Served by every node. Reading every row of a large view takes a while, and is done once for each state of it."""


class Replications(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answering node, then every other auth node that answers. `silent`: the names of those that do not."""

    nodes: tuple[ReplicationStatus, ...]
    silent: tuple[str, ...] = ()


REPLICATIONS = Unary(
    "cluster.replications",
    Nothing,
    Replications,
    access=frozenset({"web", "operator"}),
    timeout_seconds=6,
    idempotent=True,
)
