"""One embedded model's engine: the child process, kept alive while it is wanted.

States: asleep (no child) → starting → ready → dead, and again. A death costs the requests that ran in it, which fail
with `upstream`; the child is started again after a jittered pause, and the node lives on.
"""

import json
import logging
import os
import random
import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import msgspec
import trio

from covey.backends import embedded_worker
from covey.backends.child_process import EngineDiedError, Words, cause_of_death, spawn, stop
from covey.backends.connections import unix_connections
from covey.backends.embedded_worker import Orders
from covey.backends.engine_abilities import Abilities, ask_abilities
from covey.backends.sse_client import Patience, RefusedError, SilentUpstreamError, get_json
from covey.errors import CallError

log = logging.getLogger(__name__)

START_SECONDS_MAX = 120.0
HEALTH_SECONDS_MAX = 5.0
STEADY_SECONDS = 300.0
"""An engine that lived this long was not faulty from the start: the next pause is the shortest again."""
PAUSE_SECONDS_MAX = 60.0
FAILURES_TO_GIVE_UP_WAITING = 3
"""In a row; from then on requests are refused at once with the cause, while restarts go on."""
SOCKET_PATH_BYTES_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How to run one model. `context_tokens` is one request's; `threads` of its own, for prompts and answers alike."""

    name: str
    path: Path
    context_tokens: int
    slots: int
    batch_tokens: int
    threads: int
    cache_mib: int
    gpu_layers: int
    wait_policy: Literal["passive", "active"]
    patience: Patience


@dataclass(frozen=True, slots=True)
class Child:
    """A running engine: its process, what it complains of, the client that talks to it, what its model can do."""

    process: trio.Process
    words: Words
    client: httpx.AsyncClient
    abilities: Abilities


class Engine:
    """Supervises one model's child process; `run` it in a nursery, cancel it to put the model to sleep.

    `running` counts the requests in it, `used_at` is when the last one ended, on trio's clock. `nursery`: where its
    small tasks run, beyond `run`. `on_restart` is told of each death.
    """

    def __init__(self, settings: EngineSettings, nursery: trio.Nursery, on_restart: Callable[[], None]) -> None:
        self.settings = settings
        self._nursery = nursery
        self._on_restart = on_restart
        self.child: Child | None = None
        self.failure = ""
        self.failures = 0
        self.running = 0
        self.used_at = trio.current_time()
        self._changed = trio.Event()

    async def run(self) -> None:
        """Keep the child alive until cancelled."""
        while True:
            born_at = trio.current_time()
            try:
                await self._live()
            except EngineDiedError as death:
                steady = trio.current_time() - born_at > STEADY_SECONDS
                self.failures = 1 if steady else self.failures + 1
                self.failure = str(death)
            finally:
                self.child = None
            self._on_restart()
            self._announce()
            pause = min(0.2 * 4.0 ** (self.failures - 1), PAUSE_SECONDS_MAX) * random.uniform(0.5, 1.0)  # noqa: S311
            log.error("The engine of %s: %s Starting it again in %.1f s.", self.settings.name, self.failure, pause)
            await trio.sleep(pause)

    async def _live(self) -> None:
        started_at = trio.current_time()
        async with open_child(self.settings, self._nursery) as child:
            self.child = child
            log.info("The model %s is ready after %.1f s.", self.settings.name, trio.current_time() - started_at)
            self._announce()
            status = await child.process.wait()
            self.child = None  # from now on requests wait for the next one
            raise EngineDiedError(cause_of_death(status, await child.words.last()))

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def ready(self, seconds: float) -> Child:
        """The running child, waited for if it is about to come up.

        Raises:
            CallError: `loading` after `seconds`; `upstream` where it keeps dying.
        """
        with trio.move_on_after(seconds):
            while self.child is None or self.child.process.poll() is not None:
                if self.failures >= FAILURES_TO_GIVE_UP_WAITING:
                    raise CallError(
                        "upstream",
                        f"The engine of {self.settings.name} does not start: {self.failure}",
                        reason="engine_failed",
                        retry_after_seconds=30,
                    )
                await self._changed.wait()
            return self.child
        raise CallError(
            "loading",
            f"The model {self.settings.name} is being loaded; try again in a moment.",
            reason="model_loading",
            retry_after_seconds=5,
        )

    async def check(self) -> None:
        """After a silence: an engine that does not even say that it is healthy is killed, and so replaced."""
        if (child := self.child) is None:
            return
        with trio.move_on_after(HEALTH_SECONDS_MAX):
            try:
                await get_json(child.client, "/health")
                return
            except (SilentUpstreamError, RefusedError):
                pass
        child.process.kill()

    def succeeded(self) -> None:
        """An answer came to its end: whatever went wrong before is over."""
        self.failures, self.failure = 0, ""


