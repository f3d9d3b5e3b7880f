"""A process and all that it has started: its time, its memory, its end. Linux's /proc."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
STOP_SECONDS_MAX = 20.0
PARENT, USER_TICKS, REAPED_SYSTEM_TICKS = 1, 11, 14
"""Places in /proc/PID/stat (proc_pid_stat(5)), counted from the state; between the last two: system, reaped user."""


class Tree:
    """A process, in a session of its own, with everything it starts. The caller stops it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.PIPE, stdout=file, stderr=file, start_new_session=True
            )

    @property
    def said(self) -> str:
        """What it has printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def ended(self) -> bool:
        """By itself."""
        return self._process.poll() is not None

    def _fields(self) -> dict[int, list[str]]:
        """Of each process of the tree, what /proc/PID/stat says from the state on."""
        every: dict[int, list[str]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                every[int(path.parent.name)] = path.read_text(encoding="utf-8").rpartition(") ")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile, and its parent counts its time
        members = {self._process.pid}
        while more := {pid for pid, fields in every.items() if int(fields[PARENT]) in members} - members:
            members |= more
        return {pid: every[pid] for pid in members if pid in every}

    def cpu_seconds(self) -> float:
        """Used so far, by those that have ended too."""
        ticks = (sum(map(int, one[USER_TICKS : REAPED_SYSTEM_TICKS + 1])) for one in self._fields().values())
        return sum(ticks) / TICKS_PER_SECOND

    def memory_bytes(self) -> int:
        """Proportional set size: pages that processes share are counted once."""
        kibibytes = 0
        for pid in self._fields():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile
            kibibytes += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return kibibytes * 1024

    def stop(self) -> None:
        """Ask it to end, and after a while make it. What it started goes with it."""
        started = list(self._fields())
        if not self.ended:
            self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        for pid in set(started) - {self._process.pid}:
            self._end(pid)

    def _end(self, pid: int) -> None:
        """One that outlived its parent: only if it is still of this tree's session, as a number is used again."""
        try:
            if os.getsid(pid) == self._process.pid:
                os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
