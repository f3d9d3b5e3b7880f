"""A whole node in one encrypted file: its store and its identity.

The file: a plain header (version, salt and cost of argon2id, the stream's own header), then the records in chunks
under libsodium's secretstream (XChaCha20-Poly1305), which shows any chunk that was changed, moved or cut off. It holds
this node's private key: it is as secret as its passphrase is strong.
"""

import os
import secrets
import struct
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
from nacl import bindings
from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id

from covey.errors import CallError
from covey.store.files import durable_new_file
from covey.store.identity import Identity, format_identity
from covey.store.kv import FORMAT, FORMAT_KEY, Reader, StoreError

PASSPHRASE_CHARS_MIN = 10
CHUNK_BYTES = 256 * 1024
_CHUNK_BYTES_MAX = 64 * 1024 * 1024
_MAGIC = b"covey-backup-1\n"
_COST = struct.Struct(">16sIQ")
"""Salt, argon2id's operations and its bytes of memory."""
_LENGTH = struct.Struct(">I")
_MEMORY_BYTES_MAX = 1024 * 1024 * 1024
_OPERATIONS_MAX = 16
_LAST = bindings.crypto_secretstream_xchacha20poly1305_TAG_FINAL
_MORE = bindings.crypto_secretstream_xchacha20poly1305_TAG_MESSAGE

T = TypeVar("T")
Pairs = list[tuple[bytes, bytes]]


class BackupInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The first thing in a backup. `created_at`: Unix seconds. `identity`: the text of the key's file."""

    format: int
    created_at: int
    identity: bytes


class BackupMaker:
    """A backup that is being made: `pieces` gives the file's bytes, once and in order, as they are sealed. It blocks.

    Args:
        reader: a snapshot (`store.reader.snapshot()`), which must live until the last piece; of a store that nobody
            writes to, the store itself.
        identity: this node's.
        passphrase: at least `PASSPHRASE_CHARS_MIN` characters.
        now: Unix seconds.
        operations: argon2id's.
        memory_bytes: argon2id's; as much is needed to read it.

    Raises:
        CallError: `invalid`: the passphrase is too short.
    """

    def __init__(
        self,
        reader: Reader,
        identity: Identity,
        passphrase: str,
        *,
        now: float,
        operations: int = argon2id.OPSLIMIT_MODERATE,
        memory_bytes: int = argon2id.MEMLIMIT_MODERATE,
    ) -> None:
        if len(passphrase) < PASSPHRASE_CHARS_MIN:
            raise CallError("invalid", f"A backup's passphrase needs {PASSPHRASE_CHARS_MIN} characters or more.")
        self._reader = reader
        self._info = BackupInfo(
            format=int(reader.get(FORMAT_KEY) or FORMAT), created_at=int(now), identity=format_identity(identity)
        )
        self._cost = _COST.pack(secrets.token_bytes(argon2id.SALTBYTES), operations, memory_bytes)
        self._passphrase = passphrase
        self.records = 0
        """How many there are in the pieces so far."""

    def pieces(self) -> Iterator[bytes]:
        """The bytes of the file; the first ones take a second or two, for the passphrase is made slow to guess.

        Raises:
            StoreError: the store cannot be read.
        """
        stream = bindings.crypto_secretstream_xchacha20poly1305_state()
        header = bindings.crypto_secretstream_xchacha20poly1305_init_push(stream, _key(self._passphrase, self._cost))

        def seal(content: bytes, tag: int, bound: bytes | None = None) -> bytes:
            sealed = bindings.crypto_secretstream_xchacha20poly1305_push(stream, content, bound, tag)
            return _LENGTH.pack(len(sealed)) + sealed

        yield _MAGIC + self._cost + header + seal(msgspec.msgpack.encode(self._info), _MORE, _MAGIC + self._cost)
        for chunk in _chunks(self._reader):
            self.records += len(chunk)
            yield seal(msgspec.msgpack.encode(chunk), _MORE)
        yield seal(b"", _LAST)


