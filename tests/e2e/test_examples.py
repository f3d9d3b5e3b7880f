"""Every example runs, as its reader would run it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from running import running_node

EXAMPLES = Path(__file__).parents[2] / "examples"
PLUGIN = EXAMPLES / "plugin"


def run(script: Path, tmp_path: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1", **environment},
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plug-in, installed for real into a folder of its own."""
    source = tmp_path_factory.mktemp("source") / "plugin"  # the build may not write into the checkout
    shutil.copytree(PLUGIN, source)
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(
        [*command, "--no-build-isolation", "--no-index", "--target", str(site), str(source)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return site


def test_embedding(tmp_path: Path) -> None:
    said = run(EXAMPLES / "embed.py", tmp_path)
    assert "echo: What is the capital of France? (6 tokens, stop)" in said
    assert "' piece'" in said
    assert "HELLO" in said
    assert "not_found:" in said


def test_blocking(tmp_path: Path) -> None:
    said = run(EXAMPLES / "blocking.py", tmp_path)
    assert "Hello from a plain program" in said
    assert "['question 1', 'question 2', 'question 3']" in said


def test_the_plugin_in_an_embedded_node(plugin: Path, tmp_path: Path) -> None:
    assert run(PLUGIN / "try_it.py", tmp_path, PYTHONPATH=str(plugin)) == "3\nthree two one\n"


def test_the_plugin_in_a_node_of_its_own(plugin: Path, tmp_path: Path) -> None:
    config = (PLUGIN / "roles.toml").read_text()
    with running_node(tmp_path, config=config, environment={"PYTHONPATH": str(plugin)}) as node:
        assert httpx.get(f"{node.url}/wordcount", params={"text": "three little words"}).text == "3\n"
        assert node.covey("chat", "reverse", "one two three").stdout == "three two one\n"
        assert "wordcount" in node.json("status")["roles"]
        assert node.stop() == 0


def test_a_plugin_of_which_the_configuration_says_nothing_is_not_imported(plugin: Path, tmp_path: Path) -> None:
    with running_node(tmp_path, environment={"PYTHONPATH": str(plugin), "PYTHONPROFILEIMPORTTIME": "1"}) as node:
        assert "covey_wordcount" not in node.said()
        assert node.stop() == 0


def test_each_example_is_here() -> None:
    found = {path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py")}
    assert found - {path for path in found if path.startswith("plugin/src/")} == {
        "embed.py",
        "blocking.py",
        "plugin/try_it.py",
    }
