"""Who is compared: the upstream by itself, Covey in front of it, and LiteLLM's proxy in front of it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from bench.peers.load import Load, Question
from bench.peers.trees import Tree

READY_SECONDS_MAX = 120.0
POLL_SECONDS = 0.01
LITELLM_KEY = "sk-bench-master"
"""Also the upstream's, which does not look at it."""
COVEY_TABLES = """
[node]
name = "bench"
roles = ["auth", "gateway", "inference"]
[http]
listen = "127.0.0.1:{port}"
[network]
discovery = false
[telemetry]
log_level = "error"
[inference]
backends = ["openai"]
default_model = "fast"
[[backends.openai.upstreams]]
name = "upstream"
base_url = "{upstream}/v1"
slots = 256
capabilities = ["chat"]
"""
LITELLM_MODEL = """
  - model_name: {name}
    litellm_params:
      model: openai/{name}
      api_base: {upstream}/v1
      api_key: {key}"""
LITELLM_CONFIG = """
model_list:{models}
general_settings:
  master_key: {key}
litellm_settings:
  telemetry: false
  set_verbose: false
"""


def free_port() -> int:
    """One that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Subject:
    """A server that can be started and asked. The caller stops it.

    Args:
        name: as in the table.
        key: of its clients.
    """

    def __init__(self, name: str, folder: Path, key: str = "none") -> None:
        self.name = name
        self.key = key
        self.url = f"http://127.0.0.1:{free_port()}"
        self.folder = folder / name
        self.folder.mkdir()
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG", "TZ") if name in os.environ}
        # Nothing of whoever runs this reaches another's program: neither keys in the environment nor the home folder.
        self.environment = {**kept, "HOME": str(self.folder), "XDG_RUNTIME_DIR": str(self.folder)}
        self.tree: Tree | None = None

    @property
    def running(self) -> Tree:
        """Its processes, once it is started."""
        assert self.tree is not None
        return self.tree

    def command(self) -> Sequence[str]:
        """What starts it."""
        raise NotImplementedError

    def start(self) -> float:
        """Seconds until it has answered for the first time.

        Raises:
            RuntimeError: it ends instead, or does not get that far.
        """
        began = time.perf_counter()
        self.tree = Tree(self.command(), self.environment, self.folder / "log")
        self._wait(began, self._answers)
        return time.perf_counter() - began

    def stop(self) -> None:
        """End its processes, if it has any."""
        if self.tree is not None:
            self.tree.stop()
            self.tree = None

    def _wait(self, began: float, condition: Callable[[], bool]) -> None:
        while not condition():
            if self.running.ended or time.perf_counter() - began > READY_SECONDS_MAX:
                raise RuntimeError(f"{self.name} does not answer:\n{self.running.said[-3000:]}")
            time.sleep(POLL_SECONDS)

    def _answers(self) -> bool:
        try:
            return bool(Load(self.url, self.key, Question("fast", 1)).drive(connections=1, seconds=0).latencies)
        except OSError:
            return False  # not yet; who never does is told by `_wait`


class Upstream(Subject):
    """The fake model server."""

    def __init__(self, name: str, folder: Path, token_seconds: float) -> None:
        super().__init__(name, folder)
        self._token_seconds = token_seconds

    def command(self) -> Sequence[str]:
        port = self.url.rpartition(":")[2]
        return [sys.executable, "-m", "bench.peers.upstream", "--port", port,
                "--token-seconds", str(self._token_seconds)]  # fmt: skip


class Covey(Subject):
    """A node with auth, gateway and inference; a key with limits; usage is written down, as always."""

    def __init__(self, name: str, folder: Path, upstream: str) -> None:
        super().__init__(name, folder)
        self._config = self.folder / "roles.toml"
        self._config.write_text(
            COVEY_TABLES.format(port=self.url.rpartition(":")[2], upstream=upstream), encoding="utf-8"
        )

    def command(self) -> Sequence[str]:
        return [sys.executable, "-m", "covey", "up", "--config", str(self._config), *self._data]

    @property
    def _data(self) -> list[str]:
        return ["--data", str(self.folder / "data")]

    def prepare(self) -> None:
        """Make the account and the key. The node runs for it, and stops."""
        self.tree = Tree(self.command(), self.environment, self.folder / "log")
        self._wait(time.perf_counter(), self._is_ready)
        self._ask("users", "add", "ada", "--password-file", "-", typed="correct horse battery staple\n")
        limits = ("--requests-per-minute", "1000000", "--tokens-per-minute", "1000000000", "--concurrency", "1000")
        self.key = self._ask("keys", "create", "--user", "ada", *limits).strip()
        self.stop()

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False).is_success
        except httpx.TransportError:
            return False

    def _ask(self, *arguments: str, typed: str = "") -> str:
        command = [sys.executable, "-m", "covey", *arguments, *self._data]
        done = subprocess.run(
            command, env=self.environment, input=typed, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout


class LiteLLM(Subject):
    """Its proxy as its documentation starts it, with one worker, a master key and no database."""

    def __init__(self, name: str, folder: Path, upstream: str, environment: Path) -> None:
        super().__init__(name, folder, LITELLM_KEY)
        self._program = environment / "bin" / "litellm"
        self._config = self.folder / "config.yaml"
        models = "".join(
            LITELLM_MODEL.format(name=name, upstream=upstream, key=LITELLM_KEY) for name in ("fast", "paced")
        )
        self._config.write_text(LITELLM_CONFIG.format(models=models, key=LITELLM_KEY), encoding="utf-8")
        # It would fetch its table of prices from GitHub at every start, and log each request.
        self.environment |= {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "LITELLM_MODE": "PRODUCTION",
        }
        self.environment.pop("PYTHONPATH", None)

    def command(self) -> Sequence[str]:
        port = self.url.rpartition(":")[2]
        return [str(self._program), "--config", str(self._config), "--host", "127.0.0.1", "--port", port,
                "--num_workers", "1", "--telemetry", "False"]  # fmt: skip