@asynccontextmanager
async def open_child(settings: EngineSettings, nursery: trio.Nursery) -> AsyncGenerator[Child, None]:
    """Start the child and wait until it listens; leaving stops it, with force if need be.

    Raises:
        EngineDiedError: it could not be started.
    """
    folder = socket_folder()
    process: trio.Process | None = None
    try:
        process = await spawn(embedded_worker.__file__, {"OMP_WAIT_POLICY": settings.wait_policy.upper()})
        words = Words()
        assert process.stderr is not None
        nursery.start_soon(words.listen, process.stderr, name=f"errors of {settings.name}")
        url = await _first_word(process, words, settings, folder)
        # llama.cpp offers keep-alive after a stream and then closes: 9 of 40 pooled requests failed, 0 without.
        transport = unix_connections(url.removeprefix("unix://"))
        async with httpx.AsyncClient(transport=transport, base_url="http://engine", trust_env=False) as client:
            yield Child(process, words, client, await _abilities(client))
    finally:
        with trio.CancelScope(shield=True):
            if process is not None:
                await stop(process)
            await trio.to_thread.run_sync(lambda: shutil.rmtree(folder, ignore_errors=True))


async def _first_word(process: trio.Process, words: Words, settings: EngineSettings, folder: Path) -> str:
    """Give the child its orders; the URL it listens on."""
    assert process.stdin is not None
    assert process.stdout is not None
    orders: Orders = {
        "model": str(settings.path),
        "alias": settings.name,
        "folder": str(folder),
        "context_tokens": settings.context_tokens,
        "slots": settings.slots,
        "batch_tokens": settings.batch_tokens,
        "threads": settings.threads,
        "cache_mib": settings.cache_mib,
        "gpu_layers": settings.gpu_layers,
    }
    said = b""
    with trio.move_on_after(START_SECONDS_MAX) as patience:
        try:
            await process.stdin.send_all(json.dumps(orders).encode() + b"\n")
            while b"\n" not in said:
                data = await process.stdout.receive_some()
                if not data:
                    raise EngineDiedError(cause_of_death(await process.wait(), await words.last()))
                said += data
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise EngineDiedError(cause_of_death(await process.wait(), await words.last())) from error
    if patience.cancelled_caught:
        raise EngineDiedError(f"it did not come up within {START_SECONDS_MAX:g} s.")
    answer: dict[str, str] = json.loads(said)
    if "url" not in answer:
        raise EngineDiedError(
            f"llama.cpp refuses the file {settings.path.name} ({answer.get('error', 'no reason given')}). "
            f"Fetch it again with `covey models pull {settings.name}`."
        )
    return answer["url"]


async def _abilities(client: httpx.AsyncClient) -> Abilities:
    try:
        with trio.fail_after(HEALTH_SECONDS_MAX):
            return await ask_abilities(client)
    except (SilentUpstreamError, RefusedError, CallError, msgspec.MsgspecError, trio.TooSlowError) as error:
        raise EngineDiedError(f"it does not say what its model can do ({str(error)[:200]}).") from error


def socket_folder() -> Path:
    """A fresh folder that only this user can enter, at a path short enough for a Unix socket."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    for place in (runtime, tempfile.gettempdir(), "/tmp"):  # noqa: S108  mkdtemp makes it private
        if place and len(os.fsencode(place)) + 40 <= SOCKET_PATH_BYTES_MAX and os.access(place, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="covey-engine-", dir=place))
    raise EngineDiedError("there is no folder with a path short enough for its socket.")
