"""Thousands of seeded histories of 3 to 7 auth nodes: partitions, crashes, disks put back, skewed clocks, equivocation,
revocation, removals that cross.

After all is healed: no divergence, no resurrected key, no acknowledged write lost (replication.md, invariants 1, 2, 3,
5, 6, 7 and 8). `make sim SEEDS=1000` plays 10,000 of them; a failure names its seed.

Mutations that these tests catch, tried by hand: last-writer-wins for `revoked`; `say_again` left out; a freeze that
keeps the higher place of two proofs; removals judged in the order in which they arrive; entries of removed authors
refused instead of kept (whoever built on them waits for ever); a put-back clock that is not set right.
"""

from history_world import play

HISTORIES_PER_SEED = 10


def test_histories(seed: int) -> None:
    for history in range(seed * HISTORIES_PER_SEED, (seed + 1) * HISTORIES_PER_SEED):
        try:
            play(history)
        except AssertionError as error:
            raise AssertionError(f"history {history}: {error}") from error
