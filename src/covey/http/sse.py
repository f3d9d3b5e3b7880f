"""The head of a stream of server-sent events; the events themselves are `covey.dialects.sse`'s."""

CONTENT_TYPE = "text/event-stream; charset=utf-8"

HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", CONTENT_TYPE.encode()),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold tokens back
]
