"""Covey beside LiteLLM's proxy and the bare upstream: one load, in turns, in one run.

    python -m bench.peers [--litellm build/peers] [--seconds 3] [--rounds 3] [--write docs/peers.md]

`make bench-peers` installs LiteLLM where this looks for it. Where it is not there, Covey is compared with the bare
upstream alone.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.peers.machine import busy, facts, litellm_version, write_between
from bench.peers.measuring import TOKEN_SECONDS, UNITS, measure
from bench.peers.rows import markdown, rows
from bench.peers.subjects import Covey, LiteLLM, Subject, Upstream
from bench.processes import place

ENVIRONMENT = Path("build/peers")


def arguments_of(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--litellm", type=Path, default=ENVIRONMENT, metavar="FOLDER", help="its virtual environment")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each load at each of them in each round")
    parser.add_argument("--rounds", type=int, default=3, help="the median of which counts")
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the table goes, between its two marks")
    arguments = parser.parse_args(given)
    if arguments.seconds <= 0 or arguments.rounds < 1:
        parser.error("--seconds and --rounds are more than nothing")
    return arguments


def compare(litellm: Path, seconds: float, rounds: int) -> list[str]:
    """The lines of the report. Whatever was started has ended."""
    version = litellm_version(litellm)
    if version is None:
        print(f"LiteLLM is not installed in {litellm}: Covey is compared with the bare upstream alone.", flush=True)
    lines, idle = facts(version), busy()
    with place() as folder, ExitStack() as stack:
        upstream = Upstream(folder, TOKEN_SECONDS)
        covey = Covey(folder, upstream.url)
        subjects: list[Subject] = [upstream, covey]
        if version is not None:
            subjects.append(LiteLLM(folder, upstream.url, litellm))
        for subject in subjects:
            stack.callback(subject.stop)
        upstream.start()
        covey.prepare()
        upstream.stop()
        figures = measure(subjects, seconds=seconds, rounds=rounds, say=_say)
    names = [subject.name for subject in subjects]
    table = list(rows(figures, UNITS, bare=upstream.name))
    lines.append(f"Each load took {seconds:g} s; the medians of {rounds} rounds in turns.")
    lines.append(f"Load averages over 1, 5 and 15 minutes: {idle} before the run, {busy()} after it.")
    return [*lines, "", *markdown(table, names, ours="Covey", theirs="LiteLLM")]


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main() -> int:
    """Measure, print, and write where that was asked for."""
    arguments = arguments_of()
    lines = compare(arguments.litellm, arguments.seconds, arguments.rounds)
    print("\n".join(lines))
    if arguments.write:
        write_between(arguments.write, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
