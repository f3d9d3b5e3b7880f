"""Machines on one network, each a namespace of this kernel's with a real `covey` process: for tests of whole clusters.

    with open_network(tmp_path) as network:
        alpha = network.host("alpha").start("--role", "auth").ready()
        beta = network.host("beta").join(alpha.invite("inference")).ready()
        network.cut(alpha, beta)

Hosts hang on a bridge in a namespace of its own, so nothing of this machine's own network is touched, and tests in
parallel do not meet: all of them use the same addresses. Needs root and iproute2; cuts and NAT need nftables.
"""

import ctypes
import http.client
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

READY_SECONDS = 45.0
STOP_SECONDS = 25.0
COMMAND_SECONDS = 60.0
API_PORT = 26839
CLUSTER_PORT = 26840
PASSWORD = "correct horse battery 7"
ROUNDS = int(os.environ.get("SOAK_ROUNDS", "2"))
"""How often a fault is repeated: `make soak` asks for many."""
DEAD_SECONDS = 2.0
NETWORK = f"""
[network]
ping_seconds = 0.4
dead_seconds = {DEAD_SECONDS}
dial_seconds_max = 1.0
redial_seconds_max = 0.5
"""
ECHO = """
[inference]
backends = ["echo"]
[backends.echo]
token_seconds = 0.02
"""
CHEAP_PASSWORDS = """
[auth]
argon2_memory_kibibytes = 64
argon2_passes = 1
"""
SCRIPT = Path(sys.executable).with_name("covey")
COVEY = [str(SCRIPT)] if SCRIPT.exists() else [sys.executable, "-m", "covey"]
_CLONE_NEWNET = 0x4000_0000


def why_not() -> str:
    """Why no namespaces can be made here; "" where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None or shutil.which("nft") is None:
        return "network namespaces need iproute2 and nftables (apt-get install iproute2 nftables)"
    name = f"cv{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"this kernel or container allows no network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return ""


def eventually(condition: Callable[[], Any], seconds: float, explain: Callable[[], str] = lambda: "") -> Any:
    """Poll until something is true, and return it; fails after a deadline."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s\n{explain()}"
        time.sleep(0.02)
    return found


class Answer:
    """What a client saw of one chat."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.text = ""
        self.finish: str | None = None
        self.done = False
        self.error: dict[str, Any] | None = None

    @property
    def good(self) -> bool:
        """It came whole, and says so."""
        return self.status == 200 and self.finish is not None and self.done and self.error is None

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.text[:40]!r}, {self.finish}, done={self.done}, error={self.error})"


class Stream:
    """A streamed chat under way; `text` grows as `more` is called."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response
        self.answer = Answer(response.status)
        if response.status != 200:
            self.answer.error = json.loads(response.read())["error"]

    def more(self) -> bool:
        """Read one event; whether there was one."""
        while line := self._response.readline():
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                self.answer.done = True
                continue
            self._take(json.loads(line[6:]))
            return True
        return False

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            self.answer.error = event["error"]
            return
        for choice in event["choices"]:
            self.answer.text += choice["delta"].get("content") or ""
            self.answer.finish = choice["finish_reason"] or self.answer.finish

    def until_text(self) -> "Stream":
        """Read until some of the answer is there."""
        while not self.answer.text and self.more():
            pass
        assert self.answer.text, self.answer
        return self

    def rest(self) -> Answer:
        """Read to the end, and close."""
        try:
            if self.answer.error is None or self.answer.status == 200:
                while self.more():
                    pass
        finally:
            self._connection.close()
        return self.answer


