"""What lets gateways vouch for keys by themselves: leases, and news of what was denied (replication.md).

A gateway checks keys in its own copy of the keys feeds, which may be cut off from what others write. So it does that
only under a lease, which an auth node grants while it knows itself what a majority of the auth nodes holds.
"""

import msgspec

from covey.contracts.method import Nothing, Streaming, Unary


class LeaseGrant(msgspec.Struct, frozen=True):
    """A lease of `seconds` from when the gateway *asked*, once it has applied what `heads` name of its kinds."""

    seconds: float
    heads: dict[str, int]


GRANT_LEASE = Unary(
    "auth.grant_lease", Nothing, LeaseGrant, access=frozenset({"gateway"}), timeout_seconds=2, idempotent=True
)
"""`unreachable` (`no_lease`) where the auth node does not know what a majority holds."""


class HeldLeases(msgspec.Struct, frozen=True):
    """The gateways that hold a lease of the answering auth node, by peer id, with the seconds that it still lasts."""

    seconds_left: dict[str, float]


LEASES = Unary("auth.leases", Nothing, HeldLeases, access=frozenset({"inference"}), timeout_seconds=2, idempotent=True)


class Denied(msgspec.Struct, frozen=True, omit_defaults=True):
    """What has just been denied here: keys and owners by id. `authors`: an auth node was removed, and the keys that it
    made may be void. Nothing at all: this is where the news begins, or a sign of life.
    """

    keys: tuple[str, ...] = ()
    owners: tuple[str, ...] = ()
    authors: bool = False


DENIALS = Streaming("auth.denials", Nothing, Denied, access=frozenset({"gateway"}), idle_seconds=30)
"""Denials from now on, as they become durable here. The first item comes at once: whoever has it misses none after."""
