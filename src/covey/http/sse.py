"""Server-sent events, as OpenAI's clients read them (WHATWG HTML, section 9.2)."""

CONTENT_TYPE = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
"""A comment line: keeps an idle stream open while a prompt is evaluated."""

HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", CONTENT_TYPE.encode()),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold tokens back
]


def event(data: bytes, name: str = "") -> bytes:
    """One event. `data` must not contain a line break: JSON does not."""
    prefix = b"event: " + name.encode() + b"\n" if name else b""
    return prefix + b"data: " + data + b"\n\n"
