"""How long a node takes to start and to stop, and what it holds while idle: every role, and no engine yet.

    python -m bench.start [--seconds 2]

Each is the real `covey up` in a process of its own, with the default back ends and no model to load: the engine comes
up by itself once the node is ready, and is measured in `bench.engine`. The baseline imports the same libraries, opens
one listener and writes one file. Both take turns; the best round counts, for what disturbs the machine disturbs both.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.figure import Figure, show

POLL_SECONDS = 0.002
READY_SECONDS_MAX = 60.0
SETTLE_SECONDS = 2.0
"""After which whatever the start still had to do in the background is done."""
CONFIG = """
[node]
name = "bench"
[http]
listen = "127.0.0.1:0"
[network]
listen = "127.0.0.1:0"
discovery = false
[backends.embedded]
default_model = ""
"""
BASELINE = """
import sys, trio, quart_trio, hypercorn.trio, httpx, ollama, plyvel, nacl.bindings, argon2, prometheus_client, msgspec
async def main():
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    open(sys.argv[1], "w").write("ready")
    await trio.sleep_forever()
trio.run(main)
"""


class Started:
    """A process that has said that it is ready."""

    def __init__(self, command: list[str], ready: Path, environment: Mapping[str, str]) -> None:
        ready.unlink(missing_ok=True)
        began = time.perf_counter()
        self.process = subprocess.Popen(
            command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while not ready.exists() or not ready.read_bytes():
            if self.process.poll() is not None or time.perf_counter() - began > READY_SECONDS_MAX:
                self.process.kill()
                raise RuntimeError(self.process.communicate()[1].decode())
            time.sleep(POLL_SECONDS)
        self.seconds = time.perf_counter() - began
        self.cpu_seconds = _cpu_seconds(self.process.pid)

    def resident_megabytes(self) -> float:
        """Once it has settled."""
        time.sleep(SETTLE_SECONDS)
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def stop(self) -> float:
        """Seconds from SIGTERM to its end."""
        began = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(READY_SECONDS_MAX)
        seconds = time.perf_counter() - began
        if self.process.stderr:
            self.process.stderr.close()
        if code not in (0, -signal.SIGTERM):
            raise RuntimeError(f"It ended with {code}.")
        return seconds


class Place:
    """A home, a configuration, and a data folder that is fresh or was used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "roles.toml"
        self.config.write_text(CONFIG, encoding="utf-8")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("COVEY_", "XDG_"))},
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
        }

    def up(self, data: str) -> Started:
        """`covey up` on a data folder."""
        ready = self.folder / "ready.json"
        command = [sys.executable, "-m", "covey", "up", "--config", str(self.config), "--ready-file", str(ready)]
        return Started([*command, "--data", str(self.folder / data)], ready, self.environment)

    def baseline(self) -> Started:
        """The plainest program with the same libraries."""
        ready = self.folder / "ready"
        return Started([sys.executable, "-c", BASELINE, str(ready)], ready, self.environment)

    def covey(self, data: str, *arguments: str) -> str:
        """A command about the node of a data folder."""
        command = [sys.executable, "-m", "covey", *arguments, "--data", str(self.folder / data)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def place() -> Iterator[Place]:
    """A place that is removed."""
    with tempfile.TemporaryDirectory(prefix="cvy") as folder:
        yield Place(Path(folder))


def run(seconds: float) -> Iterable[Figure]:
    """Measure in turns."""
    rounds = max(3, round(seconds * 2))
    ready: dict[str, list[float]] = {"first": [], "again": [], "bare": []}
    cpu: dict[str, list[float]] = {"first": [], "again": [], "bare": []}
    stops: list[float] = []
    with place() as here:
        for number in range(rounds):
            for kind in ready:
                started = here.baseline() if kind == "bare" else here.up(f"data-{number}")
                ready[kind].append(started.seconds)
                cpu[kind].append(started.cpu_seconds)
                stopped = started.stop()
                if kind != "bare":
                    stops.append(stopped)
        bare, again = min(ready["bare"]), min(ready["again"])
        yield Figure("start to ready", again, "s", bare, "same libraries, bare", goal_max=1.5)
        yield Figure(
            "start to ready, the very first", min(ready["first"]), "s", bare, "same libraries, bare", goal_max=1.5
        )
        yield Figure("CPU of a start", min(cpu["again"]), "s", min(cpu["bare"]), "same libraries, bare")
        yield Figure("SIGTERM to exit, idle", min(stops), "s", goal_max=1.0)

        started = here.baseline()
        bare_megabytes = started.resident_megabytes()
        started.stop()
        started = here.up("data-0")
        alone = started.resident_megabytes()
        yield Figure("memory, idle, every role", alone, "MB", bare_megabytes, "same libraries, bare", goal_max=120)
        json.loads(here.covey("data-0", "invite", "--json"))
        yield Figure("memory, idle, in a cluster", started.resident_megabytes(), "MB", alone, "alone", goal_max=180)
        started.stop()
        started = here.up("data-0")
        yield Figure("start to ready, in a cluster", started.seconds, "s", again, "alone")
        yield Figure("SIGTERM to exit, in a cluster", started.stop(), "s", goal_max=1.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="two rounds each")
    show("start", run(parser.parse_args().seconds))
