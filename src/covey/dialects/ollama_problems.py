"""A `CallError` as Ollama's clients read it. The status is every dialect's: `covey.dialects.problems`. Pure."""

import msgspec

from covey.errors import CallError


class OllamaError(msgspec.Struct):
    """The body of an answer that is but an error, on Ollama's paths."""

    error: str


def error_body(error: CallError, model: str = "") -> bytes:
    """`{"error": "text"}`: the body of a refusal, and with a line feed the last line of a stream that broke.

    Args:
        error: what happened.
        model: the model that was asked for, where it is known: some clients look for Ollama's words of one that is
            not there.
    """
    if error.reason == "model_not_found" and model:
        return msgspec.json.encode({"error": f"model '{model}' not found"})
    return msgspec.json.encode({"error": error.message})
