"""`covey store check`, `backup`, `restore` and `repair`, on the folder of a node that is not running.

All of it blocks: use a thread. A running node does the first two itself: `covey.upkeep`.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import msgspec
from nacl.pwhash import argon2id

from covey.contracts.feeds import Op
from covey.contracts.store import CheckReport
from covey.errors import CallError
from covey.store.backup import BackupFile, BackupMaker, write_backup
from covey.store.checking import Chain, chains, check_reader
from covey.store.feed_log import (
    CLOCK_KEY,
    GENESIS_KEY,
    INCARNATION_KEY,
    apply_entry,
    encode_head,
    head_key,
    lost_key,
    rebuild_view,
)
from covey.store.feeds import Author, Decide
from covey.store.files import sync_folder
from covey.store.genesis import network_hash
from covey.store.identity import Identity, parse_identity, read_identity, write_identity
from covey.store.kv import FORMAT, KeyValues, Reader, StoreError
from covey.store.leveldb import HOLDER, open_leveldb, repair_leveldb
from covey.store.memory import MemoryStore
from covey.store.salvage import again
from covey.store.view import TABLES, View, is_row
from covey.store.writer import Overlay

_OPS_PER_ENTRY = 16
"""Few, so that an entry of the longest operations (a key with 64 models) is still not too large."""


class RepairReport(msgspec.Struct, frozen=True, kw_only=True):
    """`set_aside`: entries that can no longer be believed, kept under `x/`. `repeated`: operations that had been in
    lost or cut-off entries, said again in a new incarnation of this node's feeds. `check`: how the store is now.
    """

    set_aside: int
    repeated: int
    check: CheckReport


def check(folder: Path) -> CheckReport:
    """Check everything of a data folder.

    Raises:
        CallError: `not_found`: there is no store.
        StoreError: `in_use` by a running node, or so damaged that it does not open.
    """
    kv = open_leveldb(folder, create=False)
    try:
        _identity_of(folder)
        return check_reader(kv)
    finally:
        kv.close()


def backup(
    folder: Path,
    destination: Path,
    passphrase: str,
    *,
    now: float,
    operations: int = argon2id.OPSLIMIT_MODERATE,
    memory_bytes: int = argon2id.MEMLIMIT_MODERATE,
) -> int:
    """Write a data folder's store and identity into one encrypted file; how many records. See `write_backup`."""
    kv = open_leveldb(folder, create=False)
    try:
        maker = BackupMaker(
            kv, _identity_of(folder), passphrase, now=now, operations=operations, memory_bytes=memory_bytes
        )
        return write_backup(maker, destination)
    finally:
        kv.close()


