"""One OpenAI-compatible server at work: what it has, what it is asked, what it answers."""

import logging
import secrets
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated

import httpx
import msgspec
import trio

from covey.backends.capable import check_capable, no_embeddings
from covey.backends.completion_requests import chat_body, embed_body, prompt_body
from covey.backends.completions import AnswerReader
from covey.backends.engine_abilities import Abilities, ask_abilities
from covey.backends.engine_answers import answer
from covey.backends.openai_upstream import Upstream
from covey.backends.refusals import refusal
from covey.backends.sse_client import Patience, RefusedError, SilentUpstreamError, get_json, post_events, post_json
from covey.backends.vectors import TOKENS_EACH, embeds, portions, read_embeddings
from covey.bus.replies import Emit
from covey.contracts.inference import Capability, ChatDelta, ChatRequest, Embeddings, EmbedRequest, ModelStatus
from covey.dialects.counting import estimated_tokens
from covey.errors import CallError

log = logging.getLogger(__name__)

MODELS_MAX = 2_000
NAME_CHARS_MAX = 200
"""No request may name a longer one."""
LIST_SECONDS = 10.0
"""The longest that a server may take to say which models it has."""
CHAT_CAPABILITIES: tuple[Capability, ...] = ("chat", "completion", "json", "logprobs", "tools", "vision")
_STRANGE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
TOKENS_EACH_AFAR = 8_192
"""A distant server is fast, and the way to it long."""


class _Model(msgspec.Struct):
    id: str
    max_model_len: Annotated[int, msgspec.Meta(ge=0, le=2**31)] | None = None  # vLLM


class _Models(msgspec.Struct):
    data: list[_Model]


@dataclass(frozen=True, slots=True)
class _Listed:
    """A model as its server lists it."""

    context_tokens: int
    embeds: bool


class Server:
    """One upstream: its client, and what it had when it was last asked."""

    def __init__(self, upstream: Upstream, client: httpx.AsyncClient) -> None:
        self.upstream = upstream
        self._client = client
        self._patience = Patience(upstream.connect_seconds, upstream.first_token_seconds, upstream.idle_seconds)
        base = client.base_url
        self._root = str(base.copy_with(path=base.path.rstrip("/").removesuffix("/v1") or "/")).rstrip("/")
        self._models: dict[str, _Listed] = {}
        self.abilities = Abilities()
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
                self._capabilities(name),
                context_tokens=listed.context_tokens,
                detail=self._trouble,
                slots=self.upstream.slots,
                in_flight=self._running.get(name, 0),
            )
            for name, listed in self._models.items()
        ]

    def _capabilities(self, name: str) -> tuple[Capability, ...]:
        if self.upstream.capabilities:
            return self.upstream.capabilities
        if self._models[name].embeds:
            return ("embed",)
        return self.abilities.capabilities if self.upstream.local else CHAT_CAPABILITIES

    @property
    def is_up(self) -> bool:
        """Whether it answered when it was last asked for its models."""
        return not self._trouble

    def has(self, model: str) -> bool:
        """Whether it listed that model."""
        return model in self._models

    async def refresh(self) -> None:
        """Ask for its models; trouble is remembered, and logged when it changes."""
        try:
            with trio.fail_after(LIST_SECONDS):
                content = await get_json(self._client, "models")
                listed = msgspec.json.decode(content, type=_Models).data
                if self.upstream.local:
                    self.abilities = await ask_abilities(self._client, self._root)
        except trio.TooSlowError:
            self._note(f"{self.upstream.name} does not answer when it is asked for its models")
            return
        except (SilentUpstreamError, RefusedError, CallError, *_STRANGE) as error:
            self._note(f"{self.upstream.name} does not list its models ({said(error)})")
            return
        self._note("")
        wanted = self.upstream.models
        self._models = {
            model.id: _Listed(model.max_model_len or 0, embeds(model.id))
            for model in listed[:MODELS_MAX]
            if 0 < len(model.id) <= NAME_CHARS_MAX
            and (not wanted or any(fnmatchcase(model.id, pattern) for pattern in wanted))
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
            check_capable(request, self._capabilities(request.model))
            try:
                await self._answer(request, emit)
            except SilentUpstreamError:
                # Once: a kept connection that the server had closed fails like this, and nothing was answered.
                await self._answer(request, emit)
        except RefusedError as error:
            raise refusal(error.status, error.body, error.headers.get("retry-after", "")) from error
        except SilentUpstreamError as error:
            raise self._unreachable(error) from error
        finally:
            self._running[request.model] -= 1

    def _unreachable(self, error: Exception) -> CallError:
        return CallError(
            "upstream", f"The server {self.upstream.name} cannot be reached ({error}).", reason="unreachable"
        )

    async def _answer(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        upstream = self.upstream
        if upstream.local:
            await answer(self._client, self.abilities, request, None, self._patience, emit, self._root)
            return
        if request.prompt is not None:
            path, body = "completions", prompt_body(request, request.prompt, request.model)
        else:
            path = "chat/completions"
            body = chat_body(request, request.model, local=False, max_tokens_field=upstream.max_tokens_field)
        reader = AnswerReader(estimated_tokens(request), f"call_{secrets.token_hex(8)}", request.logprobs)

        async def on_event(event: bytes) -> None:
            if delta := reader.receive(event):
                await emit(delta)

        await post_events(self._client, path, body, on_event, self._patience)
        await emit(reader.end())

    async def embed(self, request: EmbedRequest, emit: Emit[Embeddings]) -> None:
        """See `Backend.embed`."""
        if "embed" not in self._capabilities(request.model):
            raise no_embeddings(request.model)
        self._running[request.model] = self._running.get(request.model, 0) + 1
        try:
            for some in portions(request.inputs, TOKENS_EACH if self.upstream.local else TOKENS_EACH_AFAR):
                body = embed_body(request, some)
                with trio.fail_after(self._patience.first_seconds):
                    content = await post_json(self._client, "embeddings", body)
                await emit(read_embeddings(content, len(some)))
        except RefusedError as error:
            refused = refusal(error.status, error.body, error.headers.get("retry-after", ""))
            refused.param = "input" if refused.reason == "context_length_exceeded" else refused.param
            raise refused from error
        except SilentUpstreamError as error:
            raise self._unreachable(error) from error
        except trio.TooSlowError as error:
            raise CallError("upstream", f"The server {self.upstream.name} fell silent.", reason="silent") from error
        finally:
            self._running[request.model] -= 1


def said(error: Exception) -> str:
    """A failure in a few words."""
    if isinstance(error, RefusedError):
        return "it refuses our key" if error.status in {401, 403} else f"status {error.status}"
    return "no list of models" if isinstance(error, _STRANGE) else str(error)
