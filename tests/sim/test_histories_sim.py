"""Thousands of seeded histories of 3 to 7 auth nodes: partitions, crashes, disks put back, skewed clocks, equivocation,
revocation, removals that cross.

After all is healed: no divergence, no resurrected key, no acknowledged write lost (replication.md, invariants 1, 2, 3,
5, 6, 7 and 8). `make sim SEEDS=100 ARGS='-k histories'` plays 10,000; a failure names its history, which is its seed.

Mutations that these catch within some dozen histories: denials of a removed author that nobody says again
(`tools/mutations.py`), words of others that a clock as wrong as theirs let in and that go on counting, a revocation
that counts only where the key is known already, entries of removed authors that are refused instead of kept: whoever
built on them waits for ever.
"""

from history_dice import play

HISTORIES_PER_SEED = 100


def test_histories(seed: int) -> None:
    for history in range(seed * HISTORIES_PER_SEED, (seed + 1) * HISTORIES_PER_SEED):
        try:
            play(history)
        except AssertionError as error:
            raise AssertionError(f"history {history}: {error}") from error
    print(f"histories {seed * HISTORIES_PER_SEED} to {(seed + 1) * HISTORIES_PER_SEED - 1}: all agree, nothing lost")
