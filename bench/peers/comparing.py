"""One run: start all that are compared, measure them in turns, end them."""

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.peers.machine import busy, facts, litellm_version
from bench.peers.measuring import MORE_IS_BETTER, TOKEN_SECONDS, UNITS, measure
from bench.peers.rows import Row, rows
from bench.peers.subjects import Covey, LiteLLM, Subject, Upstream
from bench.processes import place

ENVIRONMENT = Path("build/peers")
"""Where `make bench-peers` installs LiteLLM."""
SUBJECT, LITELLM = "Covey", "LiteLLM"


@dataclass(frozen=True)
class Compared:
    """What a run gave, and what is to be said about it."""

    about: list[str]
    subjects: list[str]
    table: list[Row]


def compare(litellm: Path, seconds: float, rounds: int) -> Compared:
    """Run it; whatever was started has ended.

    Args:
        litellm: its virtual environment. Where it is not there, that is told, and the rest is measured.
        seconds: for each load at each of them in each round.

    Raises:
        RuntimeError: one of them does not start, or most of its answers are wrong.
    """
    version = litellm_version(litellm)
    if version is None:
        print(
            f"litellm[proxy] is not in {litellm} (why it did not install: {litellm}.log): "
            "Covey is compared with the bare upstream alone.",
            flush=True,
        )
    about, idle = facts(version), busy()
    with place() as folder, ExitStack() as stack:
        upstream = Upstream("upstream", folder, TOKEN_SECONDS)
        covey = Covey(SUBJECT, folder, upstream.url)
        subjects: list[Subject] = [upstream, covey]
        if version is not None:
            subjects.append(LiteLLM(LITELLM, folder, upstream.url, litellm))
        for subject in subjects:
            stack.callback(subject.stop)
        upstream.start()
        covey.prepare()
        upstream.stop()
        figures = measure(subjects, seconds=seconds, rounds=rounds, say=_say)
    about.append(f"Each load took {seconds:g} s; the medians of {rounds} rounds in turns.")
    about.append(f"Load averages over 1, 5 and 15 minutes: {idle} before the run, {busy()} after it.")
    names = [subject.name for subject in subjects]
    return Compared(about, names, list(rows(figures, UNITS, MORE_IS_BETTER, bare=upstream.name)))


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
