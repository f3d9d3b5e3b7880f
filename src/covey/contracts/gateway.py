"""What a gateway serves over the bus: the same admission and placement as its HTTP API, and its own figures."""

import msgspec

from covey.contracts.auth import Actor
from covey.contracts.inference import ChatDelta, ChatRequest, ModelState
from covey.contracts.method import Nothing, Party, Streaming, Unary

ASKERS: frozenset[Party] = frozenset({"web", "operator", "member"})
"""Whoever is not the operator of the gateway's own node shows a person's credential."""


API_ROUTES: tuple[str, ...] = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/v1/models/{id}",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/tags",
    "/api/version",
    "/api/ps",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
)
"""The paths that a key may be held to (`Identity.routes`)."""


def covers(pattern: str, route: str) -> bool:
    """Whether a pattern of `Identity.routes`, which may end with a `*`, takes in a route or a narrower pattern."""
    return route.startswith(pattern[:-1]) if pattern.endswith("*") else route == pattern


def may_use_route(routes: tuple[str, ...], route: str) -> bool:
    """Whether a key with these `Identity.routes` may use one of `API_ROUTES`; without any it may use all."""
    return not routes or any(covers(pattern, route) for pattern in routes)


class Completion(msgspec.Struct, frozen=True):
    """A chat on behalf of `actor` (empty: the operator). The model "" is the gateway's first one."""

    actor: Actor
    chat: ChatRequest


COMPLETE = Streaming("gateway.complete", Completion, ChatDelta, access=ASKERS, idle_seconds=420)
"""What the dashboard's chat, `covey chat` and `node.chat` use: nothing but a gateway calls CHAT."""


class ModelSummary(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model over the live cluster: its best state anywhere, and the names of the nodes that have it."""

    name: str
    state: ModelState
    capabilities: tuple[str, ...]
    nodes: tuple[str, ...]
    context_tokens: int = 0
    progress: float | None = None
    detail: str = ""
    created_at: int = 0


class ModelSummaries(msgspec.Struct, frozen=True):
    """Sorted by name."""

    models: tuple[ModelSummary, ...]


class ListModels(msgspec.Struct, frozen=True):
    """What `actor` may use."""

    actor: Actor


LIST_MODELS = Unary("gateway.list_models", ListModels, ModelSummaries, access=ASKERS, idempotent=True)


class GatewayStats(msgspec.Struct, frozen=True):
    """Since the gateway started; latencies in seconds over the recent past, `None` before the first request.

    `requests_per_second` and `tokens_per_second` are over the last ten seconds. `history` holds, for each of the
    last 60 periods of 5 s, oldest first, (requests, completion tokens).
    """

    requests: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    in_flight: int
    requests_per_second: float
    tokens_per_second: float
    first_token_p50_seconds: float | None
    first_token_p99_seconds: float | None
    request_p50_seconds: float | None
    request_p99_seconds: float | None
    history: tuple[tuple[int, int], ...]


STATS = Unary("gateway.stats", Nothing, GatewayStats, access=ASKERS, idempotent=True)
