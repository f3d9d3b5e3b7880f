"""What `covey doctor` looks at, one function each; none changes anything."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import trio

from covey import config as configuration
from covey.backends.catalogue import Entry, entry_for
from covey.backends.model_folder import check_model
from covey.cli.asking import ask_node
from covey.cli.output import size, span
from covey.cli.verbs import Settings
from covey.config import Config
from covey.contracts.cluster import NODE_STATUS
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.http.server import parse_listen

PYTHON_MIN, PYTHON_MAX = (3, 11), (3, 13)
MEMORY_BYTES_GOOD = 1_000_000_000
"""A small model, its engine and the node take some 400 MB together."""
DISK_BYTES_GOOD = 1_000_000_000
DISK_BYTES_MIN = 200_000_000
PROBE_SECONDS = 20.0
OLLAMA_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `advice` says what to do, where there is something to do."""

    name: str
    level: Literal["ok", "warn", "fail"]
    message: str
    advice: str = ""


def examine(settings: Settings, config_path: Path | None) -> list[Finding]:
    """Look at everything."""
    folder = settings.folder
    findings = [
        look_at_python(sys.version_info[:3]),
        look_at_libraries(),
        look_at_cpu(platform.machine(), _read(Path("/proc/cpuinfo"))),
        look_at_memory(_read(Path("/proc/meminfo"))),
        look_at_disk(folder),
        look_at_folder(folder),
    ]
    running = look_at_node(settings)
    try:
        config = configuration.load(config_path)
    except CallError as error:
        return [*findings, running, Finding("configuration", "fail", error.message, "covey config check FILE")]
    findings.append(Finding("configuration", "ok", f"{config.source}: every key is known."))
    if running.level != "ok":
        findings.append(look_at_port(config.http.listen))
    return [*findings, *look_at_backends(config, folder), running]


def look_at_python(version: tuple[int, ...]) -> Finding:
    """Whether this Python is one that Covey is made for."""
    text = ".".join(map(str, version))
    if PYTHON_MIN <= version[:2] <= PYTHON_MAX:
        return Finding("python", "ok", f"Python {text}.")
    return Finding("python", "fail", f"Python {text} is not supported.", "Use Python 3.11, 3.12 or 3.13.")


