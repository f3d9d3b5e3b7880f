"""Break the code on purpose, one invariant at a time, and see that the named test notices: `python tools/mutations.py`.

Works on a copy of the tree in a temporary folder. Exits 1 where a test passes although the code is wrong, or a
mutation's text is no longer in its file (tests/meta/test_mutations.py looks for that on every run).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in `file`, and then `test` fails. `invariant`: its number in the design."""

    invariant: int
    what: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = (
    Mutation(
        1,
        "a field that its last applied writer keeps",
        "src/covey/store/merge.py",
        "    if meta.stamp >= row.name_at:\n        row = replace(row, name=op.name, name_at=meta.stamp)\n"
        "    return _changed(old, row)\n\n\ndef _label",
        "    row = replace(row, name=op.name, name_at=meta.stamp)\n    return _changed(old, row)\n\n\ndef _label",
        "tests/unit/test_merge.py",
    ),
    Mutation(
        1,
        "removals judged without those that cut them off",
        "src/covey/store/verdict.py",
        "            if self._removals[number].cuts_off(place):",
        "            if False and self._removals[number].cuts_off(place):",
        "tests/unit/test_verdict.py",
    ),
    Mutation(
        2,
        "a denial that is not said again where its author is removed",
        "src/covey/store/feeds.py",
        "        again = reissued([*taken.voided, *kept], View(overlay))",
        "        again = reissued(kept, View(overlay))",
        "tests/sim/test_histories_sim.py",
    ),
    Mutation(
        2,
        "a gateway that vouches for keys without a lease",
        "src/covey/cluster/lease.py",
        "        needed = quorum(len(others) + 1, policy) - 1\n        if needed == 0:",
        "        needed = quorum(len(others) + 1, policy) - 1\n        if needed >= 0:",
        "tests/sim/test_lease_sim.py",
    ),
    Mutation(
        3,
        "an append that is acknowledged before it is written",
        "src/covey/store/writer.py",
        "        failure: Exception | None = None\n        if overlay.changes:\n",
        "        failure: Exception | None = None\n        for request in planned:\n            request.done.set()\n"
        "        await trio.sleep(0.02)\n        if overlay.changes:\n",
        "tests/contract/test_kill.py",
    ),
    Mutation(
        3,
        "a write that waits for nobody else",
        "src/covey/store/acks.py",
        "                if not live or any(",
        "                if True or any(",
        "tests/sim/test_replication_sim.py",
    ),
    Mutation(
        4,
        "entries of whoever signs them",
        "src/covey/store/ingest.py",
        "            if not is_author(self._overlay, feed.author):",
        "            if False and not is_author(self._overlay, feed.author):",
        "tests/unit/test_ingest.py",
    ),
    Mutation(
        4,
        "entries of a removed author that count",
        "src/covey/store/feed_log.py",
        "    if verdict is not None and entry.seq > verdict.limit(sealed.feed):",
        "    if False and verdict is not None and entry.seq > verdict.limit(sealed.feed):",
        "tests/unit/test_ingest.py",
    ),
    Mutation(
        5,
        "two entries for one place, and no proof kept",
        "src/covey/store/ingest.py",
        "        if ours is None or ours.hash == sealed.hash:",
        "        if ours is None or True:",
        "tests/unit/test_ingest.py",
    ),
    Mutation(
        5,
        "of two proofs the later place is kept",
        "src/covey/store/feed_log.py",
        "    if known is not None and _decode_proof(known).seq <= seq:",
        "    if known is not None and _decode_proof(known).seq >= seq:",
        "tests/unit/test_replicating.py",
    ),
    Mutation(
        6,
        "an entry that is applied again counts as new",
        "src/covey/store/ingest.py",
        "            self._compare(sealed)\n            return\n",
        "            self._compare(sealed)\n            self.taken.applied += 1\n            return\n",
        "tests/unit/test_ingest.py",
    ),
    Mutation(
        7,
        "a denial that waits for its author's clock",
        "src/covey/store/feed_log.py",
        "        if not future or is_denial(op):",
        "        if not future:",
        "tests/unit/test_replicating.py",
    ),
    Mutation(
        2,
        "a denial that is forgotten where it is voided while the node is removed itself",
        "src/covey/store/feeds.py",
        "            keep_denied(overlay, taken.voided)\n",
        "",
        "tests/unit/test_replicating.py",
    ),
    Mutation(
        7,
        "what others said with a wrong clock, and goes on counting where the clock was as wrong",
        "src/covey/store/feeds.py",
        "        others = [sealed for sealed in ahead if sealed.feed.author != me]",
        "        others = [sealed for sealed in ahead if False and sealed.feed.author != me]",
        "tests/unit/test_ahead.py",
    ),
    Mutation(
        7,
        "a clock that is set right of the present feeds alone",
        "src/covey/store/feeds.py",
        "        mine = [sealed for sealed in ahead if sealed.feed.author == me]",
        "        mine = [sealed for sealed in ahead if str(sealed.feed) == self.own(overlay, sealed.feed.kind)]",
        "tests/sim/test_clocks_sim.py",
    ),
    Mutation(
        8,
        "a joiner that gets a feed without its first entry",
        "src/covey/store/ingest.py",
        "        entries = read_entries(reader, feed, after=max(reached.get(feed, 0), 0))",
        "        entries = read_entries(reader, feed, after=max(reached.get(feed, 1), 1))",
        "tests/unit/test_ingest.py",
    ),
)


def main() -> int:
    """Try every one, or those of the invariants that are named."""
    wanted = {int(word) for word in sys.argv[1:]} or {one.invariant for one in MUTATIONS}
    bad = 0
    for one in MUTATIONS:
        if one.invariant in wanted:
            noticed = try_one(one)
            bad += not noticed
            print(f"invariant {one.invariant}, {one.what}: {'noticed by' if noticed else 'NOT NOTICED BY'} {one.test}")
    return 1 if bad else 0


def try_one(one: Mutation) -> bool:
    """Whether the test fails with the mutation."""
    with tempfile.TemporaryDirectory(prefix="covey-mutation-") as name:
        copy = Path(name) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "dist", ".*_cache", ".hypothesis"))
        file = copy / one.file
        text = file.read_text(encoding="utf-8")
        if text.count(one.old) != 1:
            raise SystemExit(f"{one.file} has changed: {one.what!r} is not there once")
        file.write_text(text.replace(one.old, one.new), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "SEEDS": "3", "KILL_ROUNDS": "5"}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", one.test],
            cwd=copy, env=environment, capture_output=True, check=False,
        )  # fmt: skip
        return done.returncode == 1


if __name__ == "__main__":
    sys.exit(main())