def write_backup(backup: BackupMaker, destination: Path) -> int:
    """Write a backup into a new file, for its user alone; how many records it holds. Use a thread.

    Args:
        backup: none of it taken yet.
        destination: must not exist; appears when it is complete.

    Raises:
        CallError: `conflict`: the file exists; `storage`.
    """
    with new_backup_file(destination) as file:
        for piece in backup.pieces():
            file.write(piece)
    return backup.records


@contextmanager
def new_backup_file(destination: Path) -> Generator[BinaryIO, None, None]:
    """A file to write a backup into; it appears under its name, for its user alone, when the block ends well.

    Raises:
        CallError: `conflict`: there is one by that name; `storage`.
    """
    taken = CallError("conflict", f"{destination} exists already: choose another name.")
    try:
        if destination.exists():
            raise taken  # before the work rather than after it
        with durable_new_file(destination) as file:
            yield file
    except FileExistsError as error:
        raise taken from error
    except OSError as error:
        detail = os.strerror(error.errno or 0)
        message = f"Cannot write the backup {destination} ({detail}): choose another place."
        raise StoreError(message, reason="not_writable") from error


def _chunks(reader: Reader) -> Iterator[Pairs]:
    chunk: Pairs = []
    size = 0
    for pair in reader.scan(b""):
        chunk.append(pair)
        size += len(pair[0]) + len(pair[1])
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class BackupFile:
    """A backup that is being read: `info` first, then the records, once. The file stays its owner's.

    Raises:
        CallError: `invalid`: it is no backup, or damaged, or the passphrase is wrong, which nothing can tell apart.
    """

    def __init__(self, file: BinaryIO, passphrase: str) -> None:
        self._file = file
        magic, cost = file.read(len(_MAGIC)), file.read(_COST.size)
        header = file.read(bindings.crypto_secretstream_xchacha20poly1305_HEADERBYTES)
        if magic != _MAGIC or len(cost) != _COST.size:
            known = magic.startswith(b"covey-backup-")
            raise CallError("invalid", "A newer Covey made that backup." if known else "That is no backup of Covey's.")
        key = _key(passphrase, cost)
        self._stream = bindings.crypto_secretstream_xchacha20poly1305_state()
        try:
            bindings.crypto_secretstream_xchacha20poly1305_init_pull(self._stream, header, key)
        except (CryptoError, ValueError) as error:
            raise _damaged() from error
        content, _ = self._pull(magic + cost)
        self.info = _decode(content, BackupInfo)

    def chunks(self) -> Iterator[Pairs]:
        """The records, in chunks; ends well only at the true end."""
        while True:
            content, tag = self._pull()
            if tag == _LAST:
                return
            yield _decode(content, Pairs)

    def _pull(self, bound: bytes | None = None) -> tuple[bytes, int]:
        length = self._file.read(_LENGTH.size)
        if len(length) != _LENGTH.size or (size := _LENGTH.unpack(length)[0]) > _CHUNK_BYTES_MAX:
            raise _damaged()
        try:
            content, tag = bindings.crypto_secretstream_xchacha20poly1305_pull(
                self._stream, self._file.read(size), bound
            )
        except (CryptoError, ValueError) as error:
            raise _damaged() from error
        return content, tag


def _decode(content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise _damaged() from error


def _key(passphrase: str, cost: bytes) -> bytes:
    salt, operations, memory_bytes = _COST.unpack(cost)
    if operations > _OPERATIONS_MAX or memory_bytes > _MEMORY_BYTES_MAX:
        raise _damaged()
    size = bindings.crypto_secretstream_xchacha20poly1305_KEYBYTES
    try:
        return argon2id.kdf(size, passphrase.encode(), salt, opslimit=operations, memlimit=memory_bytes)
    except (CryptoError, ValueError) as error:
        raise _damaged() from error


def _damaged() -> CallError:
    return CallError("invalid", "The passphrase is wrong, or the backup is damaged: try again, or take another backup.")
