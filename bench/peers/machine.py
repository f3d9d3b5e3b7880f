"""What a run says of the machine and the versions, so that its figures mean something."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from covey.version import __version__

MARK = "<!-- the table -->"


def litellm_version(environment: Path) -> str | None:
    """Of the LiteLLM in a virtual environment; `None` where there is none that starts."""
    python = environment / "bin" / "python"
    if not python.exists() or not (environment / "bin" / "litellm").exists():
        return None
    command = [str(python), "-c", "from importlib.metadata import version; print(version('litellm'))"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else None


def facts(litellm: str | None) -> list[str]:
    """When, where, and what, each in a line."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    peer = f", LiteLLM {litellm}" if litellm else ""
    return [
        f"{datetime.now(UTC):%Y-%m-%d}: Covey {__version__}{peer}, Python {platform.python_version()},"
        f" Linux {platform.release().partition('-')[0]}, {os.cpu_count()} processors ({_processor()}),"
        f" {memory_bytes / 1e9:.0f} GB.",
    ]


def busy() -> str:
    """Load averages: whether the machine had anything else to do."""
    return ", ".join(f"{value:.2f}" for value in os.getloadavg())


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write_between(path: Path, lines: list[str]) -> None:
    """Put lines between a document's two marks.

    Raises:
        ValueError: it does not have two.
    """
    parts = path.read_text(encoding="utf-8").split(MARK)
    if len(parts) != 3:
        raise ValueError(f"{path} does not have {MARK} twice.")
    path.write_text(f"{parts[0]}{MARK}\n" + "\n".join(lines) + f"\n{MARK}{parts[2]}", encoding="utf-8")
