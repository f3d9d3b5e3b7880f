"""Invites: the one line that lets a machine in. Pure.

`covey1` + base32, in lower case and without padding, of the MessagePack of `Invite` and four bytes of checksum: safe
in any shell, in one piece under a double click, and a typing error is told from a forged one.
"""

import base64
import hashlib

import msgspec

from covey.errors import CallError

PREFIX = "covey1"
CHARS_MAX = 4_096
SECRET_BYTES = 20
_CHECKSUM_BYTES = 4


class Invite(msgspec.Struct, frozen=True, array_like=True):
    """What the line says. `addresses`: multiaddresses of the issuer. `expires_at`: Unix seconds, for a kind message:
    the issuer's own record counts. `secret`: shown to the issuer alone, once its identity has been verified.
    """

    network_id: bytes
    issuer: str
    addresses: tuple[str, ...]
    roles: tuple[str, ...]
    expires_at: int
    secret: bytes


def format_invite(invite: Invite) -> str:
    """The line."""
    content = msgspec.msgpack.encode(invite)
    return PREFIX + base64.b32encode(content + _checksum(content)).decode().rstrip("=").lower()


def parse_invite(text: str) -> Invite:
    """The reverse.

    Raises:
        CallError: `invalid`, never with the text: it holds a secret.
    """
    line = "".join(text.split()).lower()
    if not line.startswith(PREFIX):
        raise CallError("invalid", f"An invite begins with {PREFIX}. Make one with: covey invite")
    if len(line) > CHARS_MAX:
        raise CallError("invalid", "The invite is too long: something was added to it.")
    body = line.removeprefix(PREFIX).upper()
    try:
        content = base64.b32decode(body + "=" * (-len(body) % 8))
    except ValueError as error:
        raise _damaged() from error
    content, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if _checksum(content) != checksum:
        raise _damaged()
    try:
        invite = msgspec.msgpack.decode(content, type=Invite)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CallError("invalid", "The invite was made by another version of Covey: upgrade the older one.") from error
    if len(invite.secret) != SECRET_BYTES or len(invite.network_id) != 32 or not invite.addresses:
        raise _damaged()
    return invite


def _damaged() -> CallError:
    return CallError("invalid", "The invite is incomplete or damaged: copy the whole line again.")


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(b"covey invite\0" + content).digest()[:_CHECKSUM_BYTES]
