"""The real `covey`, as processes of its own: for every test that wants a whole node, or the command line.

    with running_node(tmp_path) as node:
        key = node.create_key()
        httpx.get(f"{node.url}/v1/models", headers={"authorization": f"Bearer {key}"})

Ports are free ones, folders the test's own, the configuration of the person who runs the tests is not looked at.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

READY_SECONDS = 30.0
STOP_SECONDS = 20.0
COMMAND_SECONDS = 60.0
ECHO = '[inference]\nbackends = ["echo"]\n'
PASSWORD = "correct horse battery 7"
SCRIPT = Path(sys.executable).with_name("covey")
COVEY = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-m", "covey"]


class Place:
    """Where a test's processes live: a home, a data folder, a runtime folder with a short path for sockets.

    `command` is how `covey` is called there.
    """

    def __init__(
        self, folder: Path, runtime: Path, environment: Mapping[str, str], command: Sequence[str] = COVEY
    ) -> None:
        self.command = list(command)
        self.folder = folder
        self.data = folder / "data"
        self.config = folder / "roles.toml"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("COVEY_", "XDG_"))},
            "HOME": str(folder / "home"),
            "XDG_RUNTIME_DIR": str(runtime),
            "COVEY_DATA": str(self.data),
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
            "COLUMNS": "100",
            **environment,
        }

    def covey(
        self, *arguments: str, typed: str = "", code: int | None = 0, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; `typed` is its standard input, `code` what it must exit with (`None`: whatever)."""
        done = subprocess.run(
            [*self.command, *arguments],
            input=typed,
            capture_output=True,
            text=True,
            env={**self.environment, **(environment or {})},
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert code is None or done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str, typed: str = "") -> Any:
        """What a command prints with `--json`."""
        return json.loads(self.covey(*arguments, "--json", typed=typed).stdout)

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> "NodeProcess":
        """Start `covey up`, and do not wait."""
        return NodeProcess(self, arguments, {**self.environment, **(environment or {})})


class NodeProcess:
    """A `covey up`. `url`, `peer_id` are there after `wait_ready`. Always `end()` it: `running_node` does."""

    def __init__(self, place: Place, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self.place = place
        self.url = ""
        self.peer_id = ""
        runs = len(list(place.folder.glob("up-*.out")))
        self.output = place.folder / f"up-{runs}.out"
        self.errors = place.folder / f"up-{runs}.err"
        self.ready_file = place.folder / f"ready-{runs}.json"
        listen = () if "--listen" in arguments else ("--listen", "127.0.0.1:0")
        config = ("--config", str(place.config)) if place.config.exists() and "--config" not in arguments else ()
        command = [*place.command, "up", *listen, *config, "--ready-file", str(self.ready_file), *arguments]
        with self.output.open("wb") as out, self.errors.open("wb") as err:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=dict(environment)
            )

    @property
    def data(self) -> Path:
        return self.place.data

    def wait_ready(self, seconds: float = READY_SECONDS) -> "NodeProcess":
        """Until the ready file is there; fails with what the node printed if it ends before."""
        wait_for(lambda: self.ready_file.exists() or self.process.poll() is not None, seconds, self.said)
        assert self.process.poll() is None, f"the node ended: {self.process.returncode}\n{self.said()}"
        ready = json.loads(self.ready_file.read_bytes())
        self.url, self.peer_id = ready["url"], ready["peer_id"]
        assert ready["pid"] == self.process.pid
        return self

    def said(self) -> str:
        """Everything it has printed so far."""
        return self.output.read_text() + self.errors.read_text()

    def wait_said(self, text: str, seconds: float = READY_SECONDS) -> None:
        """Until it has printed something."""
        wait_for(lambda: text in self.said() or self.process.poll() is not None, seconds, self.said)
        assert text in self.said(), self.said()

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Its exit code."""
        return self.process.wait(seconds)

    def stop(self, number: int = signal.SIGTERM, seconds: float = STOP_SECONDS) -> int:
        """Ask it to stop; its exit code."""
        self.process.send_signal(number)
        return self.wait(seconds)

    def kill(self) -> None:
        """As the power going out."""
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def end(self) -> None:
        """Whatever state it is in."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_SECONDS)

    # The command line against it

    def covey(self, *arguments: str, typed: str = "", code: int | None = 0) -> subprocess.CompletedProcess[str]:
        return self.place.covey(*arguments, typed=typed, code=code)

    def json(self, *arguments: str, typed: str = "") -> Any:
        return self.place.json(*arguments, typed=typed)

    def add_user(self, name: str = "ann", *, admin: bool = True, password: str = PASSWORD) -> dict[str, Any]:
        """An account."""
        made: dict[str, Any] = self.json(
            "users", "add", name, "--password-file", "-", *(["--admin"] if admin else []), typed=password
        )
        return made

    def create_key(self, user: str = "ann", *arguments: str) -> str:
        """A key's text; makes the account if there is none of that name."""
        if user not in {one["name"] for one in self.json("users", "list")}:
            self.add_user(user)
        return str(self.json("keys", "create", "--user", user, *arguments)["key"])


@contextmanager
def place_for(
    folder: Path,
    *,
    config: str | None = ECHO,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] = COVEY,
) -> Iterator[Place]:
    """A place in a test's folder; `config` is the text of its `roles.toml`, `None` for none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "home").mkdir(exist_ok=True)
    runtime = Path(
        tempfile.mkdtemp(prefix="cvy")
    )  # a socket's path may have some 100 bytes: pytest's folders are longer
    place = Place(folder, runtime, environment or {}, command)
    if config is not None:
        place.config.write_text(config)
    try:
        yield place
    finally:
        shutil.rmtree(runtime, ignore_errors=True)


@contextmanager
def running_node(
    folder: Path,
    *arguments: str,
    config: str | None = ECHO,
    environment: Mapping[str, str] | None = None,
    command: Sequence[str] = COVEY,
) -> Iterator[NodeProcess]:
    """A whole node that is ready, by default with the echo back end; killed at the end if the test has not stopped it.

    Args:
        folder: `tmp_path`; the data folder is `data` in it.
        arguments: further ones of `covey up`.
        config: the text of its `roles.toml`.
        environment: added to the process's.
        command: another `covey` than that of this environment.
    """
    with place_for(folder, config=config, environment=environment, command=command) as place:
        node = place.start(*arguments)
        try:
            yield node.wait_ready()
        finally:
            node.end()


def wait_for(condition: Any, seconds: float, explain: Any = lambda: "") -> None:
    """Poll until a condition holds; fails after a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s\n{explain()}"
        time.sleep(0.01)


def install_plugin(folder: Path, *, source: str, roles: str = "", backends: str = "") -> dict[str, str]:
    """A package with entry points, as `pip install` would leave it; returns the environment that finds it.

    Args:
        folder: where to put it.
        source: the text of the module `plugged`.
        roles: the name of a role, whose value is `plugged:ROLE`.
        backends: the name of a back end, whose value is `plugged:BACKEND`.
    """
    site = folder / "site"
    info = site / "plugged-1.dist-info"
    info.mkdir(parents=True)
    (site / "plugged.py").write_text(source)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1\n")
    groups = [f"[covey.roles]\n{roles} = plugged:ROLE\n"] if roles else []
    groups += [f"[covey.backends]\n{backends} = plugged:BACKEND\n"] if backends else []
    (info / "entry_points.txt").write_text("\n".join(groups))
    return {"PYTHONPATH": str(site)}
