"""What Ollama's API tells of models and of itself: `/api/tags`, `/api/ps`, `/api/show`, `/api/version`. Pure.

Source: Ollama's API reference, "List Local Models", "List Running Models", "Show Model Information", "Version". What
the cluster does not know of a model (its size, family, template) is there, and empty: clients read the fields.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from covey.contracts.gateway import ModelSummary
from covey.dialects.bodies import decode, model_name
from covey.dialects.ollama_writer import YEAR_9999, timestamp
from covey.errors import CallError

API_VERSION = "0.13.0"
"""The version of Ollama whose API this is: clients want to know whether it has tools, thinking, probabilities."""
ARCHITECTURE = "unknown"
"""Clients look for `<general.architecture>.context_length`, whatever that is."""

_WORDS = {"chat": "completion", "completion": "completion", "tools": "tools", "vision": "vision", "embed": "embedding"}
_encode = msgspec.json.Encoder().encode


class ShowBody(msgspec.Struct):
    """What a client sends; older ones say `name`."""

    model: str | None = None
    name: str | None = None


_show_decoder = msgspec.json.Decoder(ShowBody)


def parse_show(body: bytes) -> str:
    """The model that `/api/show` asks for; `name` is what older clients call it.

    Raises:
        CallError: `invalid`, with `param` naming the field.
    """
    sent = decode(body, _show_decoder)
    name = sent.model or sent.name
    if name is None:
        raise CallError("invalid", "model is required.", param="model")
    return model_name(name)


def tags(models: Iterable[ModelSummary]) -> bytes:
    """The answer of `GET /api/tags`: every model."""
    return _encode({"models": [_listed(model) for model in models]})


def running(models: Iterable[ModelSummary]) -> bytes:
    """The answer of `GET /api/ps`: those that are loaded. None says when it will go, so all stay "for ever"."""
    return _encode(
        {
            "models": [
                {
                    **_listed(model),
                    "expires_at": timestamp(YEAR_9999),
                    "size_vram": 0,
                    "context_length": model.context_tokens,
                }
                for model in models
                if model.state in ("loaded", "remote")
            ]
        }
    )


def shown(model: ModelSummary) -> bytes:
    """The answer of `POST /api/show`."""
    info: dict[str, Any] = {"general.architecture": ARCHITECTURE, "general.basename": model.name}
    if model.context_tokens:
        info[f"{ARCHITECTURE}.context_length"] = model.context_tokens
    return _encode(
        {
            "license": "",
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": _details(),
            "model_info": info,
            "capabilities": _capabilities(model),
            "modified_at": timestamp(model.created_at),
        }
    )


def version() -> bytes:
    """The answer of `GET /api/version`."""
    return _encode({"version": API_VERSION})


def _listed(model: ModelSummary) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": timestamp(model.created_at),
        "size": 0,
        "digest": "",
        "details": _details(),
        "capabilities": _capabilities(model),
    }


def _capabilities(model: ModelSummary) -> list[str]:
    return list(dict.fromkeys(_WORDS[word] for word in model.capabilities if word in _WORDS))


def _details() -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "",
        "family": "",
        "families": list[str](),
        "parameter_size": "",
        "quantization_level": "",
    }
