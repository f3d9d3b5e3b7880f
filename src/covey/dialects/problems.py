"""A `CallError` as clients read it: one table for every dialect, and OpenAI's body. Pure."""

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


class OpenAiProblem(msgspec.Struct):
    """An error as OpenAI's APIs tell it. `code` is for programs, `message` for people; `param` names the field."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAiError(msgspec.Struct):
    """The body of an answer that is but an error, on OpenAI's paths."""

    error: OpenAiProblem


def openai_problem(error: CallError) -> OpenAiProblem:
    """An error in OpenAI's words."""
    _, kind, code = TABLE[error.code]
    return OpenAiProblem(error.message, kind, error.param or None, error.reason or code)


def openai_body(error: CallError) -> bytes:
    """The body on OpenAI's paths: `{"error": {"message", "type", "param", "code"}}`."""
    return msgspec.json.encode(OpenAiError(openai_problem(error)))