def restore(source: Path, folder: Path, passphrase: str) -> CheckReport:
    """Make a data folder out of a backup: whole, or not at all.

    The node that opens it goes on in a new incarnation of its feeds: what it wrote after the backup was made may live
    on at its peers, and no sequence number is ever used twice.

    Args:
        source: what `backup` wrote.
        folder: empty, or not there yet.
        passphrase: that of the backup.

    Raises:
        CallError: `conflict`: the folder is not empty; `invalid`: wrong passphrase, or a damaged file; `not_found`.
        StoreError: the disk refused, or a newer Covey made the backup.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CallError("conflict", f"{folder} is not empty: move that one away first, or name another.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.restoring-", dir=folder.parent))
    except OSError as error:
        raise _refused(folder, error) from error
    try:
        report = _restore(source, draft, passphrase)
        draft.rename(folder)
        sync_folder(folder.parent)
    except FileNotFoundError as error:
        raise CallError("not_found", f"There is no backup {source}: name another file.") from error
    except OSError as error:
        raise _refused(folder, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return report


def _restore(source: Path, draft: Path, passphrase: str) -> CheckReport:
    with source.open("rb") as file:
        content = BackupFile(file, passphrase)
        if content.info.format > FORMAT:
            raise StoreError("A newer Covey made that backup: upgrade Covey.", reason="newer_format")
        kv = open_leveldb(draft)
        try:
            for chunk in content.chunks():
                kv.write([(key, value) for key, value in chunk if key != INCARNATION_KEY])
            report = check_reader(kv)
        finally:
            kv.close()
    (draft / HOLDER).unlink()
    try:
        write_identity(draft, parse_identity(content.info.identity))
    except ValueError as error:
        raise CallError("invalid", "The backup holds no usable key of its node: take another backup.") from error
    return report


def repair(folder: Path, *, now: float) -> RepairReport:
    """Save what can be saved of a damaged store, by LevelDB's own means first; run it again if it was interrupted.

    Entries behind a gap can no longer be verified and are set aside. Whatever they, or the rows that survived, show to
    have happened is said again, in a new incarnation of this node's feeds: so that no revocation comes undone.

    Args:
        folder: of a node that is not running. Copy it first, if there is room.
        now: Unix seconds.

    Raises:
        CallError: `not_found`: there is no store.
        StoreError: `in_use`; or nothing can be saved: then restore a backup.
    """
    identity = _identity_of(folder)
    repair_leveldb(folder)
    kv = open_leveldb(folder, create=False, repairing=True)
    try:
        genesis = kv.get(GENESIS_KEY)
        if genesis is None:
            if next(kv.scan(b"e/"), None) is not None:
                message = f"The network's genesis in {folder} is lost: `covey store restore` a backup."
                raise StoreError(message, reason="corrupt")
            return RepairReport(set_aside=0, repeated=0, check=check_reader(kv))
        found = list(chains(kv, network_hash(genesis)))
        for chain in found:
            if chain.problem is not None and chain.problem.reason == "unknown_op":
                raise chain.problem
        repeated = _rewrite(kv, identity, genesis, found, now)
        set_aside = sum(len(chain.beyond) for chain in found)
        return RepairReport(set_aside=set_aside, repeated=repeated, check=check_reader(kv))
    finally:
        kv.close()


def _rewrite(kv: KeyValues, identity: Identity, genesis: bytes, found: list[Chain], now: float) -> int:
    """Put heads, rows and this node's feeds in order, in one batch; how many operations were said again."""
    known = Overlay(MemoryStore())
    known.put([pair for pair in kv.scan(b"v/") if is_row(*pair)])
    fresh = Overlay(kv)
    clock = int.from_bytes(kv.get(CLOCK_KEY) or b"")
    fresh.put([(key, None) for key, _ in kv.scan(b"h/")])
    for chain in found:
        clock = max(clock, chain.head.clock)
        for sealed in chain.stranded:
            apply_entry(known, sealed)
            clock = max(clock, sealed.entry.clock)
        for key in chain.beyond:
            fresh.put([(b"x/" + key[2:], kv.get(key)), (key, None)])
        if chain.sound:
            fresh.put([(head_key(chain.feed), encode_head(chain.head))])
    fresh.put([(lost_key(feed), str(seq).encode()) for feed, seq in _lost(found).items()])
    fresh.put(rebuild_view(fresh))
    incarnation = secrets.token_hex(8)
    fresh.put([(INCARNATION_KEY, incarnation.encode()), (CLOCK_KEY, clock.to_bytes(8))])
    heads = {chain.feed: chain.head.seq for chain in found if chain.sound}
    operations = _missing(known, fresh, heads)
    author = Author(identity, genesis, incarnation)
    pending = iter(operations)
    while said := tuple(islice(pending, _OPS_PER_ENTRY)):
        changes, _ = author.plan(fresh, _saying(said), now)
        fresh.put(changes)
    kv.write(list(fresh.changes.items()))
    return len(operations)


def _saying(operations: Sequence[Op]) -> Decide:
    return lambda _: operations


def _lost(found: list[Chain]) -> dict[str, int]:
    """The feeds that other entries show to have been longer than they are now, with how long."""
    there = {chain.feed: chain.head.seq for chain in found}
    named: dict[str, int] = {}
    for chain in found:
        for feed, seq in chain.head.deps.items():
            named[feed] = max(seq, named.get(feed, 0))
    return {feed: seq for feed, seq in named.items() if seq > there.get(feed, 0)}


def _missing(known: Reader, fresh: Reader, heads: dict[str, int]) -> list[Op]:
    before, rows = View(known), View(fresh)
    return [op for table in TABLES for row in before.all(table) for op in again(row, rows, heads)]


def _identity_of(folder: Path) -> Identity:
    try:
        return read_identity(folder)
    except OSError as error:
        detail = os.strerror(error.errno or 0)
        message = f"This node's key in {folder} cannot be read ({detail}): `covey store restore` a backup."
        raise StoreError(message, reason="corrupt") from error


def _refused(folder: Path, error: OSError) -> StoreError:
    detail = os.strerror(error.errno or 0)
    return StoreError(f"Cannot write {folder} ({detail}): choose another folder.", reason="not_writable")
