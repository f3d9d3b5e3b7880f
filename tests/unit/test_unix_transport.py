"""Unix sockets: who may listen, who may connect, and what stays behind."""

import os
import socket
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from covey.bus.background import open_background
from covey.errors import CallError
from covey.transport import unix
from covey.transport.base import PeerId
from covey.transport.unix import PATH_BYTES_MAX, dial_unix, serve_unix


async def greet(peer: PeerId, stream: trio.abc.Stream) -> None:
    async with stream:
        await stream.send_all(peer.encode())


@asynccontextmanager
async def listening(path: Path) -> AsyncGenerator[None, None]:
    async with open_background() as nursery:
        await nursery.start(partial(serve_unix, path, greet))
        yield


async def said(path: Path) -> str:
    async with await dial_unix(path) as stream:
        return (await stream.receive_some()).decode()


async def test_the_caller_is_named_by_its_process(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    async with listening(path):
        assert await said(path) == f"unix:{os.getpid()}:1"
        assert await said(path) == f"unix:{os.getpid()}:2"


async def test_file_and_folder_are_private_and_the_file_goes(tmp_path: Path) -> None:
    path = tmp_path / "made" / "node.sock"
    async with listening(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.exists()
    async with listening(path):
        assert await said(path)


async def test_a_dead_process_leaves_a_stale_socket(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    async with listening(path):
        assert await said(path)


async def test_a_live_node_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    async with listening(path):
        with pytest.raises(CallError, match="already") as caught:
            await serve_unix(path, greet)
        assert caught.value.code == "conflict"
        assert await said(path)


async def test_a_live_socket_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(CallError, match="already") as caught:
            await serve_unix(path, greet)
        assert caught.value.code == "conflict"
        assert path.exists()


async def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "node.sock"
    path.write_text("precious")
    with pytest.raises(CallError, match="no socket") as caught:
        await serve_unix(path, greet)
    assert caught.value.code == "storage"
    assert path.read_text() == "precious"


async def test_an_open_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(CallError, match="chmod 700") as caught:
        await serve_unix(tmp_path / "node.sock", greet)
    assert caught.value.code == "storage"


async def test_a_path_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ("x" * PATH_BYTES_MAX)
    with pytest.raises(CallError, match="shorter") as caught:
        await serve_unix(path, greet)
    assert caught.value.code == "invalid"
    with pytest.raises(CallError, match="shorter"):
        await dial_unix(path)


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="covey up") as caught:
        await dial_unix(tmp_path / "node.sock")
    assert caught.value.code == "unreachable"


async def test_another_user_is_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "node.sock"
    async with listening(path):
        monkeypatch.setattr(unix, "peer_credentials", lambda _: (1, os.getuid() + 12_345))
        assert await said(path) == ""


async def test_credentials_are_the_kernels(tmp_path: Path) -> None:
    left, right = trio.socket.socketpair(socket.AF_UNIX)
    with left, right:
        assert unix.peer_credentials(left) == (os.getpid(), os.getuid())


async def test_connections_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unix, "CONNECTIONS_MAX", 2)
    path = tmp_path / "node.sock"
    release = trio.Event()

    async def linger(peer: PeerId, stream: trio.abc.Stream) -> None:
        await stream.send_all(b"welcome")
        await release.wait()

    async with open_background() as nursery:
        await nursery.start(partial(serve_unix, path, linger))
        held = [await dial_unix(path) for _ in range(2)]
        for stream in held:
            assert await stream.receive_some() == b"welcome"
        assert await said(path) == ""
        release.set()
        for stream in held:
            assert await stream.receive_some() == b""
            await stream.aclose()
        assert await said(path) == "welcome"
