"""A `CallError` as HTTP tells it: status and headers. The table and the bodies are `covey.dialects.problems`'s."""

import math
from collections.abc import Mapping

from covey.dialects.problems import TABLE
from covey.errors import CallError

STATUS_BY_REASON: Mapping[str, int] = {
    "method_not_allowed": 405,
    "slow_body": 408,
    "content_type": 415,
}
"""Refusals of HTTP itself, which the bus has no code for."""

_RETRYABLE = frozenset({"rate_limited", "loading", "no_capacity", "draining", "unreachable"})


RETRY_SECONDS_MAX = 1e12
"""What a node far away says may be any number."""


def status_of(error: CallError) -> int:
    """The HTTP status of an error."""
    return STATUS_BY_REASON.get(error.reason, TABLE[error.code][0])


def headers_of(error: CallError) -> list[tuple[bytes, bytes]]:
    """What tells a client whether and when to try again; openai-python reads all three."""
    headers: list[tuple[bytes, bytes]] = []
    if error.code == "unauthenticated":
        headers.append((b"www-authenticate", b"Bearer"))
    if error.retry_after_seconds is not None and math.isfinite(error.retry_after_seconds):  # it may come from afar
        seconds = min(max(error.retry_after_seconds, 0.001), RETRY_SECONDS_MAX)
        headers.append((b"retry-after", str(math.ceil(seconds)).encode()))
        headers.append((b"retry-after-ms", str(math.ceil(seconds * 1000)).encode()))
    worth_it = error.code in _RETRYABLE and error.reason != "insufficient_quota"
    if error.code == "rate_limited" and error.retry_after_seconds is None:
        worth_it = False  # it is larger than the limit, and will be
    headers.append((b"x-should-retry", b"true" if worth_it else b"false"))
    return headers
