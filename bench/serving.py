"""A server in a process of its own, whose CPU time can be read: what is measured, and the bare one beside it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import trio

from covey.http.asgi import ASGIApp
from covey.http.server import HttpConfig, Listener
from covey.telemetry.metrics import Metrics

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

Opens = Mapping[str, Callable[[Path], AbstractAsyncContextManager[tuple[str, str]]]]
"""What a module can be: each takes a folder of its own, and yields an address and a key."""


@asynccontextmanager
async def open_bare(app: ASGIApp) -> AsyncGenerator[tuple[str, str], None]:
    """Covey's own listener, and an application that knows nothing of Covey."""
    listener, stop = Listener(HttpConfig(listen="127.0.0.1:0"), Metrics()), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(listener.serve, app, stop=stop, drain_until=trio.current_time))
        yield listener.urls[0], "none"
        nursery.cancel_scope.cancel()


async def serve(opens: Opens, kind: str) -> None:
    """Be the server, until standard input ends."""
    with tempfile.TemporaryDirectory() as name:
        async with opens[kind](Path(name)) as (url, key):
            print(url, key, flush=True)
            await trio.to_thread.run_sync(sys.stdin.read)


@dataclass(frozen=True)
class Served:
    """A server that runs: where, with which key, as which process."""

    url: str
    key: str
    pid: int

    def cpu_seconds(self) -> float:
        """What the process has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


@contextmanager
def running(module: str, kind: str) -> Iterator[Served]:
    """Start `python -m MODULE --serve KIND`, and stop it."""
    command = [sys.executable, "-m", module, "--serve", kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            url, key = process.stdout.readline().split()
            yield Served(url, key, process.pid)
        finally:
            cast("Any", process.stdin).close()
            process.wait(30)