class Host:
    """A machine, made by `Network.host`. Its processes and files go with the network."""

    def __init__(self, network: "Network", name: str, address: str, config: str) -> None:
        self.network = network
        self.name = name
        self.address = address
        self.namespace = f"{network.tag}-{name}"
        self.folder = network.folder / name
        self.data = self.folder / "data"
        self.folder.mkdir()
        (self.folder / "home").mkdir()
        self.config = self.folder / "roles.toml"
        self.config.write_text(config)
        self.key = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._runs = 0
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("COVEY_", "XDG_"))},
            "HOME": str(self.folder / "home"),
            "XDG_RUNTIME_DIR": str(network.runtime / name),
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
        }
        (network.runtime / name).mkdir()

    # Its node

    def start(self, *arguments: str) -> "Host":
        """`covey up` with further arguments, in the background."""
        return self._launch("up", *arguments)

    def join(self, token: str, *arguments: str) -> "Host":
        """`covey join` with an invite from a file, in the background."""
        file = self.folder / "invite"
        file.write_text(token + "\n")
        return self._launch("join", "--file", str(file), *arguments)

    def _launch(self, verb: str, *arguments: str) -> "Host":
        assert self.process is None or self.process.poll() is not None, f"{self.name} runs already"
        self._runs += 1
        self.ready_file.unlink(missing_ok=True)
        command = [*COVEY, verb, "--data", str(self.data), "--config", str(self.config), "--name", self.name,
                   "--ready-file", str(self.ready_file), *arguments]  # fmt: skip
        with (self.folder / f"log-{self._runs:03}").open("wb") as log:
            self.process = subprocess.Popen(
                self._inside(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment
            )
        return self

    @property
    def ready_file(self) -> Path:
        return self.folder / "ready.json"

    def ready(self, seconds: float = READY_SECONDS) -> "Host":
        """Wait until the node runs."""
        assert self.process is not None
        process = self.process
        eventually(lambda: self.ready_file.exists() or process.poll() is not None, seconds, self.said)
        assert process.poll() is None, f"{self.name} ended with {process.returncode}\n{self.said()}"
        return self

    def ended(self, seconds: float = READY_SECONDS) -> int:
        """Wait for its end; the exit code."""
        assert self.process is not None
        return self.process.wait(seconds)

    def said(self) -> str:
        """What all its runs have printed and logged."""
        return "".join(log.read_text(errors="replace") for log in sorted(self.folder.glob("log-*")))

    def wait_said(self, text: str, seconds: float) -> None:
        """Until it has said something."""
        eventually(lambda: text in self.said(), seconds, lambda: f"{self.name} never said {text!r}:\n{self.said()}")

    def send(self, number: int) -> None:
        """A signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.send(signal.SIGTERM)
        return self.ended(STOP_SECONDS)

    def kill(self) -> None:
        """As the power going out, but for the kernel, which closes its connections."""
        self.send(signal.SIGKILL)
        self.ended()

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    # Its command line

    def covey(
        self, *arguments: str, typed: str = "", code: int | None = 0, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on it to its end. `code`: what it has to exit with, `None`: whatever."""
        done = subprocess.run(
            self._inside([*COVEY, *arguments]),
            input=typed,
            capture_output=True,
            text=True,
            env={**self.environment, "COVEY_DATA": str(self.data), **(environment or {})},
            timeout=COMMAND_SECONDS,
            check=False,
        )
        said = f"{self.name}: covey {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert code is None or done.returncode == code, f"{said}\n{self.said()}"
        return done

    def json(self, *arguments: str, typed: str = "", environment: Mapping[str, str] | None = None) -> Any:
        """What a command prints with `--json`."""
        return json.loads(self.covey(*arguments, "--json", typed=typed, environment=environment).stdout)

    def invite(self, *roles: str) -> str:
        """A token for one machine."""
        wanted = [word for role in roles for word in ("--role", role)]
        return str(self.json("invite", *wanted)["token"])

    def create_key(self) -> str:
        """An administrator and their key, which administers too."""
        self.covey("users", "add", "ann", "--admin", "--password-file", "-", typed=PASSWORD)
        return str(self.json("keys", "create", "--user", "ann", "--admin")["key"])

    def states(self) -> dict[str, str]:
        """What each machine is doing, by name, as this one knows."""
        return {one["name"]: one["state"] for one in self.json("nodes", "list")}

    # Its clients

    def connect(self, host: str, port: int, seconds: float) -> socket.socket:
        """A TCP connection from within its namespace."""
        made: list[socket.socket | OSError] = []

        def run() -> None:
            # A namespace is a thread's, and a socket keeps that of the thread that made it.
            try:
                with Path(f"/var/run/netns/{self.namespace}").open("rb") as handle:
                    if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns failed")
                made.append(socket.create_connection((host, port), seconds))
            except OSError as error:
                made.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if isinstance(made[0], OSError):
            raise made[0]
        return made[0]

    def request(
        self, method: str, path: str, body: Any = None, *, seconds: float = 30.0
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Ask the gateway on this host, with `key`; the caller closes the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", API_PORT, timeout=seconds)
        connection.sock = self.connect("127.0.0.1", API_PORT, seconds)
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            return connection, connection.getresponse()
        except BaseException:
            connection.close()
            raise

    def get(self, path: str, *, seconds: float = 30.0) -> tuple[int, str]:
        """A page's status and text."""
        connection, response = self.request("GET", path, seconds=seconds)
        try:
            return response.status, response.read().decode()
        finally:
            connection.close()

    def stream(self, text: str = "one two three", *, seconds: float = 30.0) -> Stream:
        """Begin a streamed chat through the gateway on this host. `seconds`: the longest silence."""
        body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": text}]}
        return Stream(*self.request("POST", "/v1/chat/completions", body, seconds=seconds))

    def chat(self, text: str = "one two three", *, seconds: float = 30.0) -> Answer:
        """The same, to its end."""
        return self.stream(text, seconds=seconds).rest()

    def script(self, program: Path) -> Path:
        """A program that runs the given one within its namespace, for who starts programs by their path."""
        script = self.folder / program.name
        script.write_text(f'#!/bin/sh\nexec {shlex.join(self._inside([str(program)]))} "$@"\n')
        script.chmod(0o755)
        return script

    # Its network

    def _inside(self, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *command]

    def ip(self, *arguments: str) -> None:
        """`ip` in its namespace."""
        run("ip", "-n", self.namespace, *arguments)

    def nft(self, script: str) -> None:
        """`nft` in its namespace."""
        run(*self._inside(["nft", script]))

    def move(self, address: str) -> None:
        """Another address, and the old one is gone."""
        self.ip("address", "del", f"{self.address}/24", "dev", "e0")  # first: with it go all others of its subnet
        self.ip("address", "add", f"{address}/24", "dev", "e0")
        self.address = address


class Network:
    """Made by `open_network`."""

    def __init__(self, folder: Path, runtime: Path) -> None:
        self.folder = folder
        self.runtime = runtime
        self.tag = f"cv{secrets.token_hex(3)}"
        self.hosts: list[Host] = []
        self._namespaces: list[str] = []
        self._links = 0
        self._switch = self._add_namespace("switch")
        run("ip", "-n", self._switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self._switch, "link", "set", "br0", "up")

    def host(self, name: str, config: str = "", *, address: str = "") -> Host:
        """A new machine on the bridge. `config`: beside short times, echo and cheap passwords."""
        made = self._host(name, address or f"10.77.0.{len(self.hosts) + 1}", config)
        self._plug(made.namespace, "e0", made.address)
        return made

    def host_behind_nat(self, name: str, config: str = "") -> Host:
        """A new machine that can dial out through a masquerading router, and that nobody can dial."""
        number = len(self.hosts) + 1
        router = self._add_namespace(f"{name}-router")
        self._plug(router, "e0", f"10.77.0.{number}")
        made = self._host(name, "192.168.5.2", config)
        run("ip", "link", "add", "e0", "netns", made.namespace, "type", "veth", "peer", "name", "i0", "netns", router)
        run("ip", "-n", router, "address", "add", "192.168.5.1/24", "dev", "i0")
        run("ip", "-n", router, "link", "set", "i0", "up")
        made.ip("address", "add", "192.168.5.2/24", "dev", "e0")
        made.ip("link", "set", "e0", "up")
        made.ip("route", "add", "default", "via", "192.168.5.1")
        run("ip", "netns", "exec", router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        run("ip", "netns", "exec", router, "nft", "add table ip nat; add chain ip nat out "
            "{ type nat hook postrouting priority 100; }; add rule ip nat out oifname e0 masquerade")  # fmt: skip
        return made

    def cut(self, one: Host, other: Host, *, one_way: bool = False) -> None:
        """Lose every packet between two machines, silently; `one_way`: only what `one` sends."""
        self._drop(at=other, source=one)
        if not one_way:
            self._drop(at=one, source=other)

    def heal(self, *hosts: Host) -> None:
        """Undo the cuts of machines."""
        for host in hosts:
            with suppress(subprocess.CalledProcessError):
                host.nft("delete table ip cut")

    def _drop(self, *, at: Host, source: Host) -> None:
        at.nft("add table ip cut; add chain ip cut in { type filter hook input priority 0; }; "
               f"add rule ip cut in ip saddr {source.address} drop")  # fmt: skip

    def _host(self, name: str, address: str, config: str) -> Host:
        self._add_namespace(name)
        made = Host(self, name, address, config or NETWORK + ECHO + CHEAP_PASSWORDS)
        self.hosts.append(made)
        return made

    def _add_namespace(self, name: str) -> str:
        namespace = f"{self.tag}-{name}"
        run("ip", "netns", "add", namespace)
        self._namespaces.append(namespace)
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        return namespace

    def _plug(self, namespace: str, device: str, address: str) -> None:
        self._links += 1
        port = f"p{self._links}"
        run(
            "ip", "link", "add", device, "netns", namespace, "type", "veth", "peer", "name", port, "netns", self._switch
        )
        run("ip", "-n", self._switch, "link", "set", port, "master", "br0", "up")
        run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", device)
        run("ip", "-n", namespace, "link", "set", device, "up")

    def close(self) -> None:
        """End every process, and take the namespaces away."""
        for host in self.hosts:
            if host.process is not None and host.process.poll() is None:
                host.process.kill()
                host.process.wait(STOP_SECONDS)
        for namespace in reversed(self._namespaces):
            subprocess.run(["ip", "netns", "del", namespace], check=False)


def run(*command: str) -> None:
    """A command that has to work."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)


@contextmanager
def open_network(folder: Path) -> Iterator[Network]:
    """An empty network, or a skip where the kernel allows none; what its hosts said is shown when a test fails."""
    if reason := why_not():
        pytest.skip(reason)
    runtime = Path(tempfile.mkdtemp(prefix="cvn"))  # a socket's path may have some 100 bytes
    network = Network(folder, runtime)
    try:
        yield network
    except BaseException:
        for host in network.hosts:
            print(f"--- {host.name}\n{host.said()}")
        raise
    finally:
        network.close()
        shutil.rmtree(runtime, ignore_errors=True)


class Trio:
    """The usual three: `auth`, `gateway` (which is web, too) and `inference`, one process each."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.auth = network.host("auth").start("--role", "auth").ready()
        self.gateway, self.inference = network.host("gateway"), network.host("inference")
        self.gateway.join(self.auth.invite("gateway", "web"))
        self.inference.join(self.auth.invite("inference"))
        self.gateway.key = self.auth.create_key()
        self.gateway.ready()
        self.inference.ready()
        self.wait_service()

    def add_inference(self, name: str) -> Host:
        """One more machine with the model."""
        host = self.network.host(name).join(self.auth.invite("inference")).ready()
        eventually(lambda: self.serving() >= 2, 10, self.explain)
        return host

    def serving(self) -> int:
        """On how many nodes the gateway finds the model."""
        with self.gateway.connect("127.0.0.1", API_PORT, 5):
            pass
        status, page = self.gateway.get("/metrics")
        assert status == 200, page
        return sum(line.startswith("covey_link_up{") and "inference" in line and line.endswith(" 1.0")
                   for line in page.splitlines())  # fmt: skip

    def wait_service(self, seconds: float = 10.0) -> float:
        """Until a chat is answered; how long that took."""
        began = time.monotonic()
        eventually(lambda: self.gateway.chat(seconds=seconds).good, seconds, self.explain)
        return time.monotonic() - began

    def explain(self) -> str:
        """What everybody said."""
        return "\n".join(f"--- {host.name}\n{host.said()}" for host in self.network.hosts)
