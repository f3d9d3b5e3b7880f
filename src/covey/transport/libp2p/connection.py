"""A connection to a peer that has proved who it is, and what is known of the way to it."""

from dataclasses import dataclass, field

import msgspec
import trio

from covey.transport.base import PeerId
from covey.transport.libp2p.channel import Channel
from covey.transport.libp2p.yamux import Yamux


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """How bytes travel on one connection."""

    address: str
    """Of the other end: what was dialled, or where it dialled from."""
    dialled: bool
    """Whether this side opened the connection."""
    relayed: bool
    """Whether another member passes the bytes on."""
    age_seconds: float
    received_bytes: int
    """On the wire, Noise included."""
    sent_bytes: int


@dataclass(slots=True, eq=False)
class Connection:
    """One of a host's connections."""

    peer: PeerId
    """As proved by Noise."""
    address: str
    dialled: bool
    relayed: bool
    channel: Channel
    yamux: Yamux
    account: str = ""
    """What an inbound connection is counted by."""
    opened_at: float = field(default_factory=trio.current_time)

    @property
    def path(self) -> Path:
        """A snapshot."""
        return Path(
            address=self.address, dialled=self.dialled, relayed=self.relayed,
            age_seconds=trio.current_time() - self.opened_at,
            received_bytes=self.channel.received_bytes, sent_bytes=self.channel.sent_bytes,
        )  # fmt: skip
