"""A child process that computes: started with none of our secrets, listened to, ended for certain.

Its standard input is its life: it ends with that, even when this process is killed.
"""

import os
import signal
import subprocess
import sys

import trio

STOP_SECONDS_MAX = 3.0
STDERR_BYTES_KEPT = 4_096
PASSED_ENVIRONMENT = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME",
    "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES", "OMP_NUM_THREADS",
)  # fmt: skip
"""The child sees nothing else of ours: least of all other services' keys."""


class EngineDiedError(Exception):
    """The child is gone or never came up; the message says why, for people."""


class Words:
    """What a child writes to standard error: read all along, lest the pipe fill up and stop it; the end is kept."""

    def __init__(self) -> None:
        self._said = b""
        self._over = trio.Event()

    async def listen(self, pipe: trio.abc.ReceiveStream) -> None:
        """Until the pipe ends."""
        try:
            while data := await pipe.receive_some():
                self._said = (self._said + data)[-STDERR_BYTES_KEPT:]
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass  # the child was stopped
        finally:
            self._over.set()

    async def last(self) -> str:
        """The last line of a dead child."""
        with trio.move_on_after(1):
            await self._over.wait()
        lines = self._said.decode(errors="replace").strip().splitlines()
        return lines[-1].strip()[:300] if lines else ""


async def spawn(worker: str, environment: dict[str, str]) -> trio.Process:
    """Start a worker's file with pipes; `environment` is beyond what every child gets.

    Raises:
        EngineDiedError: it could not be started.
    """
    passed = {name: os.environ[name] for name in PASSED_ENVIRONMENT if name in os.environ}
    try:
        return await trio.lowlevel.open_process(
            [sys.executable, "-P", worker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=passed | environment,
            # Ctrl-C in a terminal is for the node: it drains, and the child must finish what runs.
            start_new_session=True,
        )
    except OSError as error:
        raise EngineDiedError(f"a child process cannot be started: {error.strerror or error}.") from error


async def stop(process: trio.Process) -> None:
    """End a child, with force if need be."""
    assert process.stdin is not None
    with trio.move_on_after(STOP_SECONDS_MAX):
        await process.stdin.aclose()  # the child takes that for its end
        await process.wait()
    if process.poll() is None:
        process.kill()
        await process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            await pipe.aclose()


def cause_of_death(status: int, last_words: str) -> str:
    """What an exit status means, in words that help."""
    if status == -signal.SIGILL:
        return (
            "it met an instruction that this processor does not have: llama.cpp needs one with AVX2 (or NEON). "
            "Use Ollama or an OpenAI-compatible server on this machine instead."
        )
    if status in {-signal.SIGKILL, 137}:
        return "it was killed, perhaps because memory ran out: use a smaller model or fewer `context_tokens`."
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        return f"it crashed ({name}); if it happens again, the file may be corrupt: pull the model again."
    return f"it ended with status {status}" + (f": {last_words}" if last_words else ".")
