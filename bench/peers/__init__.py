"""Covey beside LiteLLM's proxy, and both beside the bare upstream: the same load, in turns (`make bench-peers`).

`python -m bench peers` shows it as every other figure; without its name it is left out, for it takes minutes and wants
an environment of its own. `python -m bench.peers` has the whole table.
"""

from collections.abc import Iterable

from bench.figure import Figure

ROUNDS = 3


def run(seconds: float) -> Iterable[Figure]:
    """`seconds`: for each load in each round."""
    # The fake upstream is a module of this package: starting it must not load all the rest.
    from bench.peers.comparing import ENVIRONMENT, LITELLM, SUBJECT, compare

    compared = compare(ENVIRONMENT, seconds, ROUNDS)
    beside = LITELLM if LITELLM in compared.subjects else compared.subjects[0]
    for row in compared.table:
        value = row.values.get(SUBJECT)
        if value is not None:
            yield Figure(row.name, value, row.unit, row.values.get(beside), beside)
