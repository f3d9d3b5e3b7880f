"""Connections to model servers outlive no request that was cancelled, whenever that was."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from covey.backends.connections import Connections, tcp_connections, unix_connections

MOMENTS = 60
"""How many turns of the event loop a request takes here, at the most."""
ROUNDS = 10
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000


class Counting:
    """A server that answers at once, and knows who is connected. `slow`: it says nothing more after the head."""

    def __init__(self) -> None:
        self.connected = 0
        self.accepted = 0
        self.slow = False

    async def handle(self, stream: trio.SocketStream) -> None:
        self.connected += 1
        self.accepted += 1
        rest = b""
        try:
            while data := await stream.receive_some():
                *requests, rest = (rest + data).split(b"\r\n\r\n")
                for _ in requests:
                    await stream.send_all(ANSWER[:-900] if self.slow else ANSWER)
        except trio.BrokenResourceError:
            pass  # it left
        finally:
            self.connected -= 1


@asynccontextmanager
async def serving(
    connections: Connections, path: Path | None = None
) -> AsyncIterator[tuple[Counting, httpx.AsyncClient]]:
    """Over TCP, or with `path` over a Unix socket."""
    server = Counting()
    async with trio.open_nursery() as nursery:
        if path is not None:
            door = trio.socket.socket(socket.AF_UNIX)
            await door.bind(str(path))
            door.listen(MOMENTS)
            listener, base = trio.SocketListener(door), "http://engine"
        else:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            base = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.start_soon(trio.serve_listeners, server.handle, [listener])
        async with httpx.AsyncClient(base_url=base, transport=connections, trust_env=False, timeout=5) as client:
            yield server, client
        nursery.cancel_scope.cancel()


async def cancel_at(client: httpx.AsyncClient, moment: int) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.get, "/")
        for _ in range(moment):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()


async def until(server: Counting, connected: int) -> None:
    with trio.fail_after(5):
        while server.connected > connected:  # noqa: ASYNC110  the server hears of it through the kernel
            await trio.sleep(0.01)


@pytest.mark.parametrize("slow", [False, True])
async def test_a_request_may_be_cancelled_at_any_moment(tmp_path: Path, *, slow: bool) -> None:
    """Mutation: with one httpx.AsyncHTTPTransport for all of them, some stay connected for ever."""
    path = tmp_path / "s"
    async with serving(unix_connections(str(path)), path) as (server, client):
        server.slow = slow
        for moment in [*range(MOMENTS)] * ROUNDS:
            await cancel_at(client, moment)
        await until(server, 0)
        server.slow = False
        assert (await client.get("/")).status_code == 200


async def test_what_is_kept_was_not_cancelled() -> None:
    async with serving(tcp_connections(tls=False, idle_max=4)) as (server, client):
        for _ in range(ROUNDS):
            async with trio.open_nursery() as nursery:
                for moment in range(MOMENTS):
                    nursery.start_soon(cancel_at, client, moment)
        await until(server, 4)
        assert (await client.get("/")).status_code == 200


async def test_a_connection_is_kept_where_that_was_asked_for() -> None:
    async with serving(tcp_connections(tls=False, idle_max=1)) as (server, client):
        for _ in range(5):
            assert (await client.get("/")).status_code == 200
        assert (server.accepted, server.connected) == (1, 1)
    async with serving(tcp_connections(tls=False)) as (server, client):
        for _ in range(5):
            assert (await client.get("/")).status_code == 200
        assert server.accepted == 5
        await until(server, 0)
