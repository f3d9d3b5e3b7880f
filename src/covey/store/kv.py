"""The small key-value protocol under the store, its key space, and the one error it raises.

Keys and values are bytes; keys sort bytewise. Two implementations, `covey.store.leveldb` and `covey.store.memory`,
pass one contract suite.

The key space (nothing else is ever written):

| prefix | holds | replicated |
| --- | --- | --- |
| `m/` | `m/format`, `m/genesis`, `m/view`, `m/verdict`: what this store is | genesis only |
| `e/<feed>/<seq>` | an entry: its signature and its exact bytes | yes |
| `h/<feed>` | the head of a feed | derived |
| `q/<feed>` | the proof that its author wrote two entries for one place | yes |
| `c/author/…`, `c/removal/…` | what members feeds say about authors, counting or not | derived |
| `f/<clock>/<feed>/<seq>` | an entry whose clock is too far ahead: its attributes wait | never |
| `v/<kind>/<type>/<key>` | a row of the view | derived |
| `x/<feed>/<seq>` | an entry that `covey store repair` set aside | never |
| `l/<area>/…` | what concerns this node alone: usage, settings, the incarnation of its feeds | never |
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from covey.errors import CallError

Batch = Sequence[tuple[bytes, bytes | None]]
"""Changes applied together or not at all, in order; a value of `None` deletes."""

FORMAT_KEY = b"m/format"
FORMAT = 1
"""The layout of the key space. A newer Covey upgrades an older store; an older one refuses a newer store."""


class StoreError(CallError):
    """The disk or the store refused: the code `storage`, and a message that says what to do.

    `reason`: `in_use`, `corrupt`, `newer_format`, `not_writable`, `full`, `closed`, `failed`.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__("storage", message, reason=reason)


class Reader(Protocol):
    """What can be read. All of it is synchronous and takes microseconds: it is called from the event loop."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key, or `None`."""
        ...

    def scan(
        self, prefix: bytes, *, start: bytes | None = None, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """The pairs whose key begins with `prefix`, in the keys' order, or against it with `reverse`.

        Sees the store as it is at the first step, whatever is written during the iteration.

        Args:
            prefix: what the keys begin with; they are given whole.
            start: a whole key, with the prefix: where to begin, itself included.
            limit: the most pairs to give.
            reverse: from the last to the first; `start` is then the highest key.
        """
        ...

    def snapshot(self) -> AbstractContextManager["Reader"]:
        """The store as it is now, unchanged by later writes, until the block is left."""
        ...


class KeyValues(Reader, Protocol):
    """A whole store. One process, one opener; `close` it."""

    def write(self, batch: Batch) -> None:
        """Apply a batch atomically; returns once it is durable. Blocks (an fsync): call it in a thread.

        Raises:
            StoreError: nothing of the batch is visible. The batch may still appear after a restart, never partly.
                After a failed write every later one fails too, until the store is opened again.
        """
        ...

    def close(self) -> None:
        """Release the lock; twice is no error. Reading or writing afterwards is a `StoreError`."""
        ...


def after_prefix(prefix: bytes) -> bytes | None:
    """The first key beyond every key that begins with `prefix`; `None` where there is none (`b""`, `b"\\xff"`)."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def claim_format(kv: KeyValues, where: str) -> None:
    """Mark an empty store with `FORMAT`, or check the mark of one that is not.

    Raises:
        StoreError: `newer_format`, or `corrupt` where the mark is none of ours.
    """
    mark = kv.get(FORMAT_KEY)
    if mark is None:
        if next(kv.scan(b"", limit=1), None) is not None:
            raise StoreError(f"{where} holds a database that is not Covey's; choose another folder.", reason="corrupt")
        kv.write([(FORMAT_KEY, str(FORMAT).encode())])
    elif not mark.isdigit():
        raise corrupt(where, "its format mark is unreadable")
    elif int(mark) > FORMAT:
        message = f"{where} was written by a newer Covey (format {int(mark)}, this one knows {FORMAT}): upgrade Covey."
        raise StoreError(message, reason="newer_format")


def corrupt(where: str, detail: str) -> StoreError:
    """The one way to say that a store is damaged."""
    return StoreError(
        f"The store in {where} is damaged ({detail}): run `covey store repair`, or `covey store restore` a backup.",
        reason="corrupt",
    )


def closed(where: str) -> StoreError:
    """The one way to say that a store was closed."""
    return StoreError(f"The store in {where} is closed: this node is stopping.", reason="closed")
