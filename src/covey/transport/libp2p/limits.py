"""How long the host waits, and how much it holds."""

import msgspec


class HostLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The bounds of one host. Addresses are counted one by one for IPv4, and by /64 for IPv6."""

    handshake_seconds: float = 5.0
    """For Noise and yamux, from the first byte on, either way."""
    handshake_bytes_max: int = 1 << 14
    """Received before the peer has proved who it is; an honest handshake takes some 400."""
    unproved_max: int = 256
    """Connections whose peer has not proved who it is. Beyond, the one that has been silent longest goes."""
    unproved_per_address_max: int = 64
    strangers_max: int = 32
    """Connections of peers that proved to be no members: they may join, and nothing else. Beyond, the newest goes."""
    strangers_per_address_max: int = 4
    stranger_attempts_max: int = 20
    """Connections of strangers from one address within `stranger_attempts_seconds`."""
    stranger_attempts_seconds: float = 60.0
    notice_seconds: float = 60.0
    """Between two warnings about one address in the log; what happens meanwhile is logged for debugging only."""
    join_seconds: float = 30.0
    """How long a stranger's connection may live."""
    join_bytes_max: int = 1 << 17
    """Received from a stranger in all."""
    connections_per_member_max: int = 32
    """Inbound; beyond, the newest is refused. Each session has one of its own, and so has each way through a relay."""
    inbound_streams_max: int = 8
    """That a member may have open on a connection that it opened; a stranger has `stranger_streams_max`."""
    relayed_streams_max: int = 64
    """That a relay may have open on a connection that this node opened."""
    stranger_streams_max: int = 2
    window_bytes_max: int = 1 << 20
    """Received and not yet read, for each stream that is being read; before, yamux's 256 KiB."""
    queue_bytes: int = 1 << 17
    """Waiting to be written to one connection, above which its streams' senders wait."""
    negotiate_seconds: float = 5.0
    """For agreeing on a stream's protocol."""
    dial_seconds: float = 8.0
    """For a dial as a whole, every address included."""
    dial_stagger_seconds: float = 0.1
    """Between the starts of two addresses' attempts."""
    dial_addresses_max: int = 16
    idle_seconds: float = 5.0
    """Without a stream, after which a connection is closed."""
    ping_seconds: float = 5.0
    """Between the pings on a connection to or from a relay, which counts as lost after three of them in silence."""
    close_seconds: float = 1.0
    """For writing what is queued when a stream is closed."""
