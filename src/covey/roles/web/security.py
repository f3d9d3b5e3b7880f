"""What the browser is told, and what it must prove, before a page changes anything. Pure."""

import hashlib
import hmac
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

Access = Literal["anyone", "person", "admin"]

ACCESS: Mapping[str, Access] = {
    "static_file": "anyone",
    "entry.set_up_page": "anyone",
    "entry.set_up": "anyone",
    "entry.log_in_page": "anyone",
    "entry.log_in": "anyone",
    "entry.register_page": "anyone",
    "entry.register": "anyone",
    "entry.log_out": "person",
    "overview.page": "person",
    "overview.live": "person",
    "keys.page": "person",
    "keys.create": "person",
    "keys.revoke": "person",
    "chat.page": "person",
    "chat.stream": "person",
    "usage.page": "person",
    "usage.totals": "person",
    "usage.requests": "person",
    "account.page": "person",
    "account.change_password": "person",
    "account.rename": "person",
    "people.page": "admin",
    "people.add": "admin",
    "people.invite": "admin",
    "people.set_standing": "admin",
    "people.limit": "admin",
    "people.reset_password": "admin",
    "machines.page": "admin",
    "machines.live": "admin",
    "machines.invite": "admin",
    "machines.revoke_invite": "admin",
    "machines.rename": "admin",
    "machines.label": "admin",
    "machines.drain": "admin",
    "machines.remove": "admin",
    "audit.page": "admin",
}
"""Who may open what, by endpoint: an endpoint that is not here does not start (`covey.roles.web.app`).

A courtesy only: the auth role checks every call against the session that it carries.
"""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
FORM_BYTES_MAX = 64_000
CSRF_FIELD = "csrf"
CSRF_HEADER = "X-CSRF-Token"

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # Pico draws its chevrons and ticks with data: images
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not `no-referrer`: with it browsers send `Origin: null` with our own forms, and over plain HTTP on a LAN, where
    # there is no Sec-Fetch-Site either, a form of ours could no longer be told from a stranger's.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""On every answer of the dashboard."""


def comes_from_us(site: str | None, origin: str | None, host: str) -> bool:
    """Whether a request that may change something was made by one of our own pages, as far as its headers tell.

    Args:
        site: the request's `Sec-Fetch-Site`.
        origin: its `Origin`.
        host: the name and port by which the browser called us; whether it is ours at all was checked before.

    Browsers send at least one of the two. A program may send neither; it still needs the CSRF token.
    Source: OWASP, Cross-Site Request Forgery Prevention; W3C, Fetch Metadata.
    """
    if site not in (None, "same-origin", "none"):
        return False
    # The host alone: behind a proxy that ends TLS, the browser's scheme is not the one we were called with.
    return origin is None or origin.partition("://")[2].lower() == host.lower()


def csrf_token(binding: str) -> str:
    """The token for forms of one session.

    Args:
        binding: a secret that only the browser's cookie and we hold: the session's token, or an anonymous one.

    Derived, not stored: every node that serves the dashboard agrees on it, and it says nothing of the secret.
    """
    return hmac.new(binding.encode(), b"covey dashboard form", hashlib.sha256).hexdigest()


def csrf_matches(binding: str, token: str) -> bool:
    """Whether a form's token belongs to this session; never for an empty binding."""
    return bool(binding) and hmac.compare_digest(csrf_token(binding).encode(), token.encode())


def local_path(target: str) -> str:
    """Where to go after logging in: a path of ours, or "/" for anything that could lead elsewhere."""
    parts = urlsplit(target) if target.startswith("/") and not target.startswith(("//", "/\\")) else None
    if parts is None or parts.scheme or parts.netloc or any(ord(char) < 33 or char == "\\" for char in target):
        return "/"
    return target
