"""A `CallError` as HTTP tells it: status, OpenAI's type and code, headers. One table; only bodies differ by dialect."""

import math
from collections.abc import Mapping

import msgspec

from covey.errors import CallError, Code

# code -> (status, type, code for clients unless the error carries a `reason`)
TABLE: Mapping[Code, tuple[int, str, str]] = {
    "invalid": (400, "invalid_request_error", "invalid_value"),
    "unsupported": (400, "invalid_request_error", "unsupported_value"),
    "unauthenticated": (401, "authentication_error", "invalid_api_key"),
    "forbidden": (403, "permission_error", "forbidden"),
    "denied": (403, "permission_error", "route_not_allowed"),
    "not_found": (404, "invalid_request_error", "not_found"),
    "conflict": (409, "invalid_request_error", "conflict"),
    "too_large": (413, "invalid_request_error", "request_too_large"),
    "rate_limited": (429, "rate_limit_error", "requests"),
    "loading": (503, "service_unavailable", "model_loading"),
    "no_capacity": (503, "service_unavailable", "no_capacity"),
    "draining": (503, "service_unavailable", "draining"),
    "unreachable": (503, "service_unavailable", "no_capacity"),
    "peer_lost": (502, "api_error", "upstream_lost"),
    "upstream": (502, "api_error", "upstream_failed"),
    "protocol": (502, "api_error", "upstream_failed"),
    "deadline": (504, "timeout", "timeout"),
    "storage": (503, "service_unavailable", "storage"),
    "internal": (500, "api_error", "internal_error"),
}
STATUS_BY_REASON: Mapping[str, int] = {
    "method_not_allowed": 405,
    "slow_body": 408,
    "content_type": 415,
}
"""Refusals of HTTP itself, which the bus has no code for."""

_RETRYABLE = frozenset({"rate_limited", "loading", "no_capacity", "draining", "unreachable"})


def status_of(error: CallError) -> int:
    """The HTTP status of an error."""
    return STATUS_BY_REASON.get(error.reason, TABLE[error.code][0])


def openai_body(error: CallError) -> bytes:
    """The body on OpenAI's paths: `{"error": {"message", "type", "param", "code"}}`."""
    _, kind, code = TABLE[error.code]
    return msgspec.json.encode(
        {
            "error": {
                "message": error.message,
                "type": kind,
                "param": error.param or None,
                "code": error.reason or code,
            }
        }
    )


def headers_of(error: CallError) -> list[tuple[bytes, bytes]]:
    """What tells a client whether and when to try again; openai-python reads all three."""
    headers: list[tuple[bytes, bytes]] = []
    if error.code == "unauthenticated":
        headers.append((b"www-authenticate", b"Bearer"))
    if error.retry_after_seconds is not None and math.isfinite(error.retry_after_seconds):  # it may come from afar
        seconds = max(error.retry_after_seconds, 0.001)
        headers.append((b"retry-after", str(math.ceil(seconds)).encode()))
        headers.append((b"retry-after-ms", str(math.ceil(seconds * 1000)).encode()))
    headers.append((b"x-should-retry", b"true" if error.code in _RETRYABLE else b"false"))
    return headers
