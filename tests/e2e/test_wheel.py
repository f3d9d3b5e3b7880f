"""What people install: the wheel, in an environment that has never seen the checkout, serving the main job."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from running import PASSWORD, NodeProcess, running_node

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SHUTDOWN_SECONDS = 6.0
CONFIG = f'[node]\nshutdown_seconds = {SHUTDOWN_SECONDS}\n[inference]\nbackends = ["echo"]\n'
CONFIG += "[backends.echo]\ncontext_tokens = 2_000_000\n"
PACKAGE = "covey/"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT))
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel in it, its libraries lent by this one: all but Covey itself."""
    made = new_environment(tmp_path_factory.mktemp("quick"))
    (site,) = made.glob("lib/python3.*/site-packages")
    # A line of a .pth file is a folder for `sys.path`, whose own .pth files (the checkout's) are not looked at.
    (site / "libraries.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    run(*pip(made), "install", "--no-deps", "--no-index", str(wheel))
    return made


@pytest.fixture
def node(environment: Path, tmp_path: Path) -> Iterator[NodeProcess]:
    with running_node(tmp_path, config=CONFIG, command=[str(environment / "bin" / "covey")]) as one:
        yield one


def run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=cwd)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def new_environment(folder: Path) -> Path:
    run(sys.executable, "-m", "venv", "--without-pip", str(folder))
    return folder


def pip(environment: Path) -> list[str]:
    python = str(environment / "bin" / "python")
    return [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "--quiet"]


def test_the_wheel_holds_what_it_needs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
    assets = {
        str(path.relative_to(ROOT))
        for folder in ("templates", "static")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    }
    assert {f"covey/_assets/{name}" for name in assets | {"roles.toml"}} <= names
    assert {"covey/_assets/static/vendor/htmx/LICENSE", "covey/_assets/static/vendor/pico/LICENSE.md"} <= names
    assert {"covey/py.typed", "covey/testing/__init__.py"} <= names
    code = {f"covey/{path.relative_to(ROOT / 'src' / 'covey')}" for path in (ROOT / "src" / "covey").rglob("*.py")}
    assert code <= names
    stray = [name for name in names if not name.startswith("covey/") and ".dist-info/" not in name]
    assert stray == []
    assert not [name for name in names if re.search(r"(^|/)(tests?|bench|examples)/|__pycache__|\.pyc$", name)]
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "Requires-Python: <3.14,>=3.11" in metadata
    assert "License-Expression: Apache-2.0" in metadata


def test_everything_comes_out_of_the_wheel(environment: Path, tmp_path: Path) -> None:
    program = """
import json
from importlib.metadata import distribution, entry_points
import covey
from covey.assets import assets_folder
files = distribution("covey").files
print(json.dumps({
    "package": covey.__file__, "assets": str(assets_folder()), "metadata": str(files[0].locate()),
    "roles": sorted(entry.name for entry in entry_points(group="covey.roles")),
}))
"""
    told = json.loads(run(str(environment / "bin" / "python"), "-c", program, cwd=tmp_path))
    site = str(next(environment.glob("lib/python3.*/site-packages")))
    for place in ("package", "assets", "metadata"):
        assert told[place].startswith(site), told
    assert told["roles"] == ["auth", "gateway", "inference", "web"]


def test_the_main_job(node: NodeProcess) -> None:
    with httpx.Client(base_url=node.url, follow_redirects=True) as browser:
        page = browser.get("/")
        assert page.status_code == 200, page.text
        assert page.headers["content-type"].startswith("text/html")
        sheets = re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"', page.text)
        scripts = re.findall(r'<script[^>]*src="([^"]+)"', page.text)
        assert sheets
        assert scripts
        for path in (*sheets, *scripts):
            found = browser.get(path)
            assert found.status_code == 200, path
            assert found.content
    node.covey("users", "add", "ann", "--admin", "--password-file", "-", typed=PASSWORD)
    made = node.json("keys", "create", "--user", "ann", "--label", "laptop")
    assert made["key"].startswith("cvy_")
    answer = httpx.post(
        f"{node.url}/v1/chat/completions",
        json={"model": "echo", "messages": [{"role": "user", "content": "the wheel turns"}]},
        headers={"authorization": f"Bearer {made['key']}"},
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "the wheel turns"
    status = node.json("status")
    assert status["roles"] == ["auth", "inference", "gateway", "web"]
    assert status["urls"] == [node.url]
    assert stopping_seconds(node) < SHUTDOWN_SECONDS
    assert not node.ready_file.exists()


def test_a_client_that_stopped_reading_does_not_keep_it(node: NodeProcess) -> None:
    key = node.create_key()
    host, _, port = node.url.removeprefix("http://").partition(":")
    body = json.dumps({
        "model": "echo", "stream": True, "messages": [{"role": "user", "content": "word " * 500_000}],
    }).encode()  # fmt: skip
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)  # before connecting: it bounds the window
        client.settimeout(30)
        client.connect((host, int(port)))
        client.sendall(head.encode() + body)
        began = client.recv(2_048)
        assert began.startswith(b"HTTP/1.1 200")
        # A hundred megabytes are to come, and nobody takes them.
        seconds = stopping_seconds(node)
    assert seconds < SHUTDOWN_SECONDS
    assert "did not stop in time" not in node.said()
    assert "Traceback" not in node.said()


def stopping_seconds(node: NodeProcess) -> float:
    """From SIGTERM to an exit code of 0."""
    began = time.monotonic()
    assert node.stop(signal.SIGTERM, SHUTDOWN_SECONDS + 10) == 0, node.said()
    return time.monotonic() - began


def test_the_locked_libraries_are_all_it_needs(wheel: Path, tmp_path: Path) -> None:
    """Really installed, from the package index, by hash; nothing is lent."""
    made = new_environment(tmp_path / "whole")
    run(*pip(made), "install", "--require-hashes", "-r", str(ROOT / "requirements" / "run.lock"))
    run(*pip(made), "install", "--no-deps", "--no-index", str(wheel))
    run(*pip(made), "check")
    with running_node(tmp_path / "node", config=CONFIG, command=[str(made / "bin" / "covey")]) as node:
        assert httpx.get(f"{node.url}/readyz").status_code == 200
        assert node.stop() == 0
