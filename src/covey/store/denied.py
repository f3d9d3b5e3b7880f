"""What a node that may not write keeps denied although its author was removed since. Pure.

An author's removal voids what it said beyond the cutoff. An auth node that had applied a denial there says it again in
its own feed (`covey.store.reissue`). Any other node cannot, nor can an auth node while it is removed itself; and either
may be the only one that ever heard of it. So it keeps it in its own corner, in the very batch that voids it, and its
key check heeds it: what was denied here stays denied. Once it may write (it was made an auth node, or the recovery key
let it back in), it says so in its feed.
"""

import hashlib
from collections.abc import Iterable
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from covey.contracts.feeds import InvitationUse, KeyRevoke, Op, OwnerStanding, PasswordSet, SessionEnd
from covey.store.kv import Batch, Reader
from covey.store.merge import Rows
from covey.store.reissue import reissued
from covey.store.rows import KeyRow, StandingRow
from covey.store.view import View
from covey.store.writer import Overlay

R = TypeVar("R", bound=msgspec.Struct)

KEY_PREFIX = b"l/denied/key/"
"""Then a key's id; the value is who revoked it."""
OWNER_PREFIX = b"l/denied/owner/"
"""Then an account's id; the value is the epoch of the denial, in decimal, a space, and who disabled it."""

OTHER_PREFIX = b"l/denied/other/"
"""Then a hash; the value is the operation: of what only auth nodes read."""

_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode = msgspec.msgpack.Decoder(PasswordSet | SessionEnd | InvitationUse).decode


class HeededRows:
    """The view of this node, with what it keeps denied on top. Costs one further read for each row of a key check.

    The row comes first: a batch that gives a key back and denies it here may be written in between the two reads.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._view: Rows = View(reader)

    def get(self, row: type[R], key: str) -> R | None:
        """As `View.get`."""
        found = self._view.get(row, key)
        if isinstance(found, KeyRow):
            if not found.revoked and self._reader.get(KEY_PREFIX + key.encode()) is not None:
                return replace(found, revoked=True)
        elif isinstance(found, StandingRow):
            denied = self._reader.get(OWNER_PREFIX + key.encode()) if found.active else None
            if denied is not None and _epoch(denied) >= found.epoch:
                return replace(found, epoch=_epoch(denied), active=False)
        return found


def keep_denied(overlay: Overlay, voided: Iterable[Op]) -> None:
    """Lay over the store what of these denials does not stand any more."""
    for op in reissued(voided, View(overlay)):
        match op:
            case KeyRevoke(id=key, by=by):
                overlay.put([(KEY_PREFIX + key.encode(), by.encode())])
            case OwnerStanding(owner=owner, epoch=epoch, by=by):
                kept = overlay.get(OWNER_PREFIX + owner.encode())
                if kept is None or _epoch(kept) < epoch:
                    overlay.put([(OWNER_PREFIX + owner.encode(), f"{epoch} {by}".encode())])
            case _:
                said = _encode(op)
                overlay.put([(OTHER_PREFIX + hashlib.sha256(said).hexdigest().encode(), said)])


def restated(reader: Reader) -> tuple[list[Op], Batch]:
    """What to say, and to clear from the corner, once this node may write feeds of its own."""
    said: list[Op] = []
    cleared: list[tuple[bytes, bytes | None]] = []
    for key, by in reader.scan(KEY_PREFIX):
        said.append(KeyRevoke(id=key.removeprefix(KEY_PREFIX).decode(), by=by.decode()))
        cleared.append((key, None))
    for key, value in reader.scan(OWNER_PREFIX):
        owner, author = key.removeprefix(OWNER_PREFIX).decode(), value.partition(b" ")[2].decode()
        said.append(OwnerStanding(owner=owner, epoch=_epoch(value), active=False, by=author))
        cleared.append((key, None))
    for key, value in reader.scan(OTHER_PREFIX):
        said.append(_decode(value))
        cleared.append((key, None))
    return reissued(said, View(reader)), cleared


def _epoch(value: bytes) -> int:
    return int(value.partition(b" ")[0])
