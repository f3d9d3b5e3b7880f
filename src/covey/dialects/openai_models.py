"""The answers of `GET /v1/models` and `GET /v1/models/{id}`: OpenAI's model object, with a few fields of ours. Pure."""

from collections.abc import Iterable
from typing import Any

from covey.contracts.gateway import ModelSummary
from covey.dialects.openai_shapes import encode


def model_object(model: ModelSummary) -> dict[str, Any]:
    """One model, with a few fields of ours behind OpenAI's."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_at,
        "owned_by": "covey",
        "state": model.state,
        "capabilities": model.capabilities,
        "context_length": model.context_tokens or None,
    }


def model_list(models: Iterable[ModelSummary]) -> bytes:
    """The answer of `GET /v1/models`."""
    return encode({"object": "list", "data": [model_object(model) for model in models]})


def model_one(model: ModelSummary) -> bytes:
    """The answer of `GET /v1/models/{id}`."""
    return encode(model_object(model))
