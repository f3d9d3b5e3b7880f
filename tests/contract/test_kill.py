"""`kill -9` at any instant: what was acknowledged is there, and what was not is there whole or not at all.

Mutation: `sync=False` in `LevelStore.write` passes here (the kernel keeps what a killed process wrote) and only a power
cut would tell; a commit acknowledged before its write, or an entry written apart from its head or rows, fails here.
"""

import os
import random
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from covey.contracts.feeds import KeyRevoke
from covey.store.feed_log import read_entries, read_heads
from covey.store.leveldb import open_leveldb
from covey.store.maintenance import check
from covey.store.rows import KeyRow
from covey.store.view import View

ROUNDS = int(os.environ.get("KILL_ROUNDS", "50"))
"""`make soak` asks for 500."""
ROUNDS_PER_STORE = 50
"""Each round checks the whole store."""
SEED = int(os.environ.get("COVEY_SEED", "20240611"))

WRITER = """
import sys, time
from pathlib import Path
import trio
from covey.contracts.feeds import KeyRevoke, OwnerStanding, SessionEnd
from covey.store.feeds import open_feeds
from covey.store.identity import open_identity
from covey.store.leveldb import open_leveldb
from covey.store.writer import open_store
from covey.telemetry.metrics import Metrics

class Clock:
    def now(self):
        return time.time()

async def main(folder, start):
    identity = open_identity(folder)
    async with (
        open_store(open_leveldb(folder), Metrics()) as store,
        open_feeds(store, identity, Clock(), node_name="n", found=True) as feeds,
        trio.open_nursery() as nursery,
    ):
        async def write(lane):
            number = 0
            while True:
                number += 1
                name = f"{start}-{lane}-{number}"
                await feeds.append(lambda view: [KeyRevoke(name, "x"), SessionEnd(name.encode())])
                sys.stdout.write(name + "\\n")
                sys.stdout.flush()
        for lane in range(8):
            nursery.start_soon(write, lane)

trio.run(main, Path(sys.argv[1]), sys.argv[2])
"""


def run_and_kill(folder: Path, round_number: int, seconds: float) -> list[str]:
    """The names that a child acknowledged before it was killed, `seconds` after the first of them."""
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(round_number)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    told = bytearray()
    deadline = time.monotonic() + 60.0
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                piece = os.read(child.stdout.fileno(), 1 << 16)
                assert piece, "the child ended by itself"
                if not told:
                    deadline = time.monotonic() + seconds
                told += piece
    child.send_signal(signal.SIGKILL)
    told += child.stdout.read()
    child.stdout.close()
    assert child.wait(30) == -signal.SIGKILL
    return told.decode().rpartition("\n")[0].split("\n")


@pytest.mark.slow
def test_no_acknowledged_append_is_lost(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    folder = tmp_path
    acknowledged: list[str] = []
    total = 0
    for round_number in range(ROUNDS):
        if round_number % ROUNDS_PER_STORE == 0:
            folder = tmp_path / f"data{round_number}"
            total += len(acknowledged)
            acknowledged = []
        acknowledged += run_and_kill(folder, round_number, chance.uniform(0.0, 0.15))
        report = check(folder)
        assert report.problems == (), f"seed {SEED}, round {round_number}: {report.problems}"
        kv = open_leveldb(folder)
        view = View(kv)
        lost = [name for name in acknowledged if (row := view.get(KeyRow, name)) is None or not row.revoked]
        assert not lost, f"seed {SEED}, round {round_number}: {lost}"
        # An append of two kinds is there in both feeds or in neither.
        said = {kind: _names(kv, kind) for kind in ("keys", "secret")}
        assert said["keys"] == said["secret"] >= set(acknowledged)
        kv.close()
    total += len(acknowledged)
    assert total > ROUNDS
    print(f"seed {SEED}: {ROUNDS} rounds, {total} acknowledged, 0 lost")


def _names(kv: object, kind: str) -> set[str]:
    return {
        op.id if isinstance(op, KeyRevoke) else op.digest.decode()  # type: ignore[union-attr]
        for feed in read_heads(kv, f"{kind}/")  # type: ignore[arg-type]
        for sealed in read_entries(kv, feed)  # type: ignore[arg-type]
        for op in sealed.entry.ops
    }
