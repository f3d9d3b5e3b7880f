"""Files that are there whole or not at all, and how large they are."""

import os
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def durable_new_file(path: Path) -> Generator[BinaryIO, None, None]:
    """Write a file that only its user can read; it appears, on the disk for good, when the block ends well.

    Raises:
        FileExistsError: there is one by that name, which stays as it was.
        OSError: as the file system says.
    """
    draft = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # unlike a rename, never replaces
    finally:
        draft.unlink()
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_of(folder: Path) -> tuple[int, int]:
    """How many files there are below a folder now, and their bytes. Blocks; a file that goes meanwhile is left out."""
    files = size = 0
    for path in folder.rglob("*"):
        try:
            state = path.stat()
        except FileNotFoundError:
            continue
        if stat.S_ISREG(state.st_mode):
            files, size = files + 1, size + state.st_size
    return files, size
