"""What only a disk can do: hold a lock, be damaged, be full, and survive `kill -9`."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from covey.errors import CallError
from covey.store.kv import StoreError
from covey.store.leveldb import HOLDER, WRITE_BUFFER_BYTES, open_leveldb, repair_leveldb


def in_a_process(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


TRY_TO_OPEN = """
    import sys
    from pathlib import Path
    from covey.errors import CallError
    from covey.store.leveldb import open_leveldb
    try:
        open_leveldb(Path(sys.argv[1])).close()
    except CallError as error:
        print(error.reason, error.message)
    else:
        print("opened")
"""


def test_a_second_process_is_refused_with_the_holder_named(tmp_path: Path) -> None:
    kv = open_leveldb(tmp_path)
    told = finish(in_a_process(TRY_TO_OPEN, str(tmp_path)))
    assert told.startswith("in_use")
    assert str(os.getpid()) in told
    assert str(tmp_path) in told
    kv.close()
    assert finish(in_a_process(TRY_TO_OPEN, str(tmp_path))) == "opened\n"


def test_a_second_attempt_of_this_process_does_not_break_the_lock(tmp_path: Path) -> None:
    """LevelDB's own lock fails this: closing any descriptor of its file drops it."""
    kv = open_leveldb(tmp_path)
    for _ in range(2):
        with pytest.raises(StoreError, match="this very process") as refusal:
            open_leveldb(tmp_path)
        assert refusal.value.reason == "in_use"
    assert finish(in_a_process(TRY_TO_OPEN, str(tmp_path))).startswith("in_use")
    with pytest.raises(StoreError, match="in use"):
        repair_leveldb(tmp_path)
    kv.close()


