"""What a key may be made to allow. Pure."""

import re

import msgspec

from covey.contracts.auth import KEY_MODELS_MAX, CreateKey, KeyLimits
from covey.contracts.feeds import KeyCreate
from covey.contracts.inference import MODEL_NAME_PATTERN
from covey.errors import CallError
from covey.store.key_check import KEY_AUTHOR

REQUESTS_PER_MINUTE_MAX = 1_000_000

_MODEL = re.compile(MODEL_NAME_PATTERN)


class Scope(msgspec.Struct, frozen=True):
    """What a key allows. `models` empty: every model; `expires_at` in Unix seconds, `None`: never."""

    models: tuple[str, ...]
    expires_at: int | None
    limits: KeyLimits
    admin: bool


def asked_scope(request: CreateKey, now: int, seconds_max: int) -> Scope:
    """What a request asks for; `invalid`, with the field, where it is malformed."""
    models = tuple(dict.fromkeys(request.models))
    if len(models) > KEY_MODELS_MAX:
        raise CallError(
            "invalid", f"A key names at most {KEY_MODELS_MAX} models; none means every model.", param="models"
        )
    for model in models:
        if _MODEL.fullmatch(model) is None:
            raise CallError("invalid", f"{model[:80]!r} is no model's name.", param="models")
    expires = request.expires_seconds
    if expires is not None and not 1 <= expires <= seconds_max:
        raise CallError("invalid", f"A key lasts 1 to {seconds_max} seconds, or for ever.", param="expires_seconds")
    per_minute = request.limits.requests_per_minute
    if per_minute is not None and not 1 <= per_minute <= REQUESTS_PER_MINUTE_MAX:
        raise CallError(
            "invalid",
            f"A limit is 1 to {REQUESTS_PER_MINUTE_MAX} requests a minute, or none.",
            param="limits.requests_per_minute",
        )
    if request.admin and models:
        message = "An administrator's key is not held to some models: leave them out, or make it a plain key."
        raise CallError("invalid", message, param="models")
    return Scope(models, None if expires is None else now + expires, request.limits, request.admin)


def child_scope(parent: KeyCreate, asked: Scope) -> Scope:
    """What a key that is made with another key gets: what is left open is the parent's, and nothing exceeds it.

    Raises:
        CallError: `forbidden`. A key that was made with a key makes none itself; neither does one with a rate limit:
            its children would multiply it.
    """
    if parent.by.startswith(KEY_AUTHOR):
        raise _exceeds("A key that was made with a key cannot make keys.", "actor")
    if parent.limits != KeyLimits():
        raise _exceeds("A key with a rate limit cannot make keys.", "actor")
    if asked.admin:
        raise _exceeds("This key is not an administrator's, and cannot make one that is.", "admin")
    if parent.models and not set(asked.models) <= set(parent.models):
        raise _exceeds("This key cannot make one for models that it may not use itself.", "models")
    if parent.expires_at is not None and asked.expires_at is not None and asked.expires_at > parent.expires_at:
        raise _exceeds("This key cannot make one that outlives it.", "expires_seconds")
    return Scope(
        models=asked.models or parent.models,
        expires_at=parent.expires_at if asked.expires_at is None else asked.expires_at,
        limits=asked.limits,
        admin=False,
    )


def _exceeds(message: str, param: str) -> CallError:
    return CallError("forbidden", message, reason="scope", param=param)
