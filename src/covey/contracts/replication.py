"""How feeds spread: auth nodes tail each other, every other member tails auth nodes; one contract for each kind.

Who may read which kind is the contract's `access`, and nothing else (`covey.store.membership.READERS`).
"""

import msgspec

from covey.contracts.feeds import Kind
from covey.contracts.method import Nothing, Streaming, Unary

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
