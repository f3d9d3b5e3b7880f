"""Real `covey` processes for what is measured between them: each in a folder, and a network namespace, of its own."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import trio

from covey.client import Client
from covey.control import connect

MODEL = "newcomer"
DEAD_SECONDS = 2.0
WAIT_SECONDS_MAX = 60.0
POLL_SECONDS = 0.002
CLUSTER_PORT = 26840
CONFIG = """
[node]
roles = [{roles}]
[http]
listen = "127.0.0.1:0"
[network]
listen = "{listen}"
discovery = false
ping_seconds = {ping_seconds}
dead_seconds = {dead_seconds}
[inference]
backends = ["echo"]
default_model = "{model}"
[backends.echo]
models = ["{model}"]
"""


class Machine:
    """A node in a process of its own, in a network namespace where one is given."""

    def __init__(self, place: Path, name: str, *, roles: str = "", namespace: str = "", address: str = "") -> None:
        self.name = name
        self.address = address or "127.0.0.1"
        self._namespace = namespace
        self._folder = place / name
        self.data = self._folder / "data"
        self._ready = self._folder / "ready.json"
        self._log = self._folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._folder.mkdir()
        self._config = self._folder / "roles.toml"
        port = CLUSTER_PORT if namespace else 0
        self._config.write_text(
            CONFIG.format(
                roles=roles, listen=f"{self.address}:{port}", ping_seconds=DEAD_SECONDS / 5, dead_seconds=DEAD_SECONDS,
                model=MODEL,
            ),
            encoding="utf-8",
        )  # fmt: skip
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("COVEY_", "XDG_"))}
        self._environment = {**kept, "HOME": str(self._folder), "XDG_RUNTIME_DIR": str(self._folder)}

    def inside(self, *command: str) -> list[str]:
        """A command in its namespace."""
        return ["ip", "netns", "exec", self._namespace, *command] if self._namespace else [*command]

    async def launch(self, verb: str, *arguments: str) -> None:
        """`covey up` or `covey join`, until the node runs."""
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "covey", verb, *arguments, "--data", str(self.data), "--config",
                   str(self._config), "--name", self.name, "--ready-file", str(self._ready)]  # fmt: skip
        self._start(command)
        await until(self._is_ready)

    def _start(self, command: list[str]) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.inside(*command), env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def said(self) -> str:
        """What its process has printed and logged."""
        return self._log.read_text(encoding="utf-8")

    @property
    def url(self) -> str:
        """Of its listener, once it is ready."""
        return msgspec.json.decode(self._ready.read_bytes(), type=dict[str, str | int])["url"]  # type: ignore[return-value]

    @property
    def resident_bytes(self) -> int:
        """Of its process."""
        assert self._process is not None
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def _is_ready(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self.name} does not run:\n{self._log.read_text(encoding='utf-8')}")
        return self._ready.exists()

    async def invite(self, role: str = "inference") -> str:
        """What `covey invite` prints for one machine."""
        command = [sys.executable, "-m", "covey", "invite", "--role", role, "--json", "--data", str(self.data)]
        done = await trio.run_process(self.inside(*command), env=self._environment, capture_stdout=True)
        return msgspec.json.decode(done.stdout, type=dict[str, str | int])["token"]  # type: ignore[return-value]

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[Client, None]:
        """With its operator's rights."""
        async with connect(self.data) as client:
            yield client

    def send(self, number: int) -> None:
        """A signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """As the power going out, but for the kernel, which closes its connections."""
        self.send(signal.SIGKILL)

    def close(self) -> None:
        """End its process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


async def until(condition: Callable[[], Awaitable[bool]]) -> float:
    """Ask again and again; the seconds until it was so."""
    began = trio.current_time()
    with trio.fail_after(WAIT_SECONDS_MAX):
        while not await condition():  # noqa: ASYNC110 - it is another process that changes
            await trio.sleep(POLL_SECONDS)
    return trio.current_time() - began


@contextmanager
def place() -> Generator[Path, None, None]:
    """A folder with a short path: sockets want that."""
    folder = Path(tempfile.mkdtemp(prefix="cvb"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
