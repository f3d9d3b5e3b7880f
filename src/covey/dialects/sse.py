"""Server-sent events, as clients of these APIs read them (WHATWG HTML, section 9.2). Pure."""

DONE = b"data: [DONE]\n\n"
"""How OpenAI ends a stream that is complete; never sent after a failure."""
PING = b": ping\n\n"
"""A comment line: keeps an idle stream open while a prompt is evaluated."""


def event(data: bytes, name: str = "") -> bytes:
    """One event. `data` must not contain a line break: JSON does not."""
    prefix = b"event: " + name.encode() + b"\n" if name else b""
    return prefix + b"data: " + data + b"\n\n"
