"""`python -m covey`, and what the console script `covey` calls."""

import sys


def main() -> None:
    """Run the command line; ends the process with its exit code."""
    from covey.cli.app import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
