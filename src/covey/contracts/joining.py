"""What a machine that is not a member yet says to the node that invited it, on `/covey/join/1`, and is told.

One request and one answer, each a frame of four bytes of length (big-endian) and MessagePack. The joiner has checked
that the issuer's key and network are the invited ones before it shows the secret.
"""

import msgspec

from covey.errors import Problem

JOIN_BYTES_MAX = 4 * 1024 * 1024
"""Of the answer: a network's whole members feed. The request may have `JOIN_REQUEST_BYTES_MAX`."""
JOIN_REQUEST_BYTES_MAX = 4 * 1024
JOIN_SECONDS_MAX = 10.0


class JoinRequest(msgspec.Struct, frozen=True):
    """`secret`: the invite's. `name`: what the machine would like to be called. `version`: of Covey, for messages."""

    network_id: str
    secret: bytes
    name: str
    version: str


class Welcome(msgspec.Struct, frozen=True):
    """`genesis` and `members` (entries, exact bytes, in order) are verified by the joiner from the network id on.

    `addresses`: of members that the issuer knows, by peer id. `name`: what the machine is called from now on.
    """

    genesis: bytes
    members: tuple[bytes, ...]
    addresses: dict[str, tuple[str, ...]]
    name: str
    roles: tuple[str, ...]


class JoinAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One of the two."""

    welcome: Welcome | None = None
    refusal: Problem | None = None
