"""How a network begins: its genesis, its name, and the recovery key. Pure.

The genesis holds the public half of a recovery key, whose private half is shown once, to the founder, and stored
nowhere: it alone settles a mutual removal or replaces the last auth node. The founder has no other privilege.
"""

import base64
import secrets
from typing import Literal

import msgspec
from nacl.signing import SigningKey

from covey.store.identity import digest, peer_id_of
from covey.store.kv import StoreError
from covey.transport.base import PeerId

GENESIS_DOMAIN = "genesis/1"
_RECOVERY_PREFIX = "covey1recovery"
"""Begins like every secret that the redacting log filter knows."""
_CHECKSUM_BYTES = 4


class Genesis(msgspec.Struct, frozen=True, kw_only=True):
    """The first fact of a network. Its exact bytes are hashed and kept; they are never encoded again.

    `recovery_public_key`: 32 bytes of Ed25519. `created_at`: Unix seconds. `nonce`: 16 random bytes, so that no two
    networks are the same.
    """

    version: Literal[1]
    founder: str
    recovery_public_key: bytes
    created_at: int
    nonce: bytes

    @property
    def recovery_peer(self) -> PeerId:
        """The author of what the recovery key says, in the members feeds."""
        return peer_id_of(self.recovery_public_key)


def found(founder: PeerId, now: float) -> tuple[bytes, str]:
    """The bytes of a new genesis, and its recovery key as text: the only copy there will ever be."""
    recovery = SigningKey.generate()
    genesis = Genesis(
        version=1,
        founder=founder,
        recovery_public_key=bytes(recovery.verify_key),
        created_at=int(now),
        nonce=secrets.token_bytes(16),
    )
    return msgspec.msgpack.encode(genesis), format_recovery_key(bytes(recovery))


def read_genesis(content: bytes) -> Genesis:
    """The genesis of these bytes; `StoreError` where this Covey cannot read it."""
    try:
        return msgspec.msgpack.decode(content, type=Genesis)
    except msgspec.MsgspecError as error:
        raise StoreError(
            "This network's genesis is unreadable: upgrade Covey, or `covey store restore` a backup.", reason="corrupt"
        ) from error


def network_hash(content: bytes) -> bytes:
    """The network's id as entries hold it: 32 bytes. People see it in hexadecimal."""
    return digest(GENESIS_DOMAIN, content)


def format_recovery_key(seed: bytes) -> str:
    """A recovery key for paper: lower-case letters and digits with a checksum."""
    content = seed + digest("recovery/1", seed)[:_CHECKSUM_BYTES]
    return _RECOVERY_PREFIX + base64.b32encode(content).decode().rstrip("=").lower()


def parse_recovery_key(text: str) -> SigningKey:
    """The reverse; `ValueError`, without the text, where it was mistyped."""
    body = "".join(text.split()).lower()
    if not body.startswith(_RECOVERY_PREFIX):
        raise ValueError(f"a recovery key begins with {_RECOVERY_PREFIX}")
    body = body.removeprefix(_RECOVERY_PREFIX).upper()
    try:
        content = base64.b32decode(body + "=" * (-len(body) % 8))
    except ValueError:
        raise ValueError("the recovery key was mistyped") from None
    seed, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if len(seed) != 32 or digest("recovery/1", seed)[:_CHECKSUM_BYTES] != checksum:
        raise ValueError("the recovery key was mistyped")
    return SigningKey(seed)
