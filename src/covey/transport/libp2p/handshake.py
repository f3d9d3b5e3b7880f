"""Who is on the other side: Noise XX, through libp2p's own implementation, then yamux.

Noise is all that is offered and all that is asked for. py-libp2p's default host offers `/plaintext/2.0.0` as well, in
which whoever knows a public key passes for its owner.
"""

import logging
import os
from typing import Protocol, cast

import trio
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.security.noise.io import BaseNoiseMsgReadWriter
from libp2p.security.noise.transport import Transport as NoiseTransport
from multiaddr import Multiaddr

from covey.transport.base import PeerId
from covey.transport.libp2p.channel import Channel, ChannelError
from covey.transport.libp2p.negotiation import NOISE, YAMUX, NegotiationError, answer, ask


class Keys(Protocol):
    """A node's identity, as `covey.store.identity.Identity` is one."""

    peer_id: PeerId

    def seed(self) -> bytes:
        """The Ed25519 secret, 32 bytes."""
        ...


class HandshakeError(Exception):
    """There is no authenticated connection; the message says why, for people."""


class Handshake:
    """Authenticates connections as one node.

    Args:
        keys: of this node.
    """

    def __init__(self, keys: Keys) -> None:
        _quiet_libp2p()
        pair = create_new_key_pair(keys.seed())
        if str(ID.from_pubkey(pair.public_key)) != keys.peer_id:
            raise ValueError("libp2p derives another peer id from this node's key")
        # The Noise key is new in every process, and signed with the node's.
        self._noise = NoiseTransport(pair, noise_privkey=create_new_x25519_key_pair().private_key)

    async def accept(self, channel: Channel) -> PeerId:
        """Secure an inbound connection; returns the peer that proved its identity. The caller limits the time.

        Raises:
            HandshakeError
        """
        return await self._secured(channel, None)

    async def connect(self, channel: Channel, peer: PeerId) -> None:
        """Secure an outbound connection to that peer and no other. The caller limits the time.

        Raises:
            HandshakeError
        """
        await self._secured(channel, peer)

    async def _secured(self, channel: Channel, peer: PeerId | None) -> PeerId:
        try:
            if peer is None:
                await answer(channel, {NOISE}, patient=True)
                secured = await self._noise.secure_inbound(_Raw(channel, is_initiator=False))
            else:
                await ask(channel, NOISE)
                secured = await self._noise.secure_outbound(_Raw(channel, is_initiator=True), ID.from_string(str(peer)))
            proved = PeerId(str(secured.get_remote_peer()))
            if peer is not None and proved != peer:
                raise HandshakeError(f"another node, {proved}, answers there")
            _hand_over(channel, secured)
            if peer is None:
                await answer(channel, {YAMUX}, patient=True)
            else:
                await ask(channel, YAMUX)
        except HandshakeError:
            raise
        except PeerIDMismatchesPubkey as error:
            raise HandshakeError("another node answers there") from error
        except (NegotiationError, ChannelError) as error:
            raise HandshakeError(str(error)) from error
        except (trio.BrokenResourceError, trio.ClosedResourceError, ConnectionClosedError, OSError) as error:
            raise HandshakeError("it hung up during the handshake") from error
        except Exception as error:
            # What libp2p raises for malformed or forged input has no common ancestor: ValueError, protobuf's, ...
            raise HandshakeError(f"its handshake is wrong ({type(error).__name__})") from error
        return proved


def _hand_over(channel: Channel, secured: ISecureConn) -> None:
    """Take the ciphers that the handshake agreed on."""
    ciphers = cast(BaseNoiseMsgReadWriter, getattr(secured, "conn"))  # noqa: B009 - no interface of libp2p's has it
    channel.secure(ciphers.encrypt, ciphers.decrypt)


class _Raw(IRawConnection):
    """A channel as libp2p wants a connection, for the three messages of the handshake."""

    def __init__(self, channel: Channel, *, is_initiator: bool) -> None:
        self._channel = channel
        self.is_initiator = is_initiator

    async def read(self, n: int | None = None) -> bytes:
        data = await self._channel.receive_some(1 << 16 if n is None else n)
        if not data and n != 0:
            # No bytes would make libp2p ask a hundred times.
            raise ConnectionClosedError("the peer hung up")
        return data

    async def write(self, data: bytes) -> None:
        await self._channel.send_all(data)

    async def close(self) -> None:
        self._channel.abort()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None

    def get_transport_addresses(self) -> list[Multiaddr]:
        return []

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT


def _quiet_libp2p() -> None:
    """Keep what strangers make libp2p complain about off standard error: this package says it in its own words.

    libp2p's loggers neither propagate nor have a handler, so that Python's last resort would print them. Setting
    LIBP2P_DEBUG still shows everything.
    """
    if not os.environ.get("LIBP2P_DEBUG"):
        logger = logging.getLogger("libp2p")
        logger.setLevel(logging.CRITICAL)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
