"""Covey beside LiteLLM's proxy and the bare upstream: one load, in turns, in one run.

    python -m bench.peers [--litellm build/peers] [--seconds 3] [--rounds 3] [--write docs/peers.md]

`make bench-peers` installs LiteLLM where this looks for it. Where it is not there, Covey is compared with the bare
upstream alone.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.peers.comparing import ENVIRONMENT, LITELLM, SUBJECT, compare
from bench.peers.machine import write_between
from bench.peers.rows import markdown


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


def main() -> int:
    """Measure, print, and write where that was asked for."""
    arguments = arguments_of()
    # So that whatever runs by then is stopped on the way out.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    compared = compare(arguments.litellm, arguments.seconds, arguments.rounds)
    lines = [*compared.about, "", *markdown(compared.table, compared.subjects, ours=SUBJECT, theirs=LITELLM)]
    print("\n".join(lines))
    if arguments.write:
        write_between(arguments.write, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
