"""Every figure beside its baseline: `python -m bench [--seconds 2] [NAME…]`. Exits 1 where a goal is missed."""

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

from bench.figure import show

ASKED_FOR = frozenset({"peers"})
"""Only run by name."""


def main() -> int:
    """Run what was asked for, or everything that does not want to be asked for."""
    known = [one.name for one in pkgutil.iter_modules([str(Path(__file__).parent)])]
    benches = [name for name in known if name not in ("__main__", "figure", "processes", "serving")]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(benches)}; none: all but {', '.join(ASKED_FOR)}"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(benches):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(benches)}")
    met = True
    for name in arguments.names or [one for one in benches if one not in ASKED_FOR]:
        module = importlib.import_module(f"bench.{name}")
        met = show((module.__doc__ or name).partition("\n")[0], module.run(arguments.seconds)) and met
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
