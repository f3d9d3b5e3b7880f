"""The shape of an API key: `cvy_<key id>_<secret>_<checksum>`, all base62. The gateway and the auth role share it.

A key is taken apart by its fixed shape and its checksum before anything is looked up, so that a mistyped or hostile
text never reaches the store. The checksum (CRC-32, as GitHub's tokens carry) is no secret and proves nothing.
"""

import hashlib
import re
import zlib

import msgspec

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PAIRS = [first + second for first in ALPHABET for second in ALPHABET]
KEY_ID_CHARS = 12
SECRET_CHARS = 32
CHECKSUM_CHARS = 6
KEY_CHARS = len("cvy_") + KEY_ID_CHARS + 1 + SECRET_CHARS + 1 + CHECKSUM_CHARS
MINT_BYTES = 48
"""How much randomness a new key takes."""

INVALID_KEY = "The API key is not valid. Make one on the dashboard, or with: covey keys create --user NAME"
"""What whoever sends a key that does not count is told, whatever is wrong with it and whoever noticed."""

_ID_BYTES = 16  # 57 bits more than an id has, and 65 more than a secret: the remainder's bias is nothing
_SHAPE = re.compile(
    rf"cvy_([0-9A-Za-z]{{{KEY_ID_CHARS}}})_[0-9A-Za-z]{{{SECRET_CHARS}}}_([0-9A-Za-z]{{{CHECKSUM_CHARS}}})"
)


class ParsedKey(msgspec.Struct, frozen=True):
    """What is asked about a key: its public id, and the SHA-256 of its whole text in place of the text."""

    key_id: str
    digest: bytes


class MintedKey(msgspec.Struct, frozen=True):
    """A key at its birth. `text` is the only copy; `prefix` is for people to recognise it by, and not secret."""

    text: str
    key_id: str
    digest: bytes
    prefix: str


def mint(randomness: bytes) -> MintedKey:
    """Make a key from `MINT_BYTES` bytes of a cryptographic source; any other amount is a `ValueError`."""
    if len(randomness) != MINT_BYTES:
        raise ValueError(f"A key takes {MINT_BYTES} random bytes, not {len(randomness)}.")
    key_id = base62(int.from_bytes(randomness[:_ID_BYTES], "big"), KEY_ID_CHARS)
    secret = base62(int.from_bytes(randomness[_ID_BYTES:], "big"), SECRET_CHARS)
    body = f"cvy_{key_id}_{secret}"
    text = f"{body}_{_checksum(body)}"
    return MintedKey(text, key_id, digest_of(text), f"cvy_{key_id}")


def parse(text: str) -> ParsedKey | None:
    """Take a key apart, or `None` for anything that cannot be one. Nobody needs to know why not."""
    if len(text) != KEY_CHARS or (match := _SHAPE.fullmatch(text)) is None:
        return None
    if _checksum(text[: -CHECKSUM_CHARS - 1]) != match[2]:
        return None
    return ParsedKey(match[1], digest_of(text))


def digest_of(text: str) -> bytes:
    """The SHA-256 of a secret's whole text. Enough for secrets of full entropy; passwords take argon2id."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def base62(number: int, chars: int) -> str:
    """The last `chars` base62 digits of a number that is not negative, padded with `0`."""
    pairs: list[str] = []
    for _ in range(0, chars, 2):
        number, pair = divmod(number, len(_PAIRS))
        pairs.append(_PAIRS[pair])
    return "".join(reversed(pairs))[-chars:]


def _checksum(body: str) -> str:
    return base62(zlib.crc32(body.encode()), CHECKSUM_CHARS)
