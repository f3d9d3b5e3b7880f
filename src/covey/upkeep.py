"""Checking and backing up the store of a node that runs: STORE_CHECK and STORE_BACKUP, on a snapshot, in a thread."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio
from nacl.pwhash import argon2id

from covey.bus.bus import BusHandle
from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.contracts.method import Nothing
from covey.contracts.store import PIECE_BYTES_MAX, STORE_BACKUP, STORE_CHECK, BackUp, BackupPiece, CheckReport
from covey.errors import CallError
from covey.store.backup import BackupMaker
from covey.store.checking import check_reader
from covey.store.identity import Identity
from covey.store.kv import Reader
from covey.store.writer import Store


class Upkeep:
    """Serves both, one at a time: each costs a processor for a while, and a backup memory for its passphrase.

    Args:
        bus: of any stamp.
        store: the node's.
        identity: what a backup restores the node with.
        now: gives Unix seconds.
        memory_bytes: for stretching a backup's passphrase, as argon2id's.
    """

    def __init__(
        self,
        bus: BusHandle,
        store: Store,
        identity: Identity,
        now: Callable[[], float],
        *,
        memory_bytes: int = argon2id.MEMLIMIT_MODERATE,
    ) -> None:
        self._store = store
        self._identity = identity
        self._now = now
        self._memory_bytes = memory_bytes
        self._busy = False
        bus.serve(STORE_CHECK, self.check)
        bus.serve_stream(STORE_BACKUP, self.back_up)

    async def check(self, caller: Caller, request: Nothing) -> CheckReport:
        """Serve STORE_CHECK."""
        with self._alone(), self._store.reader.snapshot() as reader:
            return await trio.to_thread.run_sync(check_reader, _Abandonable(reader))

    async def back_up(self, caller: Caller, request: BackUp, emit: Emit[BackupPiece]) -> None:
        """Serve STORE_BACKUP."""
        with self._alone(), self._store.reader.snapshot() as reader:
            maker = BackupMaker(
                _Abandonable(reader),
                self._identity,
                request.passphrase,
                now=self._now(),
                memory_bytes=self._memory_bytes,
            )
            pieces = maker.pieces()
            while piece := await trio.to_thread.run_sync(next, pieces, b""):
                for start in range(0, len(piece), PIECE_BYTES_MAX):
                    await emit(BackupPiece(piece[start : start + PIECE_BYTES_MAX], maker.records))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._busy:
            raise CallError("conflict", "This node is checking or backing up its store already: try again after that.")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False


class _Abandonable:
    """A snapshot for a thread, which leaves it at the next record once nobody waits for the outcome any more."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def get(self, key: bytes) -> bytes | None:
        """See `Reader`."""
        return self._reader.get(key)

    def scan(
        self, prefix: bytes, *, start: bytes | None = None, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """See `Reader`."""
        for pair in self._reader.scan(prefix, start=start, limit=limit, reverse=reverse):
            trio.from_thread.check_cancelled()
            yield pair

    @contextmanager
    def snapshot(self) -> Iterator[Reader]:
        """See `Reader`: it is one already."""
        yield self