def test_a_dead_holder_is_no_holder(tmp_path: Path) -> None:
    holder = in_a_process(
        """
        import sys
        from pathlib import Path
        from covey.store.leveldb import open_leveldb
        kv = open_leveldb(Path(sys.argv[1]))
        print("open", flush=True)
        sys.stdin.read()
        """,
        str(tmp_path),
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(StoreError, match=f"process {holder.pid}"):
        open_leveldb(tmp_path)
    holder.send_signal(signal.SIGKILL)
    holder.communicate(timeout=30)
    open_leveldb(tmp_path).close()
    assert (tmp_path / HOLDER).exists()


def test_an_idle_store_takes_little_memory(tmp_path: Path) -> None:
    told = finish(
        in_a_process(
            """
            import sys
            from pathlib import Path
            from covey.store.leveldb import open_leveldb
            def resident():
                return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
            before = resident()
            kv = open_leveldb(Path(sys.argv[1]))
            print(resident() - before)
            """,
            str(tmp_path),
        )
    )
    assert int(told) < WRITE_BUFFER_BYTES // 8


def filled(folder: Path) -> None:
    kv = open_leveldb(folder)
    for block in range(20):
        kv.write([(b"x/%06d" % n, os.urandom(100)) for n in range(block * 100, block * 100 + 100)])
    kv.close()


def damage(path: Path, where: int) -> None:
    content = bytearray(path.read_bytes())
    content[where] ^= 0x40
    path.write_bytes(content)


def test_a_flipped_bit_in_the_log_is_told_and_can_be_repaired(tmp_path: Path) -> None:
    filled(tmp_path)
    (log,) = (tmp_path / "store").glob("*.log")
    damage(log, log.stat().st_size // 2)
    with pytest.raises(StoreError, match="covey store repair") as refusal:
        open_leveldb(tmp_path)
    assert refusal.value.reason == "corrupt"
    assert "\n" not in refusal.value.message
    repair_leveldb(tmp_path)
    kv = open_leveldb(tmp_path, repairing=True)
    assert sum(1 for _ in kv.scan(b"x/")) > 1500
    kv.close()


def test_a_flipped_bit_in_a_table_is_told_when_it_is_read(tmp_path: Path) -> None:
    filled(tmp_path)
    open_leveldb(tmp_path).close()  # opening again turns the log into a table
    (table,) = (tmp_path / "store").glob("*.ldb")
    damage(table, table.stat().st_size // 2)
    kv = open_leveldb(tmp_path)
    with pytest.raises(StoreError, match="covey store restore") as refusal:
        list(kv.scan(b"x/"))
    assert refusal.value.reason == "corrupt"
    refused = 0
    for n in range(2000):
        try:
            assert kv.get(b"x/%06d" % n) is not None
        except StoreError:
            refused += 1
    assert 0 < refused < 500
    kv.close()


def test_lost_files_are_told(tmp_path: Path) -> None:
    filled(tmp_path)
    open_leveldb(tmp_path).close()
    for table in (tmp_path / "store").glob("*.ldb"):
        table.unlink()
    with pytest.raises(StoreError, match="covey store repair"):
        open_leveldb(tmp_path)


def test_a_lost_current_file_is_told_before_leveldb_deletes_the_tables(tmp_path: Path) -> None:
    """LevelDB alone takes such a folder for a new database, and whatever lies in it for rubbish."""
    filled(tmp_path)
    open_leveldb(tmp_path).close()
    (tmp_path / "store" / "CURRENT").unlink()
    before = sorted(path.name for path in (tmp_path / "store").iterdir())
    for create in (True, False):
        with pytest.raises(StoreError, match="covey store repair") as refusal:
            open_leveldb(tmp_path, create=create)
        assert refusal.value.reason == "corrupt"
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == before
    repair_leveldb(tmp_path)
    kv = open_leveldb(tmp_path)
    assert sum(1 for _ in kv.scan(b"x/")) == 2000
    kv.close()


def test_a_first_start_that_was_killed_is_started_again(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "MANIFEST-000001").write_bytes(b"")  # LevelDB writes it before CURRENT
    open_leveldb(tmp_path).close()


@pytest.mark.parametrize("name", ["data", "data/below"])
def test_a_folder_that_is_a_file_is_told(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(StoreError, match=r"a file .*--data") as refusal:
        open_leveldb(tmp_path / name)
    assert refusal.value.reason == "not_writable"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable for root")
def test_an_unwritable_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="make it writable"):
        open_leveldb(tmp_path / "data")
    tmp_path.chmod(0o700)


def test_there_must_be_a_store_to_check_or_repair(tmp_path: Path) -> None:
    for work in (lambda: open_leveldb(tmp_path, create=False), lambda: repair_leveldb(tmp_path)):
        with pytest.raises(CallError, match="no store") as refusal:
            work()
        assert refusal.value.code == "not_found"
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_stops_the_writing_and_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the log is cut off in the middle of a record.

    Mutation: without `_failure`, later writes land behind the torn record and are lost on the next opening.
    """
    told = finish(
        in_a_process(
            """
            import os, resource, sys
            from pathlib import Path
            from covey.store.kv import StoreError
            from covey.store.leveldb import open_leveldb
            kv = open_leveldb(Path(sys.argv[1]))
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
            written = 0
            try:
                while True:
                    kv.write([(b"x/%06d" % written, os.urandom(3000))])
                    written += 1
            except StoreError as error:
                print(error.reason, written)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            try:
                kv.write([(b"x/%06d" % written, b"small")])
                print("wrote")
            except StoreError as error:
                print(error.message)
            print(sum(1 for _ in kv.scan(b"x/")))
            """,
            str(tmp_path),
        )
    ).splitlines()
    reason, written = told[0].split()
    assert reason == "full"
    assert int(written) > 100
    assert "free some space" in told[1]
    assert "restart this node" in told[1]
    assert told[2] == written
    kv = open_leveldb(tmp_path)
    assert sum(1 for _ in kv.scan(b"x/")) == int(written)
    kv.write([(b"x/more", b"")])
    kv.close()
