"""The folder of model files: what is in it, and whether a file is still what was fetched.

llama.cpp loads a file with flipped bytes without a word and then talks nonsense, so the sha256 is checked once after a
file changed, and `<file>.checked` remembers size, modification time and sum: a start does not read gigabytes each time.
"""

import os
from pathlib import Path

import msgspec
import trio

from covey.backends.catalogue import FILE_NAME, GGUF, Entry
from covey.backends.fetching import sha256_of
from covey.errors import CallError


class _Checked(msgspec.Struct, frozen=True):
    size: int
    modified_ns: int
    sha256: str


def model_files(folder: Path, suffix: str = GGUF) -> dict[str, Path]:
    """Name → file of every usable one of a kind, also those that a person put there. Reads the folder alone: fast."""
    try:
        found = sorted(folder.glob(f"*{suffix}"))
    except OSError:
        return {}
    return {path.stem: path for path in found if FILE_NAME.fullmatch(path.stem) and path.is_file()}


async def remove_model(path: Path) -> int:
    """Delete a model's file and what was noted about it; returns its size in bytes.

    Raises:
        CallError: `storage`.
    """

    def remove() -> int:
        size = path.lstat().st_size
        path.unlink()
        note_of(path).unlink(missing_ok=True)
        return size

    try:
        return await trio.to_thread.run_sync(remove)
    except OSError as error:
        raise CallError("storage", f"{path} cannot be deleted: {error.strerror or error}.") from error


def note_of(path: Path) -> Path:
    """Where it is remembered that a file was checked."""
    return path.with_name(path.name + ".checked")


async def check_model(path: Path, entry: Entry | None) -> None:
    """Make sure that a file is a model of its kind (GGUF, without an entry), and the very one that its entry names.

    Raises:
        CallError: `storage`: unreadable, cut short or changed; the message says to pull it again.
    """
    again = f"Fetch it again: covey models pull {path.stem}"
    try:
        state = await trio.to_thread.run_sync(path.stat)
        magic = entry.magic if entry is not None else b"GGUF"
        if await trio.to_thread.run_sync(_start, path, len(magic)) != magic:
            raise CallError("storage", f"{path.name} is not a model of its kind. {again}", reason="corrupt_model")
        if entry is None or not entry.sha256:
            return
        note = note_of(path)
        known = await trio.to_thread.run_sync(_read_note, note)
        if known == _Checked(state.st_size, state.st_mtime_ns, entry.sha256):
            return
        if (entry.model_bytes and state.st_size != entry.model_bytes) or await sha256_of(path) != entry.sha256:
            raise CallError(
                "storage",
                f"The model file {path.name} is damaged (its sha256 is wrong). {again}",
                reason="corrupt_model",
            )
        fresh = _Checked(state.st_size, state.st_mtime_ns, entry.sha256)
        await trio.to_thread.run_sync(_write_note, note, fresh)
    except OSError as error:
        raise CallError("storage", f"{path} cannot be read: {error.strerror or error}.") from error


def _start(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _read_note(note: Path) -> _Checked | None:
    try:
        return msgspec.json.decode(note.read_bytes(), type=_Checked)
    except (OSError, msgspec.MsgspecError):
        return None  # no note, or a damaged one: the file is read again


def _write_note(note: Path, checked: _Checked) -> None:
    fresh = note.with_name(f"{note.name}.{os.getpid()}")
    fresh.write_bytes(msgspec.json.encode(checked))
    fresh.replace(note)
