"""A Unix socket: how the command line reaches its own user's node. The file's permissions are the authorisation."""

import fcntl
import itertools
import os
import socket
import stat
import struct
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import trio

from covey.errors import CallError
from covey.transport.base import Accept, PeerId

PATH_BYTES_MAX = 103
"""`sun_path` holds 108 bytes on Linux and 104 on macOS, a final zero among them."""
CONNECTIONS_MAX = 64
"""At once; further ones are closed at once."""
BACKLOG = 64


async def dial_unix(path: Path) -> trio.SocketStream:
    """Connect to the node that listens on a path; the caller closes the stream.

    Raises:
        CallError: `unreachable`: no node runs there; `forbidden`: it is another user's.
    """
    _check_length(path)
    try:
        return await trio.open_unix_socket(path)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise CallError(
            "unreachable", f"No node is running here (nothing answers on {path}): start one with `covey up`.",
            reason="not_running",
        ) from error  # fmt: skip
    except PermissionError as error:
        raise CallError("forbidden", f"{path} belongs to another user's node.") from error
    except OSError as error:
        raise CallError("unreachable", f"{path} cannot be reached: {error.strerror}.") from error


async def serve_unix(
    path: Path, accept: Accept, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Listen on a path until cancelled, and hand every connection of this user, or of root, to `accept`.

    A connection's peer id is `unix:<process id>:<number>`, for logs. The folder is made if it is missing and must be
    private to its user; the socket of a process that died is replaced; this one's is removed at the end.

    Raises:
        CallError: `conflict`: another process listens there; `storage`: the folder is not private, or the path is
            something else; `invalid`: the path is too long for a socket.
    """
    numbers = itertools.count(1)
    places = trio.Semaphore(CONNECTIONS_MAX)

    async def admit(stream: trio.SocketStream) -> None:
        try:
            process_id, user_id = peer_credentials(stream.socket)
            places.acquire_nowait()
        except (OSError, trio.WouldBlock):
            await trio.aclose_forcefully(stream)
            return
        try:
            if user_id in (os.getuid(), 0):
                await accept(PeerId(f"unix:{process_id}:{next(numbers)}"), stream)
        finally:
            places.release()
            await trio.aclose_forcefully(stream)

    async with _listen(path) as listener:
        task_status.started()  # what connects from now on waits in the backlog
        await trio.serve_listeners(admit, [listener])


def peer_credentials(connection: trio.socket.SocketType) -> tuple[int, int]:
    """The process id and the user id of the other end.

    Only Linux tells (unix(7), SO_PEERCRED). Elsewhere: process 0 of this user: the socket's mode lets nobody else in.
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return 0, os.getuid()
    process_id, user_id, _ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i"))
    )
    return process_id, user_id


@asynccontextmanager
async def _listen(path: Path) -> AsyncGenerator[trio.SocketListener, None]:
    _check_length(path)
    _private_folder(path.parent)
    with _sole_owner(path):
        await _remove_stale(path)
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            await door.bind(str(path))
            made = path.lstat()
            try:
                path.chmod(0o600)  # the folder kept others out until here
                door.listen(BACKLOG)
                yield trio.SocketListener(door)
            finally:
                with suppress(FileNotFoundError):
                    if os.path.samestat(path.lstat(), made):
                        path.unlink()


def _check_length(path: Path) -> None:
    size = len(os.fsencode(path))
    if size > PATH_BYTES_MAX:
        raise CallError(
            "invalid",
            f"The socket's path {path} has {size} bytes, and may have {PATH_BYTES_MAX}: use a shorter one.",
        )


def _private_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise CallError("storage", f"The folder {folder} cannot be made: {error.strerror}.") from error
    if found.st_uid != os.getuid():
        raise CallError("storage", f"The folder {folder} belongs to another user: give the node one of its own.")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise CallError("storage", f"Others may enter the folder {folder}: run `chmod 700 {folder}`.")


@contextmanager
def _sole_owner(path: Path) -> Generator[None, None, None]:
    """Hold the path's lock file, so that two processes that start at once do not both find a stale socket.

    The lock file stays: removing it would let a third process lock a new one while a second still waits on the old.
    """
    handle = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _taken(path) from error
        yield
    finally:
        os.close(handle)


async def _remove_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise CallError("storage", f"{path} is in the way and is no socket: move it elsewhere.")
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            await probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            with suppress(FileNotFoundError):
                path.unlink()
            return
    raise _taken(path)  # by a process that knows nothing of our lock


def _taken(path: Path) -> CallError:
    return CallError("conflict", f"Another node listens on {path} already: stop it first, or use another data folder.")
