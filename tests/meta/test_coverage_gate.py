"""The gate of `make check` counts what the tests covered, and says what they did not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT

PROJECT = """
[tool.coverage.run]
branch = true
source_pkgs = ["covey"]
parallel = true

[[tool.importlinter.contracts]]
id = "pure"
source_modules = ["covey.halves"]
"""
HALVES = """
def half(number):
    if number % 2:
        return (number - 1) // 2
    return number // 2
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project with the gate in it."""
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "coverage_gate.py", tmp_path / "tools")
    package = tmp_path / "covey"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "halves.py").write_text(HALVES)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    return tmp_path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in it, with none of what measures the tests themselves."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    return subprocess.run(
        [sys.executable, *arguments], cwd=project, env=environment, capture_output=True, text=True, check=False
    )


def covered(project: Path, *numbers: int) -> None:
    """A process that halves them, and leaves a data file of its own."""
    program = f"from covey.halves import half; [half(number) for number in {numbers}]"
    (project / "program.py").write_text(program)
    done = run(project, "-m", "coverage", "run", "program.py")
    assert done.returncode == 0, done.stderr


def combined(project: Path) -> None:
    """As pytest-cov leaves it after the tests."""
    done = run(project, "-m", "coverage", "combine", "--quiet")
    assert done.returncode == 0, done.stderr


def test_what_a_process_leaves_after_the_tests_is_added(project: Path) -> None:
    covered(project, 1)
    combined(project)
    covered(project, 2)
    gate = run(project, "tools/coverage_gate.py")
    assert gate.returncode == 0, gate.stdout + gate.stderr
    assert "Branch coverage: 100.0 %" in gate.stdout
    assert "Pure modules: 1 of 1 wholly covered." in gate.stdout


def test_data_files_alone_do_too(project: Path) -> None:
    covered(project, 1)
    covered(project, 2)
    assert run(project, "tools/coverage_gate.py").returncode == 0


def test_a_branch_of_a_pure_module_that_was_never_taken_is_named(project: Path) -> None:
    covered(project, 1)
    gate = run(project, "tools/coverage_gate.py")
    assert gate.returncode == 1
    assert "covey.halves: line 5, branch 3 to 5" in gate.stdout


def test_no_data_is_no_pass(project: Path) -> None:
    gate = run(project, "tools/coverage_gate.py")
    assert gate.returncode == 1
    assert "run the tests with --cov first" in gate.stderr
