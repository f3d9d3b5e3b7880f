"""What a key may be made to allow. Pure."""

import re
from collections.abc import Iterable, Mapping

import msgspec

from covey.contracts.auth import (
    KEY_MODELS_MAX,
    KEY_NODE_LABELS_MAX,
    KEY_ROUTES_MAX,
    CreateKey,
    KeyLimits,
    LimitName,
)
from covey.contracts.feeds import KeyCreate, ScopedKeyCreate
from covey.contracts.gateway import API_ROUTES, covers
from covey.contracts.inference import MODEL_NAME_PATTERN
from covey.contracts.limit_words import named, out_of_range
from covey.contracts.membership import NODE_LABEL_PATTERN
from covey.errors import CallError
from covey.nearest import suggestion
from covey.store.key_check import KEY_AUTHOR, restrictions

_MODEL = re.compile(MODEL_NAME_PATTERN)
_LABEL = re.compile(NODE_LABEL_PATTERN)


class Scope(msgspec.Struct, frozen=True):
    """What a key allows. `models` empty: every model; `expires_at` in Unix seconds, `None`: never.

    `node_labels` and `routes` as in `covey.contracts.auth.Identity`.
    """

    models: tuple[str, ...]
    expires_at: int | None
    limits: KeyLimits
    admin: bool
    node_labels: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()

    @property
    def is_old(self) -> bool:
        """Whether the first version of the operation can say it, which every node understands."""
        limited = {name for name, value in named(self.limits).items() if value is not None}
        return not self.node_labels and not self.routes and limited <= {"requests_per_minute"}


def asked_scope(request: CreateKey, now: int, seconds_max: int) -> Scope:
    """What a request asks for; `invalid`, with the field, where it is malformed."""
    models = _models(request.models)
    expires = request.expires_seconds
    if expires is not None and not 1 <= expires <= seconds_max:
        raise CallError("invalid", f"A key lasts 1 to {seconds_max} seconds, or for ever.", param="expires_seconds")
    check_limits(named(request.limits))
    node_labels, routes = _node_labels(request.node_labels), _routes(request.routes)
    held = {"models": models, "node_labels": node_labels, "routes": routes}
    for param, values in held.items():
        if request.admin and values:
            what = param.replace("_", " ")
            message = f"An administrator's key is not held to some {what}: leave them out, or make it a plain key."
            raise CallError("invalid", message, param=param)
    expires_at = None if expires is None else now + expires
    return Scope(models, expires_at, request.limits, request.admin, node_labels, routes)


def check_limits(limits: Mapping[LimitName, int | None]) -> None:
    """Raise `invalid` for the first that cannot be a limit."""
    if (wrong := out_of_range(limits)) is not None:
        name, message = wrong
        raise CallError("invalid", message, param=f"limits.{name}")


def check_label(label: str, param: str) -> None:
    """Raise `invalid` for what cannot be a node's label."""
    if _LABEL.fullmatch(label) is None:
        message = f"{label[:80]!r} is no label: it is 1 to 32 lower-case letters, digits and dashes."
        raise CallError("invalid", message, param=param)


def _models(asked: Iterable[str]) -> tuple[str, ...]:
    models = tuple(dict.fromkeys(asked))
    if len(models) > KEY_MODELS_MAX:
        raise CallError(
            "invalid", f"A key names at most {KEY_MODELS_MAX} models; none means every model.", param="models"
        )
    for model in models:
        if _MODEL.fullmatch(model) is None:
            raise CallError("invalid", f"{model[:80]!r} is no model's name.", param="models")
    return models


def _node_labels(asked: Iterable[str]) -> tuple[str, ...]:
    labels = tuple(dict.fromkeys(asked))
    if len(labels) > KEY_NODE_LABELS_MAX:
        message = f"A key names at most {KEY_NODE_LABELS_MAX} labels of nodes; none means every node."
        raise CallError("invalid", message, param="node_labels")
    for label in labels:
        check_label(label, "node_labels")
    return labels


def _routes(asked: Iterable[str]) -> tuple[str, ...]:
    routes = tuple(dict.fromkeys(asked))
    if len(routes) > KEY_ROUTES_MAX:
        message = f"A key names at most {KEY_ROUTES_MAX} routes; none means every route."
        raise CallError("invalid", message, param="routes")
    for route in routes:
        if not any(covers(route, known) for known in API_ROUTES):
            nearest = suggestion(route[:80], API_ROUTES)
            message = f"The API has no route {route[:80]!r}{nearest}. All that begin alike: /v1/*"
            raise CallError("invalid", message, param="routes")
    return routes


def child_scope(parent: KeyCreate, asked: Scope) -> Scope:
    """What a key that is made with another key gets: what is left open is the parent's, and nothing exceeds it.

    Raises:
        CallError: `forbidden`. A key that was made with a key makes none itself; neither does one with a limit: its
            children would multiply it.
    """
    if parent.by.startswith(KEY_AUTHOR):
        raise _exceeds("A key that was made with a key cannot make keys.", "actor")
    if parent.limits != KeyLimits():
        raise _exceeds("A key with a limit cannot make keys.", "actor")
    if asked.admin:
        raise _exceeds("This key is not an administrator's, and cannot make one that is.", "admin")
    node_labels, routes = restrictions(parent)
    if parent.models and not set(asked.models) <= set(parent.models):
        raise _exceeds("This key cannot make one for models that it may not use itself.", "models")
    if node_labels and not set(asked.node_labels) <= set(node_labels):
        raise _exceeds("This key cannot make one for nodes that it may not use itself.", "node_labels")
    if routes and not all(any(covers(held, route) for held in routes) for route in asked.routes):
        raise _exceeds("This key cannot make one for routes that it may not use itself.", "routes")
    if parent.expires_at is not None and asked.expires_at is not None and asked.expires_at > parent.expires_at:
        raise _exceeds("This key cannot make one that outlives it.", "expires_seconds")
    return Scope(
        models=asked.models or parent.models,
        expires_at=parent.expires_at if asked.expires_at is None else asked.expires_at,
        limits=asked.limits,
        admin=False,
        node_labels=asked.node_labels or node_labels,
        routes=asked.routes or routes,
    )


def creation(scope: Scope, plain: KeyCreate) -> KeyCreate:
    """The operation that makes a key of this scope: of the first version wherever that says it all."""
    if scope.is_old:
        return plain
    fields = {name: getattr(plain, name) for name in KeyCreate.__struct_fields__}
    return ScopedKeyCreate(**fields, node_labels=scope.node_labels, routes=scope.routes)


def _exceeds(message: str, param: str) -> CallError:
    return CallError("forbidden", message, reason="scope", param=param)
