"""`check`, `backup`, `restore` and `repair` on real data folders: what is sound, what is told, and what is saved."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import plyvel
import pytest
import trio

from covey.contracts.auth import KeyLimits
from covey.contracts.feeds import (
    AccountApprove,
    AccountCreate,
    Admit,
    InvitationCreate,
    InvitationUse,
    KeyCreate,
    KeyRevoke,
    Op,
    OwnerStanding,
    PasswordSet,
    Remove,
    SessionEnd,
    SessionStart,
)
from covey.contracts.store import CheckReport
from covey.errors import CallError
from covey.store.backup import BackupMaker, write_backup
from covey.store.feed_log import entry_key, head_key
from covey.store.feeds import Feeds, open_feeds
from covey.store.identity import KEY_FILE, Identity, open_identity, peer_id_of
from covey.store.kv import FORMAT_KEY, Reader, StoreError
from covey.store.leveldb import open_leveldb
from covey.store.maintenance import backup, check, repair, restore
from covey.store.rows import (
    AccountRow,
    InvitationRow,
    KeyRow,
    MemberRow,
    SessionRow,
    StandingRow,
)
from covey.store.writer import Store, open_store
from covey.telemetry.metrics import Metrics

PASSPHRASE = "correct horse battery"
NOW = 1_700_000_000.0
GONE = peer_id_of(bytes(32))


class FixedClock:
    def now(self) -> float:
        return NOW


@asynccontextmanager
async def node(folder: Path) -> AsyncGenerator[tuple[Store, Feeds], None]:
    identity = open_identity(folder)
    async with (
        open_store(open_leveldb(folder), Metrics()) as store,
        open_feeds(store, identity, FixedClock(), node_name="alice", found=True) as feeds,
    ):
        yield store, feeds


def story() -> list[tuple[Op, ...]]:
    """A life of a network, one append after the other; the denials come at its end."""

    def key(name: str) -> KeyCreate:
        return KeyCreate(name, "1", b"d" * 32, "cvy_x", "label", (), KeyLimits(), 1, None, "1")

    return [
        (
            AccountCreate("1", "ann", "admin", True, 1, "setup"),
            PasswordSet("1", 1, "$argon2id$x", "1"),
            OwnerStanding("1", 1, True, "setup"),
        ),
        *((key(f"k{n}"),) for n in range(20)),
        (InvitationCreate("i", b"i" * 32, "user", "", 1, 2, "1"), SessionStart(b"s" * 32, "1", 1, 1, 2)),
        (Admit(GONE, ("inference",), "box", "1"),),
        (AccountApprove("1", "1"), InvitationUse("i", "2"), SessionEnd(b"s" * 32), KeyRevoke("k1", "1")),
        (Remove(GONE, {}, "1"), PasswordSet("1", 2, "$argon2id$y", "1"), OwnerStanding("1", 2, False, "1")),
    ]


async def tell(feeds: Feeds) -> None:
    for ops in story():
        await feeds.append(lambda view, ops=ops: ops)  # type: ignore[misc]


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    async with node(tmp_path / "data") as (store, feeds):
        await tell(feeds)
        await store.local("usage").put(b"today", b"7")
    return tmp_path / "data"


def raw(folder: Path) -> "plyvel.DB":
    return plyvel.DB(str(folder / "store"))


def feed_of(folder: Path, kind: str) -> str:
    database = raw(folder)
    (feed,) = [key[2:].decode() for key in database.iterator(prefix=f"h/{kind}/".encode(), include_value=False)]
    database.close()
    return feed


async def test_a_sound_folder_checks_clean_and_says_what_was_checked(folder: Path) -> None:
    report = check(folder)
    assert report.problems == ()
    assert (report.feeds, report.entries, report.operations) == (3, 30, 34)
    assert report.rows == 27
    assert len(report.network_id) == 64
    async with node(folder) as (_, feeds):
        assert report.view_hashes == {kind: feeds.view.hash(kind) for kind in ("members", "keys", "secret")}


def swap_entries(folder: Path) -> None:
    feed, database = feed_of(folder, "keys"), raw(folder)
    one, two = entry_key(feed, 3), entry_key(feed, 4)
    first, second = database.get(one), database.get(two)
    database.put(one, second)
    database.put(two, first)
    database.close()


def change(make: Callable[[Path, "plyvel.DB"], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        database = raw(folder)
        make(folder, database)
        database.close()

    return spoil


def drop(kind: str, seq: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        feed = feed_of(folder, kind)
        database = raw(folder)
        assert database.get(entry_key(feed, seq)) is not None
        database.delete(entry_key(feed, seq))
        database.close()

    return spoil


def forge(folder: Path) -> None:
    feed = feed_of(folder, "keys")
    database = raw(folder)
    stored = bytearray(database.get(entry_key(feed, 5)))
    stored[-1] ^= 1
    database.put(entry_key(feed, 5), bytes(stored))
    database.close()


def drop_head(folder: Path) -> None:
    feed = feed_of(folder, "keys")
    database = raw(folder)
    database.delete(head_key(feed))
    database.close()


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "an entry is missing": (drop("keys", 7), "does not follow entry 6"),
    "the last entry is missing": (drop("keys", 23), "ends at entry 22"),
    "the first entry is missing": (drop("members", 1), "does not follow entry 0"),
    "accounts are cut off": (drop("secret", 1), "does not follow entry 0"),
    "an entry was changed": (forge, "not signed by its author"),
    "entries were swapped": (swap_entries, "belongs elsewhere"),
    "a head is missing": (drop_head, "says entry 0"),
    "a row was changed": (
        change(lambda _, database: database.put(b"v/keys/key/k1", database.get(b"v/keys/key/k2"))),
        "row keys/key/k1 is not what",
    ),
    "a row is missing": (change(lambda _, database: database.delete(b"v/keys/key/k1")), "row keys/key/k1 is missing"),
    "a row was added": (change(lambda _, database: database.put(b"v/keys/key/zz", b"")), "row keys/key/zz is not"),
}


@pytest.mark.parametrize("case", SPOILT)
async def test_check_tells_what_is_wrong_and_repair_saves_the_denials(folder: Path, case: str) -> None:
    spoil, told = SPOILT[case]
    spoil(folder)
    problems = check(folder).problems
    assert any(told in problem for problem in problems), problems
    report = repair(folder, now=NOW)
    assert report.check.problems == ()
    assert check(folder).problems == ()
    async with node(folder) as (store, feeds):
        view = feeds.view
        key, account = view.get(KeyRow, "k1"), view.get(AccountRow, "1")
        assert key is not None
        assert key.revoked
        assert account is not None
        assert (account.password_epoch, account.name, account.pending) == (2, "ann", False)
        assert view.get(StandingRow, "1") == StandingRow(owner="1", epoch=2, active=False)
        assert all(row.ended for row in view.all(SessionRow))
        assert all(row.used_by == "2" for row in view.all(InvitationRow))
        member = view.get(MemberRow, GONE)
        assert member is not None
        assert member.removed
        assert len(list(view.all(KeyRow))) == 20
        assert store.local("usage").get(b"today") == b"7"
        await feeds.append(lambda view: [KeyRevoke("k2", "1")])
    assert check(folder).problems == ()


async def test_lost_rows_and_cut_off_entries_are_said_again(folder: Path) -> None:
    """The rows are gone too: what stands behind the gap is well signed all the same."""
    drop("keys", 2)(folder)
    database = raw(folder)
    for key in database.iterator(prefix=b"v/", include_value=False):
        database.delete(key)
    database.delete(FORMAT_KEY)
    database.close()
    report = repair(folder, now=NOW)
    assert (report.set_aside, report.check.problems) == (21, ())
    assert report.repeated >= 21
    async with node(folder) as (_, feeds):
        assert len(list(feeds.view.all(KeyRow))) == 19
        key = feeds.view.get(KeyRow, "k1")
        assert key is not None
        assert key.revoked
    again = repair(folder, now=NOW)
    assert (again.set_aside, again.repeated) == (0, 0)


async def test_repair_leaves_a_newer_covey_s_entries_alone(folder: Path) -> None:
    import msgspec

    from covey.store.entries import ENTRY_DOMAIN

    feed, identity = feed_of(folder, "keys"), open_identity(folder)
    database = raw(folder)
    body = msgspec.msgpack.decode(database.get(entry_key(feed, 23))[64:])
    body["ops"] = [{"type": "key.suspend/1", "id": "k2"}]
    content = msgspec.msgpack.encode(body)
    database.put(entry_key(feed, 23), identity.sign(ENTRY_DOMAIN, content) + content)
    database.close()
    assert any("upgrade Covey" in problem for problem in check(folder).problems)
    with pytest.raises(CallError, match="upgrade Covey"):
        repair(folder, now=NOW)


async def test_a_lost_genesis_cannot_be_repaired(folder: Path) -> None:
    change(lambda _, database: database.delete(b"m/genesis"))(folder)
    assert check(folder).problems == ("There are feeds but no genesis.",)
    with pytest.raises(StoreError, match="covey store restore"):
        repair(folder, now=NOW)


async def test_a_folder_without_feeds_is_sound(tmp_path: Path) -> None:
    open_identity(tmp_path)
    open_leveldb(tmp_path).close()
    assert check(tmp_path).problems == ()
    assert repair(tmp_path, now=NOW).check.problems == ()


async def test_maintenance_of_a_running_node_is_refused(folder: Path) -> None:
    async with node(folder):
        for work in (
            lambda: check(folder),
            lambda: repair(folder, now=NOW),
            lambda: backup(folder, folder.parent / "b", PASSPHRASE, now=NOW),
        ):
            with pytest.raises(StoreError, match="in use"):
                work()


def cheap(reader: Reader, identity: Identity) -> BackupMaker:
    return BackupMaker(reader, identity, PASSPHRASE, now=NOW, operations=1, memory_bytes=8192)


def cheap_backup(folder: Path, destination: Path, passphrase: str = PASSPHRASE) -> int:
    return backup(folder, destination, passphrase, now=NOW, operations=1, memory_bytes=8192)


async def test_a_backup_comes_back_as_the_same_node_in_a_new_incarnation(folder: Path, tmp_path: Path) -> None:
    before = check(folder)
    records = cheap_backup(folder, tmp_path / "covey.backup")
    assert records == before.records
    content = (tmp_path / "covey.backup").read_bytes()
    assert (tmp_path / "covey.backup").stat().st_mode & 0o777 == 0o600
    assert b"argon2id$" not in content
    assert open_identity(folder).seed() not in content
    (tmp_path / "new").mkdir()
    report = restore(tmp_path / "covey.backup", tmp_path / "new", PASSPHRASE)
    assert (report.problems, report.view_hashes, report.network_id) == ((), before.view_hashes, before.network_id)
    assert (tmp_path / "new" / KEY_FILE).stat().st_mode & 0o777 == 0o600
    async with node(folder) as (_, feeds):
        old = feeds.own("keys")
    async with node(tmp_path / "new") as (store, feeds):
        assert feeds.recovery_key is None
        assert feeds.own("keys") != old
        await feeds.append(lambda view: [KeyRevoke("k3", "1")])
        assert feeds.heads()[feeds.own("keys")] == 1
        assert store.local("usage").get(b"today") == b"7"
    assert check(tmp_path / "new").problems == ()
    # A second restore of the same backup must not use the first one's sequence numbers either.
    restore(tmp_path / "covey.backup", tmp_path / "newer", PASSPHRASE)
    async with node(tmp_path / "new") as (_, first), node(tmp_path / "newer") as (_, second):
        assert first.own("keys") != second.own("keys")


async def test_a_running_node_is_backed_up_from_a_snapshot(tmp_path: Path) -> None:
    async with node(tmp_path / "data") as (store, feeds):
        await tell(feeds)
        with store.reader.snapshot() as reader:
            await feeds.append(lambda view: [KeyRevoke("k9", "1")])

            await trio.to_thread.run_sync(write_backup, cheap(reader, open_identity(tmp_path / "data")), tmp_path / "b")
        report = restore(tmp_path / "b", tmp_path / "new", PASSPHRASE)
        assert report.problems == ()
        assert report.entries == 30
        assert check_live(store).entries == 31


def check_live(store: Store) -> CheckReport:
    from covey.store.checking import check_reader

    with store.reader.snapshot() as reader:
        return check_reader(reader)


async def test_a_backup_larger_than_a_chunk(tmp_path: Path) -> None:
    async with node(tmp_path / "data") as (store, _):
        await store.local("usage").put_all([(b"%d" % n, bytes(1000)) for n in range(2000)])
    records = cheap_backup(tmp_path / "data", tmp_path / "b")
    assert restore(tmp_path / "b", tmp_path / "new", PASSPHRASE).records == records - 1  # without the incarnation


async def test_what_a_restore_refuses(folder: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "b", tmp_path / "new"
    cheap_backup(folder, source)
    content = source.read_bytes()
    with pytest.raises(CallError, match="is not empty"):
        restore(source, folder, PASSPHRASE)
    with pytest.raises(CallError, match="passphrase is wrong"):
        restore(source, target, PASSPHRASE + "!")
    with pytest.raises(CallError, match="no backup"):
        restore(tmp_path / "nowhere", target, PASSPHRASE)
    for damaged in (
        content[:-1],
        content[: len(content) // 2],
        content[:70],
        content[:-40] + bytes([content[-40] ^ 1]) + content[-39:],
        content[:15] + bytes(16) + b"\xff" * 12 + content[43:],
        content[:20],
        b"hello",
    ):
        source.write_bytes(damaged)
        with pytest.raises(CallError) as refusal:
            restore(source, target, PASSPHRASE)
        assert refusal.value.code == "invalid"
    source.write_bytes(content.replace(b"covey-backup-1", b"covey-backup-2"))
    with pytest.raises(CallError, match="newer Covey"):
        restore(source, target, PASSPHRASE)
    assert not target.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"b", "data"}  # no drafts left behind


async def test_what_a_backup_refuses(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"precious")
    with pytest.raises(CallError, match="exists already"):
        cheap_backup(folder, tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"precious"
    with pytest.raises(CallError, match="10 characters"):
        cheap_backup(folder, tmp_path / "b", "short")
    with pytest.raises(StoreError, match="another place"):
        cheap_backup(folder, tmp_path / "nowhere" / "b")
    with pytest.raises(CallError, match="no store"):
        cheap_backup(tmp_path / "empty", tmp_path / "b")


async def test_a_backup_of_a_newer_format_is_refused(folder: Path, tmp_path: Path) -> None:
    kv = open_leveldb(folder)
    kv.write([(FORMAT_KEY, b"9")])
    write_backup(cheap(kv, Identity.generate()), tmp_path / "b")
    kv.close()
    with pytest.raises(StoreError, match="upgrade Covey"):
        restore(tmp_path / "b", tmp_path / "new", PASSPHRASE)


async def test_a_lost_identity_says_what_to_do(folder: Path) -> None:
    (folder / KEY_FILE).unlink()
    with pytest.raises(StoreError, match="covey store restore"):
        check(folder)
