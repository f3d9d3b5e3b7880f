"""What the errors of model servers mean for our caller. Pure."""

import re
from typing import Any

import msgspec

from covey.errors import CallError
from covey.telemetry.logs import redact

RETRY_SECONDS_MAX = 3_600
_SECONDS = re.compile("[0-9]{1,9}")
_TOO_LONG = re.compile("maximum context length|is too large to process")


def refusal(status: int, body: bytes, retry_after: str = "") -> CallError:
    """What a server's error means for our caller."""
    message, kind, known = _error_of(body)
    said = f": {message}" if message else ""
    wait = float(min(int(retry_after), RETRY_SECONDS_MAX)) if _SECONDS.fullmatch(retry_after) else None
    if kind in {"exceed_context_size_error", "context_length_exceeded"} or _TOO_LONG.search(message):
        return context_exceeded(known.get("n_ctx", 0), known.get("n_prompt_tokens", 0), message)
    if kind == "not_supported_error":
        return CallError("unsupported", f"The model server cannot do this{said}")
    if status == 503 and "loading" in message.lower():
        return CallError("loading", "The model server is still loading the model.", retry_after_seconds=wait or 5.0)
    if status in {400, 422}:
        return CallError("invalid", f"The model server refused the request{said}")
    if status in {401, 403}:
        return CallError("upstream", "The model server refused this node's key; check the back end's `api_key_env`.")
    if status == 404:
        return CallError("not_found", f"The model server does not have this model{said}", reason="model_not_found")
    if status == 413:
        return CallError("too_large", "The model server found the request too large.")
    if status in {429, 503}:
        return CallError("no_capacity", f"The model server is busy{said}", retry_after_seconds=wait or 5.0)
    return CallError("upstream", f"The model server failed (status {status}){said}")


def context_exceeded(context_tokens: int, prompt_tokens: int, said: str = "") -> CallError:
    """The `invalid` that clients recognise by its words."""
    if context_tokens:
        said = (
            f"This model's maximum context length is {context_tokens} tokens, but the prompt is {prompt_tokens} "
            "tokens long. Shorten them or choose a model with a longer context."
        )
    elif "This model's maximum context length is" not in said:
        said = f"This model's maximum context length is exceeded: {said}"
    return CallError("invalid", said, reason="context_length_exceeded", param="messages")


def _error_of(body: bytes) -> tuple[str, str, dict[str, int]]:
    """Message, kind and numbers out of an error's body, in any of the shapes that servers use."""
    try:
        found = msgspec.json.decode(body, type=dict[str, Any])
        inner: object = found.get("error", found)
        if isinstance(inner, str):
            return _clean(inner), "", {}
        fields = msgspec.convert(inner, dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return "", "", {}
    numbers = {name: value for name, value in fields.items() if type(value) is int}
    code = fields.get("code")
    kind = code if isinstance(code, str) else str(fields.get("type") or "")
    return _clean(str(fields.get("message") or fields.get("detail") or "")), kind, numbers


def _clean(text: str) -> str:
    return redact(" ".join(text.split()))[:300]
