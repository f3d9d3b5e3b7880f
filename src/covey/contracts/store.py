"""What a running node does with its own store on its operator's behalf: check it, and copy it out encrypted.

Both are for the operator alone, who sits on the node's Unix socket or embeds it: no other machine can ask for them.
"""

import msgspec

from covey.contracts.method import Nothing, Party, Streaming, Unary

OPERATOR: frozenset[Party] = frozenset({"operator"})
PIECE_BYTES_MAX = 64 * 1024


class CheckReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was checked, and what is wrong with it, a line each; sound where `problems` is empty.

    `records`: everything in the store, each read once with its checksum. `view_hashes`: as `View.hash`, by kind, of
    what the entries add up to. `network_id` is "" for a node that holds no feeds.
    `void`: entries that do not count, their author having been removed. `proofs`: feeds whose author wrote two entries
    for one place. `ahead`: entries whose clock is too far ahead, and whose attributes wait.
    """

    network_id: str
    records: int
    feeds: int
    entries: int
    operations: int
    rows: int
    void: int = 0
    proofs: int = 0
    ahead: int = 0
    view_hashes: dict[str, str]
    problems: tuple[str, ...]


STORE_CHECK = Unary("store.check", Nothing, CheckReport, access=OPERATOR, timeout_seconds=900)
"""Of the store as it is when the call begins. A minute or so per million entries."""


class BackUp(msgspec.Struct, frozen=True):
    """`passphrase`: what the backup is encrypted with; the node keeps it no longer than the call lasts."""

    passphrase: str

    def __repr__(self) -> str:
        """Without the passphrase: a message may end up in a log or a traceback."""
        return "BackUp(passphrase=...)"


class BackupPiece(msgspec.Struct, frozen=True, omit_defaults=True):
    """The next bytes of the backup's file, at most `PIECE_BYTES_MAX`. `records`: how many there are up to here."""

    data: bytes
    records: int = 0


STORE_BACKUP = Streaming("store.backup", BackUp, BackupPiece, access=OPERATOR, idle_seconds=120)
"""`invalid`: the passphrase is too short. Stretching it takes a second or two before the first piece."""
