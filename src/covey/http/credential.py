"""The one credential extractor: for every path, every application and every spelling."""

from covey.contracts.keys import INVALID_KEY
from covey.errors import CallError
from covey.http.asgi import Scope

_ALIASES = (b"x-api-key", b"api-key")


def credential(scope: Scope) -> str:
    """The one credential of a request: `Authorization: Bearer`, `x-api-key` or `api-key`.

    Raises:
        CallError: `unauthenticated` where there is none, or where two of them differ: an alias must not slip past
            what another header was checked for.
    """
    found: set[str] = set()
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() != b"bearer":
                continue
        elif name in _ALIASES:
            token = value
        else:
            continue
        if said := token.decode("latin-1").strip():
            found.add(said)
    if not found:
        raise CallError(
            "unauthenticated",
            "No API key was sent. Send it as: Authorization: Bearer cvy_...",
            reason="invalid_api_key",
        )
    if len(found) > 1:
        raise CallError("unauthenticated", INVALID_KEY, reason="invalid_api_key")
    return found.pop()
