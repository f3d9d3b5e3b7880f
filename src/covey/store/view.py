"""How the rows of the merged view are stored, read and hashed.

A row's bytes are a function of the row alone, so that the same entries give every node the same bytes.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import msgspec

from covey.contracts.feeds import Kind
from covey.store.kv import Reader
from covey.store.rows import (
    AccountRow,
    BudgetRow,
    InvitationRow,
    KeyRow,
    MemberRow,
    NameRow,
    Row,
    SessionRow,
    StandingRow,
)

R = TypeVar("R", bound=msgspec.Struct)

VIEW_KEY = b"m/view"
VIEW_VERSION = 4
"""Of the rules in `covey.store.merge` and the rows' form: a store whose view is older is made anew from its entries."""


@dataclass(frozen=True, slots=True)
class Table:
    """Where the rows of one type live. `kind`: of the feeds that they come from."""

    kind: Kind
    name: str
    key: Callable[[Any], str]
    decode: Callable[[bytes], Any]

    @property
    def prefix(self) -> bytes:
        """What their keys begin with."""
        return f"v/{self.kind}/{self.name}/".encode()


def _table(kind: Kind, name: str, row: type[Row], key: str) -> tuple[type[Any], Table]:
    def own_key(row: Any) -> str:
        return cast(str, getattr(row, key))

    return row, Table(kind, name, own_key, msgspec.msgpack.Decoder(row).decode)


TABLES: dict[type[Any], Table] = dict(
    (
        _table("members", "member", MemberRow, "peer"),
        _table("keys", "key", KeyRow, "id"),
        _table("keys", "standing", StandingRow, "owner"),
        _table("secret", "account", AccountRow, "id"),
        _table("secret", "budget", BudgetRow, "id"),
        _table("secret", "invitation", InvitationRow, "id"),
        _table("secret", "name", NameRow, "name"),
        _table("secret", "session", SessionRow, "id"),
    )
)
_PREFIXES = {row: table.prefix for row, table in TABLES.items()}

encode_row = msgspec.msgpack.Encoder(order="deterministic").encode


def row_key(row: Row) -> bytes:
    """The key that a row is stored under."""
    return key_of(type(row), TABLES[type(row)].key(row))


def key_of(row: type[Any], key: str) -> bytes:
    """The key that the row of that type is stored under, going by its own key."""
    return _PREFIXES[row] + key.encode()


def is_row(key: bytes, value: bytes) -> bool:
    """Whether a stored pair is a row under its own key: one that a damaged disk gave back may not be."""
    for row, prefix in _PREFIXES.items():
        if key.startswith(prefix):
            try:
                return row_key(TABLES[row].decode(value)) == key
            except (msgspec.MsgspecError, UnicodeDecodeError):
                return False
    return False


class View:
    """The rows, as of now: a mere window on a reader, which costs nothing to make."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def get(self, row: type[R], key: str) -> R | None:
        """The row of that type under its own key (`id`, `peer`, `owner`, `name`), or `None`."""
        value = self._reader.get(_PREFIXES[row] + key.encode())
        return None if value is None else cast(R, TABLES[row].decode(value))

    def all(self, row: type[R], prefix: str = "", *, start: str | None = None, limit: int | None = None) -> Iterator[R]:
        """The rows of that type whose key begins with `prefix`, in the keys' order.

        Args:
            row: the type, of `covey.store.rows`.
            prefix: what their keys begin with.
            start: the key to begin at, itself included.
            limit: the most rows to give.
        """
        base, decode = _PREFIXES[row], TABLES[row].decode
        first = None if start is None else base + start.encode()
        for _, value in self._reader.scan(base + prefix.encode(), start=first, limit=limit):
            yield cast(R, decode(value))

    def hash(self, kind: Kind) -> str:
        """SHA-256 in hexadecimal over every row that feeds of this kind make.

        Equal on all nodes that hold the same entries. Reads them all: 0.1 s per 100,000 rows.
        """
        return hash_rows(self._reader.scan(f"v/{kind}/".encode()))


def hash_rows(pairs: Iterator[tuple[bytes, bytes]]) -> str:
    """The hash of rows in the order of their keys."""
    sha = hashlib.sha256(b"covey\0view/1\0")
    for key, value in pairs:
        sha.update(len(key).to_bytes(4) + key + len(value).to_bytes(4) + value)
    return sha.hexdigest()
