"""Models of an Ollama server, found by itself where one runs; where none does, there is nothing to complain of.

The official client has traps: no timeout of its own, `OLLAMA_API_KEY` sent to any host, streams that leak unless
closed, and six families of exceptions. All of them end here.
"""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import trio

from covey.backends.base import Backend, BackendParts, BackendPlugin, Report
from covey.backends.refusals import context_exceeded
from covey.backends.connections import tcp_connections
from covey.backends.sse_client import describe, exhausting
from covey.bus.replies import Emit
from covey.contracts.inference import ChatDelta, ChatRequest, Finish, ModelStatus, PullProgress, Usage
from covey.dialects.counting import estimated_tokens
from covey.errors import CallError
from covey.telemetry.logs import redact

if TYPE_CHECKING:
    import ollama

log = logging.getLogger(__name__)

OLLAMA_PORT = 11434
MODELS_MAX = 500
CAPABILITIES = {"completion": "chat", "embedding": "embed"}
"""Ollama's words and ours."""
FIRST_SECONDS = 1.0
"""How long a node that starts waits for the models: a server that hangs must not keep it from starting."""
LIST_SECONDS = 7.0
"""The longest that Ollama may take to say which models it has, or what one can do."""
QUIET_SECONDS_MAX = 300.0
"""A server that is not there is asked ever more rarely, down to this."""


class OllamaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[backends.ollama]`.

    Args:
        url: of the server.
        slots: requests at once per model; Ollama's own `OLLAMA_NUM_PARALLEL`. 0: unknown.
        refresh_seconds: how often it is asked for its models.
        connect_seconds: the longest wait for a connection.
        first_token_seconds: the longest wait for the first token: Ollama loads the model before it.
        idle_seconds: the longest wait between tokens.
    """

    url: str = "http://127.0.0.1:11434"
    slots: int = 4
    refresh_seconds: float = 5.0
    connect_seconds: float = 2.0
    first_token_seconds: float = 300.0
    idle_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Details:
    """What is known of a model beyond its name. `context_tokens` it was trained for; 0: unknown."""

    capabilities: tuple[str, ...] = ("chat",)
    context_tokens: int = 0


class OllamaBackend:
    """See `Backend`. Made by `open_ollama`, which closes it."""

    name = "ollama"

    def __init__(self, config: OllamaConfig) -> None:
        self._config = config
        self._client: ollama.AsyncClient | None = None
        self._models: tuple[str, ...] = ()
        self._details: dict[str, Details] = {}
        self._running: dict[str, int] = {}
        self._reachable = False
        self._strange = False
        self.asked = trio.Event()
        """Set once it was asked for its models, whatever came of it."""

    def models(self) -> tuple[ModelStatus, ...]:
        """See `Backend.models`. An unreachable server has none."""
        return tuple(self._status(name, self._details.get(name, Details())) for name in self._models)

    def _status(self, name: str, details: "Details") -> ModelStatus:
        return ModelStatus(
            name,
            self.name,
            "remote",
            capabilities=details.capabilities,
            context_tokens=details.context_tokens,
            slots=self._config.slots,
            in_flight=self._running.get(name, 0),
        )

    async def generate(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        """See `Backend.generate`."""
        if request.model not in self._models:
            raise CallError("not_found", f"Ollama has no model {request.model!r}.", reason="model_not_found")
        self._running[request.model] = self._running.get(request.model, 0) + 1
        try:
            await self._answer(request, emit)
        finally:
            self._running[request.model] -= 1

    async def _answer(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        tokens, last = 0, None
        with translated():
            stream = await self._found().chat(  # pyright: ignore[reportUnknownMemberType]  of `tools`, unused here
                request.model, messages, stream=True, options=options(request)
            )
        async with exhausting(stream) as parts:
            while (part := await self._next(parts, first=not tokens)) is not None:
                text = part.message.content or ""
                tokens += 1 if text else 0
                if text:
                    await emit(ChatDelta(text, tokens=1))
                if part.done:
                    usage = Usage(part.prompt_eval_count or estimated_tokens(request), part.eval_count or tokens)
                    last = ChatDelta(finish=finish_of(part.done_reason), usage=usage)
        if last is None:
            raise CallError("upstream", "Ollama's answer ended in the middle.")
        await emit(last)

    async def _next(self, parts: "AsyncIterator[ollama.ChatResponse]", *, first: bool) -> "ollama.ChatResponse | None":
        seconds = self._config.first_token_seconds if first else self._config.idle_seconds
        with trio.move_on_after(seconds), translated():
            return await anext(parts, None)
        raise CallError("upstream", "Ollama fell silent in the middle of its answer.", reason="silent")

    async def pull(self, model: str, report: Report) -> None:
        """See `Backend.pull`: Ollama fetches from its own registry."""
        if not self._reachable:
            raise CallError(
                "unsupported", f"There is no Ollama at {self._config.url} that could fetch {model[:200]!r}."
            )
        with translated():
            stream = await self._found().pull(model, stream=True)
        async with exhausting(stream) as parts:
            while True:
                with translated():
                    part = await anext(parts, None)
                if part is None:
                    break
                await report(PullProgress(model, "fetching", part.completed or 0, part.total or 0))
        await self.refresh()
        await report(PullProgress(model, "done"))

    async def refresh(self) -> None:
        """Ask for its models, quietly: an absent Ollama is no error."""
        if self._client is None:
            # The client's import takes a quarter of a second and 15 MB, which a machine without Ollama never needs.
            if not await anybody_at(self._config.url, self._config.connect_seconds):
                return
            self._client = await trio.to_thread.run_sync(open_ollama_client, self._config)
        try:
            with trio.fail_after(LIST_SECONDS), translated():
                listed = await self._found().list()
        except (CallError, trio.TooSlowError) as error:
            self._lose(error)
            return
        if not self._reachable:
            log.info("Found Ollama at %s with %d models.", self._config.url, len(listed.models))
        self._reachable, self._strange = True, False
        self._models = tuple(sorted({model.model for model in listed.models if model.model})[:MODELS_MAX])
        self._details = {
            name: self._details[name] if name in self._details else await self._look_up(name) for name in self._models
        }

    def _lose(self, error: Exception) -> None:
        why = error.message if isinstance(error, CallError) else "it does not answer"
        if self._reachable:
            log.warning("Ollama at %s is gone (%s); looking for it quietly.", self._config.url, why)
        elif not self._strange and not (isinstance(error, CallError) and error.reason == "unreachable"):
            self._strange = True
            log.warning(
                "What listens at %s is no Ollama, or not well (%s); looking for it quietly.", self._config.url, why
            )
        self._reachable, self._models = False, ()

    async def _look_up(self, name: str) -> "Details":
        """What Ollama says of a model; what any model is like, where it does not say."""
        try:
            with trio.fail_after(LIST_SECONDS), translated():
                shown = await self._found().show(name)
        except (CallError, trio.TooSlowError):
            return Details()
        capabilities = tuple(
            sorted(ours for theirs, ours in CAPABILITIES.items() if theirs in (shown.capabilities or ()))
        )
        lengths = [value for key, value in (shown.modelinfo or {}).items() if key.endswith(".context_length")]
        trained = lengths[0] if lengths and isinstance(lengths[0], int) else 0
        return Details(capabilities or ("chat",), trained)

    def _found(self) -> "ollama.AsyncClient":
        if self._client is None:
            raise _absent()
        return self._client

    async def close(self) -> None:
        """Close what is open."""
        if self._client is not None:
            await self._client.close()  # type: ignore[no-untyped-call]

    async def keep_fresh(self) -> None:
        """Refresh for ever; ever more rarely while nobody is there."""
        pause = self._config.refresh_seconds
        while True:
            await self.refresh()
            self.asked.set()
            await trio.sleep(pause)
            pause = self._config.refresh_seconds if self._reachable else min(pause * 1.5, QUIET_SECONDS_MAX)


def options(request: ChatRequest) -> dict[str, Any]:
    """Ollama's spelling of the sampling parameters."""
    found: dict[str, Any] = msgspec.to_builtins(request.sampling)
    if request.max_tokens is not None:
        found["num_predict"] = request.max_tokens
    if request.stop:
        found["stop"] = list(request.stop)
    return found


def finish_of(reason: str | None) -> Finish:
    """Our word for Ollama's `done_reason`; old versions give none.

    Raises:
        CallError: `upstream`: it ended with an error.
    """
    if reason in {"error", "unload", "load"}:
        raise CallError("upstream", f"Ollama ended its answer with {reason!r}.")
    return "length" if reason == "length" else "stop"


@contextmanager
def translated() -> Generator[None, None, None]:
    """Turn whatever the client raises into a `CallError`."""
    import ollama
    import pydantic

    try:
        yield
    except ollama.ResponseError as error:
        raise refusal(error.status_code, redact(" ".join(str(error.error).split()))[:300]) from error
    except (ConnectionError, httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise _absent() from error
    except httpx.HTTPError as error:
        raise CallError("upstream", f"Ollama broke off its answer ({describe(error)}).") from error
    except (json.JSONDecodeError, pydantic.ValidationError, UnicodeDecodeError, TypeError, AttributeError) as error:
        # The last two: the client takes JSON that is not an object for one.
        raise CallError("upstream", "Ollama sent something that is not its protocol.") from error


def _absent() -> CallError:
    return CallError("upstream", "Ollama cannot be reached; is it running?", reason="unreachable")


async def anybody_at(url: str, seconds: float) -> bool:
    """Whether something takes connections there, in time; errors as `server_of`."""
    host, port = server_of(url)
    try:
        with trio.fail_after(seconds):
            stream = await trio.open_tcp_stream(host, port)
    except (OSError, trio.TooSlowError):
        return False
    await stream.aclose()
    return True


def server_of(url: str) -> tuple[str, int]:
    """Host and port of a URL, which may lack its scheme, as in `OLLAMA_HOST`.

    Raises:
        CallError: `invalid`: it is no URL of a web server.
    """
    plain = "://" not in url
    try:
        parsed = httpx.URL(f"http://{url}" if plain else url)
    except httpx.InvalidURL as error:
        raise CallError("invalid", f"[backends.ollama] url {url[:200]!r} is no URL ({error}).") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise CallError(
            "invalid", f"[backends.ollama] url {url[:200]!r} is no URL like http://127.0.0.1:{OLLAMA_PORT}."
        )
    return parsed.host, parsed.port or (OLLAMA_PORT if plain else 443 if parsed.scheme == "https" else 80)


def refusal(status: int, message: str) -> CallError:
    """What an error of Ollama's means; its status is -1 inside a stream."""
    said = f": {message}" if message else ""
    if status == 404 or "not found" in message:
        return CallError("not_found", f"Ollama does not have this model{said}", reason="model_not_found")
    if "context length" in message or "context window" in message:
        return context_exceeded(0, 0, message)
    if status == 503:
        return CallError("no_capacity", f"Ollama is busy{said}", retry_after_seconds=5.0)
    if status == 400:
        return CallError("invalid", f"Ollama refused the request{said}")
    return CallError("upstream", f"Ollama failed{said}")


def open_ollama_client(config: OllamaConfig) -> "ollama.AsyncClient":
    """The official client with its traps closed; closed by the caller."""
    import ollama

    async def drop_credentials(request: httpx.Request) -> None:
        # The client takes OLLAMA_API_KEY from the environment and sends it to whatever host it is given.
        request.headers.pop("authorization", None)

    timeout = httpx.Timeout(config.first_token_seconds, connect=config.connect_seconds, write=30.0, pool=10.0)
    return ollama.AsyncClient(
        config.url,
        timeout=timeout,
        trust_env=False,
        follow_redirects=False,
        event_hooks={"request": [drop_credentials]},
        transport=tcp_connections(tls=config.url.startswith("https://")),
    )


@asynccontextmanager
async def open_ollama(config: OllamaConfig, parts: BackendParts) -> AsyncGenerator[Backend, None]:
    """Open the back end; it is asked once before, if it answers soon, and then again and again.

    Raises:
        CallError: `invalid`: its address is none.
    """
    server_of(config.url)
    backend = OllamaBackend(config)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.keep_fresh)
            with trio.move_on_after(FIRST_SECONDS):
                await backend.asked.wait()
            yield backend
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await backend.close()


BACKEND = BackendPlugin("ollama", OllamaConfig, open_ollama)