def look_at_libraries() -> Finding:
    """Whether the compiled ones start at all: in a child, for a processor that lacks an instruction kills it."""
    trouble: list[str] = []
    for name in ("plyvel", "nacl", "argon2", "xllamacpp"):
        try:
            probe = subprocess.run(
                [sys.executable, "-c", f"import {name}"], capture_output=True, timeout=PROBE_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            trouble.append(f"{name} (hangs)")
            continue
        if probe.returncode < 0:
            trouble.append(f"{name} (killed by signal {-probe.returncode})")
        elif probe.returncode:
            trouble.append(name)
    if trouble:
        advice = "Install Covey again; on Python 3.13: apt install libleveldb-dev g++ first."
        return Finding("libraries", "fail", f"These do not start: {', '.join(trouble)}.", advice)
    return Finding("libraries", "ok", "The compiled libraries start.")


def look_at_cpu(machine: str, cpu_information: str) -> Finding:
    """Whether the embedded engine runs at a useful speed."""
    if machine.lower() not in ("x86_64", "amd64"):
        return Finding("processor", "ok", f"{machine}.")
    flags = next((line for line in cpu_information.splitlines() if line.startswith("flags")), "").split()
    if "avx2" in flags or not flags:
        return Finding("processor", "ok", f"{machine}{' with AVX2' if flags else ''}.")
    advice = 'Use Ollama or another server as a back end: [inference] backends = ["ollama"].'
    return Finding("processor", "warn", "No AVX2: the embedded engine is slow here, or does not start.", advice)


def look_at_memory(memory_information: str) -> Finding:
    """Whether there is room for a model."""
    for line in memory_information.splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            if available >= MEMORY_BYTES_GOOD:
                return Finding("memory", "ok", f"{size(available)} available.")
            return Finding("memory", "warn", f"{size(available)} available.", "Close something, or use small models.")
    return Finding("memory", "ok", "This system does not tell.")


def look_at_disk(folder: Path) -> Finding:
    """Whether there is room where the data folder is, or would be."""
    place = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(place).free
    message = f"{size(free)} free at {place}."
    if free >= DISK_BYTES_GOOD:
        return Finding("disk", "ok", message)
    level: Literal["warn", "fail"] = "warn" if free >= DISK_BYTES_MIN else "fail"
    return Finding("disk", level, message, "Free some space, or choose another folder with --data.")


def look_at_folder(folder: Path) -> Finding:
    """Whether the data folder is ours, writable, and private."""
    if not folder.exists():
        return Finding("data folder", "ok", f"{folder} is made at the first start.")
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return Finding("data folder", "fail", f"{folder} cannot be written.", "Choose another folder with --data.")
    open_to_others = [path for path in (folder, folder / "identity.key") if path.exists() and _open_to_others(path)]
    if open_to_others:
        worst = open_to_others[-1]
        mode = "700" if worst == folder else "600"
        level: Literal["warn", "fail"] = "warn" if worst == folder else "fail"
        return Finding("data folder", level, f"Others may read {worst}.", f"chmod {mode} {worst}")
    return Finding("data folder", "ok", f"{folder} is private and writable.")


def look_at_port(listen: str) -> Finding:
    """Whether the address of `[http] listen` is free; asked only where no node of ours holds it."""
    try:
        host, port = parse_listen(listen)
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except CallError as error:
        return Finding("address", "fail", error.message)
    except OSError as error:
        reason = error.strerror or str(error)
        return Finding("address", "fail", f"{listen}: {reason}.", "Stop what uses it, or choose another with --listen.")
    return Finding("address", "ok", f"{listen} is free.")


def look_at_backends(config: Config, folder: Path) -> Iterator[Finding]:
    """Ollama, where it is configured, and the files of the embedded engine's models."""
    ollama = config.backends.get("ollama")
    if ollama is not None:
        yield look_at_ollama(str(getattr(ollama.config, "url", "")))
    embedded = config.backends.get("embedded")
    if embedded is not None:
        default: str = getattr(embedded.config, "default_model", "")
        others: tuple[str, ...] = getattr(embedded.config, "models", ())
        for name in filter(None, (default, *others)):
            yield look_at_model(name, folder / "models")


def look_at_ollama(url: str) -> Finding:
    """Whether it answers."""
    # Neither a proxy nor a key from the environment: it is this machine's.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url.rstrip('/')}/api/version", timeout=OLLAMA_SECONDS) as answer:
            version = json.loads(answer.read(4096)).get("version", "?")
    except (OSError, ValueError, AttributeError):
        return Finding("ollama", "warn", f"Nothing answers at {url}.", "If you use Ollama, start it: ollama serve")
    return Finding("ollama", "ok", f"Ollama {version} answers at {url}.")


def look_at_model(name: str, models: Path) -> Finding:
    """Whether a model is there, and whole."""
    try:
        entry: Entry = entry_for(name)
    except CallError as error:
        return Finding("model", "fail", error.message)
    path = models / entry.file_name
    if not path.exists():
        amount = f" ({size(entry.model_bytes)})" if entry.model_bytes else ""
        return Finding("model", "warn", f"{entry.name} is fetched at the first start{amount}.")
    try:
        trio.run(partial(check_model, path, entry))
    except CallError as error:
        return Finding("model", "fail", error.message)
    return Finding("model", "ok", f"{entry.name} is there, and its sum is right.")


def look_at_node(settings: Settings) -> Finding:
    """Whether one runs on the data folder."""
    try:
        status = ask_node(settings, lambda client: client.bus.call(NODE_STATUS, Nothing()))
    except CallError as error:
        if error.reason == "not_running":
            return Finding("node", "warn", f"No node is running on {settings.folder}.", "covey up")
        return Finding("node", "fail", error.message)
    return Finding("node", "ok", f"{status.name} runs for {span(status.uptime_seconds)}: {', '.join(status.roles)}.")


def _open_to_others(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o077)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # not every system has it
