"""The project's own texts, as the tests of this folder read them."""

import re
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def read(name: str) -> str:
    """A file of the project."""
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def project_files() -> tuple[str, ...]:
    """Every file that belongs to the project: what git knows, and in a copy without git, the folders that it would."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode == 0:
        return tuple(name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file())
    folders = ("bench", "deploy", "docs", "examples", "requirements", "src", "static", "templates", "tests", "tools")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    found += [path for path in ROOT.iterdir() if path.is_file()]
    return tuple(str(path.relative_to(ROOT)) for path in found if "__pycache__" not in path.parts)


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading (its text, without `#`), head and rule left out."""
    _, _, below = text.partition(f"# {heading}\n")
    assert below, f"there is no heading {heading!r}"
    rows: list[list[str]] = []
    for line in below.splitlines():
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif rows:
            break
    return rows[2:]


def code(cell: str) -> list[str]:
    """What a cell has between backticks."""
    return re.findall(r"`([^`]+)`", cell)
