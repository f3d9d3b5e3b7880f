"""The arguments of a call, for the dialects that tell them as an object; ours are text. Pure."""

from typing import Any, cast

import msgspec

UNREADABLE = "INVALID_JSON"
"""The key under which arguments stand that are no JSON object, as Anthropic advises its own clients to hand them on."""
ARGUMENTS_BYTES_MAX = 4_000_000
"""Of one call in a conversation: a model may have written a whole file."""


def arguments_object(text: str) -> dict[str, Any]:
    """What the model wrote, as an object; "" is an empty one.

    A small model, or one that was cut off, may write what is no object: that is kept, under `UNREADABLE`.
    """
    if not text.strip():
        return {}
    try:
        value = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        value = None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {UNREADABLE: text}
