"""Whether the tests reach enough of the code: run it after them (`make check` does).

Every pure module wholly, branches too, and 90 % of everything. The pure modules are those of import-linter's contract
`pure` in pyproject.toml, which also keeps them pure.

    python tools/coverage_gate.py [--worst 10]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PERCENT_MIN = 90.0
LINES_SHOWN = 8


def main() -> int:
    """0 where both goals are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worst", type=int, default=10, help="how many of the least covered files to print")
    arguments = parser.parse_args()
    report = measured()
    files: dict[str, Any] = {module_of(path): measurement for path, measurement in report["files"].items()}
    total = percent(report["totals"])
    print(f"Branch coverage: {total:.1f} % (at least {PERCENT_MIN:g} %). The least covered:")
    for name, one in sorted(files.items(), key=lambda pair: percent(pair[1]["summary"]))[: arguments.worst]:
        print(f"  {percent(one['summary']):5.1f} %  {name}")
    pure = [name for name in files if is_pure(name, pure_modules())]
    lacking = [name for name in pure if missing(files[name])]
    print(f"Pure modules: {len(pure) - len(lacking)} of {len(pure)} wholly covered.")
    for name in lacking:
        print(f"  {name}: {', '.join(missing(files[name])[:LINES_SHOWN])}")
    return 0 if total >= PERCENT_MIN and not lacking else 1


def measured() -> dict[str, Any]:
    """The report of all data files together."""
    # The tests' own data lie in .coverage by now; a process that ended after them has left its beside.
    if any(ROOT.glob(".coverage.*")):
        subprocess.run([sys.executable, "-m", "coverage", "combine", "--append", "--quiet"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coverage.json"
        command = [sys.executable, "-m", "coverage", "json", "--quiet", "-o", str(path)]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            sys.exit("There is no coverage data: run the tests with --cov first.")
        report: dict[str, Any] = json.loads(path.read_bytes())
    return report


def pure_modules() -> list[str]:
    """Modules, and packages with all that they hold."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    modules: list[str] = next(one for one in contracts if one["id"] == "pure")["source_modules"]
    return modules


def is_pure(module: str, modules: list[str]) -> bool:
    """Whether a module is one of them, or within one."""
    return any(module == name or module.startswith(f"{name}.") for name in modules)


def module_of(path: str) -> str:
    """`src/covey/errors.py` to `covey.errors`."""
    parts = Path(path).with_suffix("").parts
    return ".".join(parts[parts.index("covey") :]).removesuffix(".__init__")


def percent(summary: dict[str, Any]) -> float:
    """Of lines and branches together."""
    return float(summary["percent_covered"])


def missing(measurement: dict[str, Any]) -> list[str]:
    """The lines that never ran, and the branches never taken."""
    lines = [f"line {line}" for line in measurement["missing_lines"]]
    branches = [f"branch {start} to {'the end' if end < 0 else end}" for start, end in measurement["missing_branches"]]
    return lines + branches


if __name__ == "__main__":
    sys.exit(main())
