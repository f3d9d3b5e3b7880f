"""Who this node is: an Ed25519 key in its data folder, and the peer id that libp2p derives from it."""

import base64
import contextlib
import hashlib
import os
import secrets
from functools import lru_cache
from pathlib import Path

from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey

from covey.store.files import durable_new_file
from covey.store.kv import StoreError
from covey.transport.base import PeerId

KEY_FILE = "identity.key"
SIGNATURE_BYTES = 64
_FILE_PREFIX = "covey-ed25519-1 "
_SEED_BYTES = 32
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
# libp2p's peer-id spec: the public key as a protobuf {1: Ed25519 = 1, 2: 32 bytes}, short enough to be "hashed" by
# the identity multihash (code 0, 36 bytes long).
_PEER_ID_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])


class Identity:
    """This node's key. Its text forms show the peer id and never the key.

    Made by `open_identity`, or `Identity.generate()` where nothing is to be kept.
    """

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.peer_id: PeerId = peer_id_of(bytes(self._key.verify_key))

    @classmethod
    def generate(cls) -> "Identity":
        """A new one, on no disk."""
        return cls(secrets.token_bytes(_SEED_BYTES))

    def sign(self, domain: str, payload: bytes) -> bytes:
        """64 bytes that `verify` accepts for this peer, this domain and exactly these bytes.

        Args:
            domain: what the signature is about (`entry/1`): one made for a purpose never passes for another.
            payload: the exact bytes.
        """
        return self._key.sign(_message(domain, payload)).signature

    def seed(self) -> bytes:
        """The secret itself, 32 bytes: for the libp2p host and the encrypted backup, and nobody else."""
        return bytes(self._key)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("an identity is not for pickling")


def open_identity(folder: Path) -> Identity:
    """The identity of a data folder; a new one where it has none. Blocks.

    Raises:
        StoreError: the file is malformed or readable by others, or the folder refuses to be written.
    """
    path = folder / KEY_FILE
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Where two start at once, the file that came first counts.
            with contextlib.suppress(FileExistsError):
                write_identity(folder, Identity.generate())
        return read_identity(folder)
    except OSError as error:
        raise StoreError(
            f"Cannot keep this node's key in {path} ({os.strerror(error.errno or 0)}): make the folder writable.",
            reason="not_writable",
        ) from error


def read_identity(folder: Path) -> Identity:
    """The identity that is there. Blocks.

    Raises:
        StoreError: malformed, or readable by others.
        OSError: there is none, or it cannot be read.
    """
    path = folder / KEY_FILE
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode & 0o777
        if mode & 0o077:
            message = f"Others may read this node's key: run `chmod 600 {path}` (its mode is {mode:o})."
            raise StoreError(message, reason="not_writable")
        content = file.read(256)
    try:
        return parse_identity(content)
    except ValueError as error:
        raise StoreError(
            f"{path} is not a node's key: `covey store restore` a backup, or remove it to become a new node.",
            reason="corrupt",
        ) from error


def write_identity(folder: Path, identity: Identity) -> None:
    """Put an identity into a folder that has none, whole or not at all. Blocks.

    Raises:
        FileExistsError: there is one.
        OSError: as the file system says.
    """
    with durable_new_file(folder / KEY_FILE) as file:
        file.write(format_identity(identity))


def format_identity(identity: Identity) -> bytes:
    """As in the file: one line of text."""
    return (_FILE_PREFIX + base64.urlsafe_b64encode(identity.seed()).decode() + "\n").encode()


def parse_identity(content: bytes) -> Identity:
    """The reverse; `ValueError` where it is malformed."""
    text = content.decode("ascii").removesuffix("\n")
    if not text.startswith(_FILE_PREFIX):
        raise ValueError("not a key of this version")
    seed = base64.b64decode(text.removeprefix(_FILE_PREFIX), altchars=b"-_", validate=True)
    if len(seed) != _SEED_BYTES:
        raise ValueError("a key of the wrong length")
    return Identity(seed)


def verify(peer_id: PeerId, domain: str, payload: bytes, signature: bytes) -> bool:
    """Whether that peer signed exactly these bytes for this domain. Never raises, whatever it is given."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + _message(domain, payload), _public_key(peer_id))
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True


def peer_id_of(public_key: bytes) -> PeerId:
    """The libp2p peer id of an Ed25519 public key (32 bytes): https://github.com/libp2p/specs/blob/master/peer-ids."""
    number = int.from_bytes(_PEER_ID_PREFIX + public_key)
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return PeerId("1" + digits)  # base58btc writes the one leading zero byte as a 1


def public_key_of(peer_id: str) -> bytes:
    """The reverse, 32 bytes; `ValueError` for whatever is not the peer id of an Ed25519 key, written canonically."""
    if len(peer_id) != 52 or not peer_id.startswith("12D3KooW"):
        raise ValueError(f"not the peer id of an Ed25519 key: {peer_id[:64]!r}")
    number = 0
    for digit in peer_id:
        number = number * 58 + _BASE58.index(digit)
    content = number.to_bytes(39)[1:]
    if not content.startswith(_PEER_ID_PREFIX):
        raise ValueError(f"not the peer id of an Ed25519 key: {peer_id!r}")
    return content.removeprefix(_PEER_ID_PREFIX)


_public_key = lru_cache(maxsize=1024)(public_key_of)


def _message(domain: str, payload: bytes) -> bytes:
    if "\0" in domain:
        raise ValueError("a domain holds no NUL")
    return b"covey\0" + domain.encode() + b"\0" + payload


def digest(domain: str, payload: bytes) -> bytes:
    """SHA-256 of the payload, apart by domain as signatures are: 32 bytes."""
    return hashlib.sha256(_message(domain, payload)).digest()
