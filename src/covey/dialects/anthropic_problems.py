"""A `CallError` as Anthropic's clients read it. The status is every dialect's: `covey.dialects.problems`. Pure.

Source: the Anthropic API reference, "Errors".
"""

from collections.abc import Mapping

import msgspec

from covey.errors import CallError, Code

TYPES: Mapping[Code, str] = {
    "invalid": "invalid_request_error",
    "unsupported": "invalid_request_error",
    "unauthenticated": "authentication_error",
    "forbidden": "permission_error",
    "denied": "permission_error",
    "not_found": "not_found_error",
    "conflict": "invalid_request_error",
    "too_large": "request_too_large",
    "rate_limited": "rate_limit_error",
    "loading": "overloaded_error",
    "no_capacity": "overloaded_error",
    "draining": "overloaded_error",
    "unreachable": "overloaded_error",
    "storage": "overloaded_error",
    "peer_lost": "api_error",
    "upstream": "api_error",
    "protocol": "api_error",
    "deadline": "timeout_error",
    "internal": "api_error",
}


class AnthropicProblem(msgspec.Struct):
    """An error as Anthropic's API tells it."""

    type: str
    message: str


class AnthropicError(msgspec.Struct):
    """The body of an answer that is but an error, on Anthropic's paths."""

    error: AnthropicProblem
    type: str = "error"


def error_body(error: CallError) -> bytes:
    """`{"type": "error", "error": {"type", "message"}}`: of a refusal, or the data of a stream's last event."""
    return msgspec.json.encode({"type": "error", "error": {"type": TYPES[error.code], "message": error.message}})
