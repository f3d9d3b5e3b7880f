"""Models of OpenAI-compatible servers: OpenAI itself, vLLM, llama-server, LM Studio.

A key goes to the host it is configured for and nowhere else: no redirect is followed, no proxy or `.netrc` of the
environment is used.
"""

import ipaddress
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from pathlib import Path

import httpx
import msgspec
import trio

from covey.backends.base import Backend, BackendParts, BackendPlugin, Report
from covey.backends.completions import AnswerReader, refusal, request_body
from covey.backends.connections import tcp_connections
from covey.backends.sse_client import Patience, RefusedError, SilentUpstreamError, get_json, post_events
from covey.bus.replies import Emit
from covey.contracts.inference import ChatDelta, ChatRequest, ModelStatus
from covey.dialects.counting import estimated_tokens
from covey.errors import CallError

log = logging.getLogger(__name__)

KEY_BYTES_MAX = 4_096
IDLE_MAX = 16
MODELS_MAX = 2_000
FIRST_SECONDS = 1.0
"""How long a node that starts waits for the models: a server that hangs must not keep it from starting."""
LIST_SECONDS = 10.0
"""The longest that a server may take to say which models it has."""


class Upstream(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[backends.openai.upstreams]]`.

    Args:
        name: for people; unique.
        base_url: up to and including `/v1`.
        api_key_env: the environment variable that holds the key, or
        api_key_file: the file that holds it; neither: none is sent.
        models: patterns (`gpt-*`) of the models to offer; none: all.
        slots: requests at once per model; 0: unknown.
        local: it is llama.cpp's server, with its extensions (`top_k`, `min_p`, exact token counts in each chunk).
        max_tokens_field: newer models of OpenAI want `max_completion_tokens`.
        connect_seconds: the longest wait for a connection.
        first_token_seconds: the longest wait for the first token.
        idle_seconds: the longest wait between tokens.
    """

    name: str
    base_url: str
    api_key_env: str = ""
    api_key_file: str = ""
    models: tuple[str, ...] = ()
    slots: int = 0
    local: bool = False
    max_tokens_field: str = "max_tokens"
    connect_seconds: float = 5.0
    first_token_seconds: float = 120.0
    idle_seconds: float = 60.0


class OpenAiConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[backends.openai]`. `refresh_seconds`: how often each upstream is asked for its models."""

    upstreams: tuple[Upstream, ...] = ()
    refresh_seconds: float = 30.0


class _Model(msgspec.Struct):
    id: str
    max_model_len: int | None = None  # vLLM


class _Models(msgspec.Struct):
    data: list[_Model]


class Server:
    """One upstream: its client, and what it had when it was last asked."""

    def __init__(self, upstream: Upstream, client: httpx.AsyncClient) -> None:
        self.upstream = upstream
        self._client = client
        self._patience = Patience(upstream.connect_seconds, upstream.first_token_seconds, upstream.idle_seconds)
        self._models: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._trouble = ""
        self.asked = trio.Event()
        """Set once it was asked for its models, whatever came of it."""

    def statuses(self) -> list[ModelStatus]:
        """Its models; `failed` while it cannot be reached, so that one sees why."""
        return [
            ModelStatus(
                name,
                "openai",
                "failed" if self._trouble else "remote",
                context_tokens=context_tokens,
                detail=self._trouble,
                slots=self.upstream.slots,
                in_flight=self._running.get(name, 0),
            )
            for name, context_tokens in self._models.items()
        ]

    def has(self, model: str) -> bool:
        """Whether it listed that model."""
        return model in self._models

    async def refresh(self) -> None:
        """Ask for its models; trouble is remembered, and logged when it changes."""
        try:
            with trio.fail_after(LIST_SECONDS):
                content = await get_json(self._client, "models")
            listed = msgspec.json.decode(content, type=_Models).data
        except trio.TooSlowError:
            self._note(f"{self.upstream.name} does not answer when it is asked for its models")
            return
        except (SilentUpstreamError, RefusedError, CallError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._note(f"{self.upstream.name} does not list its models ({said(error)})")
            return
        self._note("")
        wanted = self.upstream.models
        self._models = {
            model.id: model.max_model_len or 0
            for model in listed[:MODELS_MAX]
            if not wanted or any(fnmatchcase(model.id, pattern) for pattern in wanted)
        }

    def _note(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.warning("%s.", trouble)
        elif self._trouble and not trouble:
            log.info("%s is back.", self.upstream.name)
        self._trouble = trouble

    async def generate(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        """See `Backend.generate`."""
        self._running[request.model] = self._running.get(request.model, 0) + 1
        try:
            await self._answer(request, emit)
        except RefusedError as error:
            raise refusal(error.status, error.body, error.headers.get("retry-after", "")) from error
        except SilentUpstreamError as error:
            raise CallError(
                "upstream", f"The server {self.upstream.name} cannot be reached ({error}).", reason="unreachable"
            ) from error
        finally:
            self._running[request.model] -= 1

    async def _answer(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        body = request_body(
            request, request.model, local=self.upstream.local, max_tokens_field=self.upstream.max_tokens_field
        )
        reader = AnswerReader(estimated_tokens(request))

        async def on_event(event: bytes) -> None:
            if delta := reader.receive(event):
                await emit(delta)

        try:
            await post_events(self._client, "chat/completions", body, on_event, self._patience)
        except SilentUpstreamError:
            # Once: a kept connection that the server had closed meanwhile fails like this, and nothing was answered.
            await post_events(self._client, "chat/completions", body, on_event, self._patience)
        await emit(reader.end())


class OpenAiBackend:
    """See `Backend`; where two upstreams have the same model, the first configured answers."""

    name = "openai"

    def __init__(self, servers: list[Server]) -> None:
        self._servers = servers

    def models(self) -> tuple[ModelStatus, ...]:
        """See `Backend.models`."""
        found: dict[str, ModelStatus] = {}
        for server in self._servers:
            for status in server.statuses():
                found.setdefault(status.name, status)
        return tuple(found.values())

    async def generate(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        """See `Backend.generate`."""
        for server in self._servers:
            if server.has(request.model):
                await server.generate(request, emit)
                return
        raise CallError("not_found", f"No upstream has a model {request.model!r}.", reason="model_not_found")

    async def pull(self, model: str, report: Report) -> None:
        """What an upstream has is its own affair."""
        raise CallError("unsupported", f"An OpenAI-compatible server cannot be told to fetch {model[:200]!r}.")


def said(error: Exception) -> str:
    """A failure in a few words."""
    if isinstance(error, RefusedError):
        return "it refuses our key" if error.status in {401, 403} else f"status {error.status}"
    return "no list of models" if isinstance(error, (msgspec.MsgspecError, UnicodeDecodeError)) else str(error)


def read_key(upstream: Upstream) -> str:
    """The upstream's key, "" for none.

    Raises:
        CallError: `invalid`: it was promised and is not there.
    """
    if upstream.api_key_env:
        key = os.environ.get(upstream.api_key_env, "")
        if not key:
            raise CallError(
                "invalid",
                f"The upstream {upstream.name} wants its key in the environment variable {upstream.api_key_env}, which "
                "is not set.",
            )
        return key
    if not upstream.api_key_file:
        return ""
    try:
        with Path(upstream.api_key_file).expanduser().open("rb") as file:
            key = file.read(KEY_BYTES_MAX).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CallError(
            "invalid", f"The key file of {upstream.name}, {upstream.api_key_file}, cannot be read."
        ) from error
    if not key:
        raise CallError("invalid", f"The key file of {upstream.name}, {upstream.api_key_file}, is empty.")
    return key


def open_server_client(upstream: Upstream) -> httpx.AsyncClient:
    """The client of one upstream; closed by the caller.

    Raises:
        CallError: `invalid`: its URL or key is unusable.
    """
    try:
        url = httpx.URL(upstream.base_url.rstrip("/") + "/")
    except httpx.InvalidURL as error:
        raise CallError("invalid", f"The `base_url` of {upstream.name} is not a URL.") from error
    if url.scheme not in {"http", "https"} or not url.host or url.userinfo:
        raise CallError(
            "invalid", f"The `base_url` of {upstream.name} must be http(s)://HOST/v1; a key goes into `api_key_env`."
        )
    key = read_key(upstream)
    if key and url.scheme == "http" and not is_private(url.host):
        raise CallError("invalid", f"The key of {upstream.name} would cross the Internet in the clear: use https.")
    return httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(15.0, connect=upstream.connect_seconds),
        # Local servers close connections that they promised to keep; a handshake costs something with TLS alone.
        transport=tcp_connections(tls=url.scheme == "https", idle_max=IDLE_MAX if url.scheme == "https" else 0),
    )


def is_private(host: str) -> bool:
    """Whether a host is this machine or one of a private network: there, plain HTTP is the custom."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost" or "." not in host or host.endswith((".local", ".lan", ".internal", ".home.arpa"))


@asynccontextmanager
async def open_openai(config: OpenAiConfig, parts: BackendParts) -> AsyncGenerator[Backend, None]:
    """Open the back end; each upstream is asked once before, if it answers soon, and then every `refresh_seconds`.

    Raises:
        CallError: `invalid`: an upstream's settings are unusable.
    """
    clients = [await trio.to_thread.run_sync(open_server_client, upstream) for upstream in config.upstreams]
    try:
        servers = [Server(upstream, client) for upstream, client in zip(config.upstreams, clients, strict=True)]
        async with trio.open_nursery() as nursery:
            for server in servers:
                nursery.start_soon(_keep_fresh, server, config.refresh_seconds)
            with trio.move_on_after(FIRST_SECONDS):
                for server in servers:
                    await server.asked.wait()
            yield OpenAiBackend(servers)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            for client in clients:
                await client.aclose()


async def _keep_fresh(server: Server, seconds: float) -> None:
    while True:
        await server.refresh()
        server.asked.set()
        await trio.sleep(seconds)


BACKEND = BackendPlugin("openai", OpenAiConfig, open_openai)
