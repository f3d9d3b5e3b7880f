"""The key-value protocol on LevelDB. The sole importer of plyvel.

Never fork with a store open: the child would share its file descriptors.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import plyvel

from covey.errors import CallError
from covey.store.kv import FORMAT, FORMAT_KEY, Batch, Reader, StoreError, after_prefix, claim_format, closed, corrupt

T = TypeVar("T")

WRITE_BUFFER_BYTES = 32 * 1024 * 1024
"""LevelDB's memtable, there once or twice; it grows as it fills, so an idle node pays nothing."""
BLOCK_CACHE_BYTES = 8 * 1024 * 1024
FILES_OPEN_MAX = 256
"""LevelDB's default of 1,000 is most of what a process may open by default."""

DATABASE = "store"
HOLDER = "store.pid"

# plyvel has no types: everything of it goes through these.
_plyvel: Any = plyvel
_ERROR: type[Exception] = _plyvel.Error
_CORRUPTION: type[Exception] = _plyvel.CorruptionError
_FAILURES = (_ERROR, RuntimeError)
"""What its calls raise: `RuntimeError` is for a database that was closed."""


class LevelStore:
    """A LevelDB, opened by `open_leveldb`.

    Thread-safe. Reads verify checksums, so a flipped bit is an error and never a lost record.
    """

    def __init__(self, database: Any, folder: Path, lock: "FolderLock") -> None:
        self._database = database
        self._folder = folder
        self._lock = lock
        self._reader = _LevelReader(database, folder)
        self._failure: StoreError | None = None

    def get(self, key: bytes) -> bytes | None:
        """See `Reader`."""
        return self._reader.get(key)

    def scan(
        self, prefix: bytes, *, start: bytes | None = None, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """See `Reader`."""
        return self._reader.scan(prefix, start=start, limit=limit, reverse=reverse)

    def snapshot(self) -> AbstractContextManager[Reader]:
        """See `Reader`."""
        return self._reader.snapshot()

    def write(self, batch: Batch) -> None:
        """See `KeyValues`."""
        if self._failure is not None:
            raise StoreError(self._failure.message, reason=self._failure.reason)
        try:
            with self._database.write_batch(transaction=True, sync=True) as writes:
                for key, value in batch:
                    if value is None:
                        writes.delete(key)
                    else:
                        writes.put(key, value)
        except _FAILURES as error:
            failure = _explain(error, self._folder)
            if failure.reason != "closed":
                # A record that was cut short may lie in the log now. LevelDB would go on behind it, acknowledge, and
                # at the next opening find the whole log damaged. Opening anew starts another log.
                if "restart" not in failure.message:
                    failure = StoreError(f"{failure.message} Then restart this node.", reason=failure.reason)
                self._failure = failure
            raise failure from error

    def close(self) -> None:
        """See `KeyValues`."""
        self._database.close()
        self._lock.release()


class _LevelReader:
    """Reads from a database or from a snapshot of it: plyvel gives both the same methods."""

    def __init__(self, source: Any, folder: Path) -> None:
        self._source = source
        self._folder = folder

    def get(self, key: bytes) -> bytes | None:
        try:
            return cast("bytes | None", self._source.get(key, verify_checksums=True))
        except _FAILURES as error:
            raise _explain(error, self._folder) from error

    def scan(
        self, prefix: bytes, *, start: bytes | None = None, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        if limit is not None and limit <= 0:
            return
        low, high = prefix, after_prefix(prefix)
        if start is not None and reverse:
            next_key = start + b"\0"
            high = next_key if high is None else min(high, next_key)
        elif start is not None:
            low = max(prefix, start)
        try:
            # In reverse, plyvel 1.5 gives nothing where its `start` is the only key: the end is found here instead.
            pairs = self._source.iterator(
                start=None if reverse else low, stop=high, reverse=reverse, verify_checksums=True
            )
            with closing(pairs):
                for count, pair in enumerate(pairs, start=1):
                    if pair[0] < low:
                        return
                    yield pair
                    if count == limit:
                        return
        except _FAILURES as error:
            raise _explain(error, self._folder) from error

    @contextmanager
    def snapshot(self) -> Generator[Reader, None, None]:
        if not hasattr(self._source, "snapshot"):
            yield self  # one already
            return
        try:
            snapshot = self._source.snapshot()
        except _FAILURES as error:
            raise _explain(error, self._folder) from error
        with closing(snapshot):
            yield _LevelReader(snapshot, self._folder)


class FolderLock:
    """One process, one opener per data folder, by a lock on the file `store.pid`, which names the holder.

    LevelDB's own lock is not enough: a second attempt of the same process fails, and on its way out closes a file
    descriptor of the lock's file, which by POSIX drops the first one's lock. `flock` has no such rule, and the kernel
    releases it when the process dies.

    Raises:
        StoreError: `in_use`, naming the holder, or what the folder's file system refused.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = os.open(folder / HOLDER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _explain_os(error, folder) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())
        except BlockingIOError as error:
            refusal = _in_use(folder, os.pread(self._descriptor, 32, 0))
            os.close(self._descriptor)
            raise refusal from error
        except OSError as error:
            os.close(self._descriptor)
            raise _explain_os(error, folder) from error

    def release(self) -> None:
        """Let the next one in; twice is no error."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    close = release


def _in_use(folder: Path, holder: bytes) -> StoreError:
    pid = holder.decode("ascii", "replace").strip()
    who = "this very process" if pid == str(os.getpid()) else f"process {pid}" if pid.isdigit() else "another process"
    return StoreError(
        f"The data folder {folder} is in use by {who}: stop that one first, or choose another folder with --data.",
        reason="in_use",
    )


def open_leveldb(folder: Path, *, create: bool = True, repairing: bool = False) -> LevelStore:
    """Open the store of a data folder, or make it (the folder too, for its user alone). Blocks. Close what it returns.

    Args:
        folder: the data folder; the database is its subfolder `store`, and `store.pid` names who holds it.
        create: make one where there is none; otherwise that is a `CallError` `not_found`.
        repairing: also where the format's mark is lost, which is then written again.

    Raises:
        StoreError: `in_use` by another process, `not_writable`, `full`, `corrupt` or `newer_format`.
    """
    if not create and not (folder / DATABASE).is_dir():
        raise CallError("not_found", f"There is no store in {folder}: name the right folder with --data.")
    lock = FolderLock(folder)
    try:
        _refuse_headless(folder)
        store = LevelStore(_guarded(folder, lambda: _open_database(folder / DATABASE)), folder, lock)
    except BaseException:
        lock.release()
        raise
    try:
        if repairing and store.get(FORMAT_KEY) is None:
            store.write([(FORMAT_KEY, str(FORMAT).encode())])
        claim_format(store, str(folder))
    except BaseException:
        store.close()
        raise
    return store


def repair_leveldb(folder: Path) -> None:
    """Let LevelDB rebuild its index from whatever records are still readable; others are gone. Blocks.

    Raises:
        CallError: `not_found`: there is no store.
        StoreError: `in_use`, `not_writable`, or `corrupt` where nothing can be saved.
    """
    path = folder / DATABASE
    if not path.is_dir():
        raise CallError("not_found", f"There is no store in {folder}: name the right folder with --data.")
    with closing(FolderLock(folder)):
        # Without paranoid checks it would leave tables with bad blocks as they are. The log it reads without verifying
        # checksums either way: what comes back may hold a flipped bit, and is to be checked.
        _guarded(folder, lambda: _plyvel.repair_db(str(path), paranoid_checks=True))


def _refuse_headless(folder: Path) -> None:
    # Without CURRENT, LevelDB takes what is there for a new database, and deletes the tables of the old one.
    path = folder / DATABASE
    if not (path / "CURRENT").exists() and any(any(path.glob(pattern)) for pattern in ("*.ldb", "*.sst", "*.log")):
        raise corrupt(str(folder), "its file CURRENT is missing")


def _open_database(path: Path) -> Any:
    return _plyvel.DB(
        str(path),
        create_if_missing=True,
        paranoid_checks=True,
        write_buffer_size=WRITE_BUFFER_BYTES,
        lru_cache_size=BLOCK_CACHE_BYTES,
        max_open_files=FILES_OPEN_MAX,
        bloom_filter_bits=10,
    )


def _guarded(folder: Path, work: Callable[[], T]) -> T:
    try:
        return work()
    except (_ERROR, OSError) as error:
        raise _explain(error, folder) from error


def _explain(error: Exception, folder: Path) -> StoreError:
    """What LevelDB says in its own words, as one line with a remedy."""
    if isinstance(error, OSError) and error.errno is not None:
        return _explain_os(error, folder)
    text = str(error)
    if isinstance(error, RuntimeError) and "closed" in text:
        return closed(str(folder))
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS):
        if os.strerror(number) in text:
            return _explain_os(OSError(number, os.strerror(number)), folder)
    if isinstance(error, _CORRUPTION):
        return corrupt(str(folder), text.removeprefix("Corruption: ").removeprefix("b'Corruption: ").strip("'"))
    if "does not exist" in text or "missing files" in text or "No such file" in text or "Invalid argument" in text:
        return corrupt(str(folder), "files are missing")
    return StoreError(f"The disk under {folder} failed ({text}): check it, then restart this node.", reason="failed")


def _explain_os(error: OSError, folder: Path) -> StoreError:
    detail = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return StoreError(f"The disk under {folder} is full ({detail}): free some space.", reason="full")
    if error.errno in {errno.EEXIST, errno.ENOTDIR}:
        return StoreError(
            f"The data folder {folder} is a file or lies below one: choose another with --data.", reason="not_writable"
        )
    return StoreError(
        f"Cannot write to the data folder {folder} ({detail}): make it writable, or choose another with --data.",
        reason="not_writable",
    )
