"""Embeddings by this node itself: multilingual-e5-small, in a child process that needs numpy alone.

The model is fetched when it is first asked for, or by `covey models pull`; the child runs while it is used.
"""

import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import msgspec
import trio

from covey.backends.base import Backend, BackendParts, BackendPlugin, Report
from covey.backends.capable import unable
from covey.backends.catalogue import DEFAULT_EMBEDDER, E5, Entry, find
from covey.backends.child_process import EngineDiedError
from covey.backends.download import Downloader
from covey.backends.embedder_child import EmbedderChild, open_embedder_child
from covey.backends.fetching import Origin, open_client
from covey.backends.model_folder import check_model
from covey.backends.vectors import shortened
from covey.bus.replies import Emit
from covey.contracts.inference import ChatDelta, ChatRequest, Embeddings, EmbedRequest, ModelStatus, PullProgress
from covey.errors import CallError

log = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0
VECTORS_EACH = 32
RETRY_SECONDS = 10.0


class EmbedderConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[backends.embedder]`.

    Args:
        threads: of the child.
        keep_alive_seconds: an unused child is stopped after this; 0: never.
        warm_up_seconds: how long a request waits for the child to come up before it is refused as `loading`.
        input_seconds: the longest that one input may take.
        index_url: of the package index; "": what pip or uv are told by the environment, else pypi.org.
    """

    threads: int = 1
    keep_alive_seconds: float = 600.0
    warm_up_seconds: float = 10.0
    input_seconds: float = 60.0
    index_url: str = ""


class EmbedderBackend:
    """See `Backend`. Its tasks run in `nursery`, the one of `open_embedder`."""

    name = "embedder"

    def __init__(
        self, config: EmbedderConfig, folder: Path, client: httpx.AsyncClient, nursery: trio.Nursery, entry: Entry
    ) -> None:
        self._config = config
        self._entry = entry
        self._path = folder / entry.file_name
        self._nursery = nursery
        origin = Origin.of(os.environ, index_url=config.index_url)
        self._downloader = Downloader(folder, origin, client, nursery)
        self._there = False
        self._starting = trio.Lock()
        self._trouble = ""
        self._running = 0
        self._used_at = trio.current_time()
        self._scope = trio.CancelScope()
        self._gone = trio.Event()
        self.child: EmbedderChild | None = None

    def models(self) -> tuple[ModelStatus, ...]:
        """See `Backend.models`."""
        status = ModelStatus(
            self._entry.name,
            self.name,
            "on_disk",
            ("embed",),
            context_tokens=self._entry.context_tokens,
            slots=1,
            in_flight=self._running,
        )
        if self.child is not None:
            return (msgspec.structs.replace(status, state="loaded"),)
        if transfer := self._downloader.transfer(self._entry.name):
            return (msgspec.structs.replace(status, state="loading", progress=transfer.fraction, detail="fetching"),)
        if self._trouble:
            return (msgspec.structs.replace(status, state="failed", detail=self._trouble),)
        if not self._there:
            return (msgspec.structs.replace(status, detail="fetched when first asked for"),)
        return (status,)

    async def refresh(self) -> None:
        """Look whether the file is there."""
        self._there = await trio.to_thread.run_sync(self._path.exists)

    async def generate(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        """What is here embeds, and nothing else."""
        self._check(request.model)
        raise unable(request.model, "completion" if request.prompt is not None else "chat", "model")

    def _check(self, model: str) -> None:
        if model != self._entry.name and model not in self._entry.aliases:
            raise CallError("not_found", f"No model {model[:200]!r} on this node.", reason="model_not_found")

    async def embed(self, request: EmbedRequest, emit: Emit[Embeddings]) -> None:
        """See `Backend.embed`. Fewer `dimensions` are the first ones, at length 1 again: cruder, but of use."""
        self._check(request.model)
        child = await self._ready()
        if request.dimensions is not None and not 1 <= request.dimensions <= child.dimensions:
            raise CallError("invalid", f"This model has 1 to {child.dimensions} dimensions.", param="dimensions")
        vectors: list[bytes] = []
        tokens = 0

        async def got(vector: bytes, counted: int) -> None:
            nonlocal tokens
            vectors.append(shortened(vector, request.dimensions))
            tokens += counted
            if len(vectors) == VECTORS_EACH:
                await flush()

        async def flush() -> None:
            nonlocal tokens
            some = Embeddings(tuple(vectors), tokens)
            vectors.clear()
            tokens = 0
            await emit(some)

        self._running += 1
        try:
            await child.embed(request.inputs, got)
        except EngineDiedError as death:
            raise CallError(
                "upstream", f"The embedder died: {death}", reason="engine_died", retry_after_seconds=1
            ) from death
        finally:
            self._running -= 1
            self._used_at = trio.current_time()
        if vectors:
            await flush()

    async def _ready(self) -> EmbedderChild:
        """The child, started if there is none.

        Raises:
            CallError: `loading`, `storage` where the file is damaged, `upstream` where it does not start.
        """
        if self.child is not None:
            return self.child
        name = self._entry.name
        if transfer := self._downloader.transfer(name):
            raise _loading(f"The model {name} is being fetched ({transfer.fraction:.0%}).", RETRY_SECONDS)
        await self.refresh()
        if not self._there:
            self._nursery.start_soon(self._fetch_quietly)
            raise _loading(f"The model {name} is being fetched.", RETRY_SECONDS)
        with trio.move_on_after(self._config.warm_up_seconds):
            async with self._starting:
                return self.child or await self._start()
        raise _loading(f"The model {name} is being loaded.", 2.0)

    async def _start(self) -> EmbedderChild:
        try:
            await check_model(self._path, self._entry)
        except CallError as error:
            self._trouble = error.message
            raise
        self._scope, self._gone = trio.CancelScope(), trio.Event()
        try:
            child: EmbedderChild = await self._nursery.start(self._live, self._scope, self._gone)
        except EngineDiedError as death:
            self._trouble = str(death)
            raise CallError(
                "upstream", f"The embedder does not start: {death}", reason="engine_failed", retry_after_seconds=30
            ) from death
        self._trouble = ""
        return child

    async def _live(
        self,
        scope: trio.CancelScope,
        gone: trio.Event,
        task_status: "trio.TaskStatus[EmbedderChild]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        config = self._config
        try:
            with scope:
                async with open_embedder_child(
                    self._path, config.threads, config.input_seconds, self._nursery
                ) as child:
                    self.child = child
                    log.info("The model %s is ready.", self._entry.name)
                    task_status.started(child)
                    try:
                        await child.process.wait()
                    finally:
                        self.child = None
                    log.warning("The embedder ended; it is started again when it is needed.")
        finally:
            gone.set()

    async def pull(self, model: str, report: Report) -> None:
        """See `Backend.pull`; a child that runs the old file makes way."""
        entry = find(model)
        if entry is None or entry.name != self._entry.name:
            raise CallError("unsupported", f"The embedder cannot fetch {model[:200]!r}.", param="model")
        already = False

        async def told(progress: PullProgress) -> None:
            nonlocal already
            already = progress.already
            await report(progress)

        await self._downloader.fetch(entry, told)
        self._trouble = ""
        await self.refresh()
        if not already:
            await self._sleep()

    async def _fetch_quietly(self) -> None:
        async def nobody(progress: PullProgress) -> None:
            """The log and `models()` tell how far it is."""

        try:
            await self._downloader.fetch(self._entry, nobody)
        except CallError as error:
            self._trouble = error.message
        else:
            self._trouble = ""
            await self.refresh()

    async def _sleep(self) -> None:
        if self.child is not None:
            self._scope.cancel()
            await self._gone.wait()

    async def sweep(self) -> None:
        """Look at the folder, and stop a child that nobody uses; for ever."""
        while True:
            await self.refresh()
            unused_since = self._used_at + self._config.keep_alive_seconds
            if self._config.keep_alive_seconds and not self._running and trio.current_time() > unused_since:
                await self._sleep()
            await trio.sleep(SWEEP_SECONDS)


def _loading(said: str, seconds: float) -> CallError:
    return CallError("loading", f"{said} Try again in a moment.", reason="model_loading", retry_after_seconds=seconds)


@asynccontextmanager
async def open_embedder(
    config: EmbedderConfig, parts: BackendParts, entry: Entry | None = None
) -> AsyncGenerator[Backend, None]:
    """Open the back end; `entry`: another model of the same kind."""
    model = entry or find(DEFAULT_EMBEDDER)
    assert model is not None
    assert model.suffix == E5
    await trio.to_thread.run_sync(lambda: parts.folder.mkdir(mode=0o700, parents=True, exist_ok=True))
    async with open_client() as client, trio.open_nursery() as nursery:
        backend = EmbedderBackend(config, parts.folder, client, nursery, model)
        await backend.refresh()
        nursery.start_soon(backend.sweep)
        yield backend
        nursery.cancel_scope.cancel()


BACKEND = BackendPlugin("embedder", EmbedderConfig, open_embedder)
