"""A node that runs checks and backs up its own store, while it is being written to, through its operator's socket."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from covey.client import Client
from covey.contracts.auth import ADD_USER, REVOKE_KEY, VERIFY, Actor, AddUser, RevokeKey, VerifyKey
from covey.contracts.keys import parse
from covey.contracts.method import Nothing
from covey.contracts.store import PIECE_BYTES_MAX, STORE_BACKUP, STORE_CHECK, BackUp, CheckReport
from covey.control import connect
from covey.errors import CallError
from covey.node import Node, open_node
from covey.store import maintenance
from covey.store.feed_log import INCARNATION_KEY
from covey.store.leveldb import open_leveldb

PASSPHRASE = "a long passphrase"
AUTH = {"node": {"name": "one", "roles": ["auth"]}}


@asynccontextmanager
async def running(folder: Path) -> AsyncGenerator[tuple[Node, Client], None]:
    """A node with an account, and its operator on the Unix socket."""
    fresh = not folder.exists()
    async with open_node(AUTH, data=folder) as node:
        if fresh:
            await node.bus.call(ADD_USER, AddUser(Actor(), "ann", "correct horse battery 7", "admin"))
        async with connect(folder) as client:
            yield node, client


@pytest.fixture(autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("r")))


async def take_backup(client: Client, destination: Path) -> int:
    records = 0
    with destination.open("wb") as file:
        async with client.bus.stream(STORE_BACKUP, BackUp(PASSPHRASE)) as pieces:
            async for piece in pieces:
                assert 0 < len(piece.data) <= PIECE_BYTES_MAX
                file.write(piece.data)
                records = piece.records
    return records


async def check_soon(client: Client) -> CheckReport:
    """Once what was left behind has ended, which is at its next record."""
    with trio.fail_after(20):
        while True:
            try:
                return await client.bus.call(STORE_CHECK, Nothing())
            except CallError as error:
                if error.code != "conflict":
                    raise
            await trio.sleep(0.01)


def incarnation(folder: Path) -> bytes | None:
    kv = open_leveldb(folder)
    try:
        return kv.get(INCARNATION_KEY)
    finally:
        kv.close()


async def test_a_backup_while_keys_are_made_comes_back_sound_as_a_new_incarnation(tmp_path: Path) -> None:
    before: list[str] = []
    after: list[str] = []

    async def make_keys(made: list[str], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        for _ in range(5):
            made.append((await node.client.create_key("ann")).key)
        task_status.started()
        while True:
            fleeting = await node.client.create_key("ann")  # a person has a hundred at most
            await node.bus.call(REVOKE_KEY, RevokeKey(Actor(), fleeting.id))

    async with running(tmp_path / "data") as (node, client):
        async with trio.open_nursery() as nursery:
            await nursery.start(make_keys, before)
            acknowledged = list(before)
            records = await take_backup(client, tmp_path / "backup")
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            await nursery.start(make_keys, after)
            nursery.cancel_scope.cancel()
    report = await trio.to_thread.run_sync(maintenance.restore, tmp_path / "backup", tmp_path / "again", PASSPHRASE)
    assert report.problems == ()
    assert report.records == records - 1  # without the incarnation
    async with running(tmp_path / "again") as (again, client):
        assert again.peer_id == node.peer_id
        gateway = again._base.bus.stamped("gateway")
        for text in acknowledged:
            key = parse(text)
            assert key is not None
            assert (await gateway.call(VERIFY, VerifyKey(key.key_id, key.digest))).key_id == key.key_id
        assert (await client.bus.call(STORE_CHECK, Nothing())).problems == ()
    assert incarnation(tmp_path / "again") != incarnation(tmp_path / "data")


async def test_a_check_tells_what_a_check_of_the_folder_tells(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as (_, client):
        live = await client.bus.call(STORE_CHECK, Nothing())
    assert live.problems == ()
    assert live == await trio.to_thread.run_sync(maintenance.check, tmp_path / "data")


async def test_a_reader_that_leaves_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as (node, client):
        local = node._base.store.local("usage")
        await local.put_all([(b"%06d" % n, bytes(60_000)) for n in range(400)])  # more than a stream's window holds
        async with client.bus.stream(STORE_BACKUP, BackUp(PASSPHRASE)) as pieces:
            await anext(pieces)
            with pytest.raises(CallError) as refused:
                await client.bus.call(STORE_CHECK, Nothing())
            assert refused.value.code == "conflict"
        assert (await check_soon(client)).problems == ()
        assert await take_backup(client, tmp_path / "backup") > 400


async def test_a_check_that_nobody_waits_for_is_abandoned(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as (node, client):
        local = node._base.store.local("usage")
        await local.put_all([(b"%06d" % n, b"x") for n in range(50_000)])
        with trio.move_on_after(0.05):
            await client.bus.call(STORE_CHECK, Nothing())
        assert (await check_soon(client)).records > 50_000


async def test_a_short_passphrase_is_refused_and_none_is_ever_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with running(tmp_path / "data") as (_, client):
        with pytest.raises(CallError, match="10 characters"):
            async with client.bus.stream(STORE_BACKUP, BackUp("hunter2")) as pieces:
                await anext(pieces)
    assert "hunter2" not in caplog.text
    assert "hunter2" not in repr(BackUp("hunter2"))


async def test_nobody_but_the_operator_may_ask(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as (node, _):
        for stamp in ("member", "auth", "gateway", "web"):
            with pytest.raises(CallError) as refused:
                await node._base.bus.stamped(stamp).call(STORE_CHECK, Nothing())
            assert refused.value.code == "denied"
