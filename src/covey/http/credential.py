"""The one credential extractor: for every path, every application and every spelling."""

from covey.contracts.keys import INVALID_KEY
from covey.errors import CallError
from covey.http.asgi import Scope, header_values


def credential(scope: Scope) -> str:
    """The one credential of a request: `Authorization: Bearer`, `x-api-key` or `api-key`.

    Raises:
        CallError: `unauthenticated` where there is none, or where two of them differ: an alias must not slip past
            what another header was checked for.
    """
    found: set[str] = set()
    for value in header_values(scope, b"authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            found.add(token.strip())
    for name in (b"x-api-key", b"api-key"):
        found.update(value.strip() for value in header_values(scope, name) if value.strip())
    if not found:
        raise CallError(
            "unauthenticated",
            "No API key was sent. Send it as: Authorization: Bearer cvy_...",
            reason="invalid_api_key",
        )
    if len(found) > 1:
        raise CallError("unauthenticated", INVALID_KEY, reason="invalid_api_key")
    return found.pop()
