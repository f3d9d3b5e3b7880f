"""The key of those clients that can send none: `[gateway] loopback_key_file` or `loopback_key_env`; off by default.

It stands in for requests without a credential, from programs on this very machine alone. A web page in a browser on
this machine is no such program, nor is whoever comes through a proxy on it.
"""

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path

from covey.contracts.keys import parse
from covey.errors import CallError
from covey.http.asgi import PEER, Scope, header_values

KEY_BYTES_MAX = 4_096

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(:[0-9]{1,5})?", re.IGNORECASE)
_FORWARDING = re.compile(rb"(x-)?forwarded(-.*)?|via|x-real-ip|x-client-ip|true-client-ip|cf-connecting-ip")


def loopback_credential(scope: Scope, key: str) -> str | None:
    """The key that a request is given, or `None` where it has to bring its own.

    Args:
        scope: the request's; `client` is the peer of its connection, never what a header claims.
        key: of the configuration; "" where there is none.

    A browser tells of each request that a page of another site makes, by `Sec-Fetch-Site` or, where that is missing (an
    old browser), by `Origin` or `Referer`. One that says none of it can come from a page only as a plain GET, of which
    that page learns nothing and which changes nothing. The name that is asked for has to be loopback's own: a name that
    somebody points at this machine (DNS rebinding) or that a proxy is called by is not.
    Sources: WHATWG Fetch (Origin), W3C Fetch Metadata, RFC 7239 (Forwarded).
    """
    if not key:
        return None
    # Behind a trusted proxy the client is whom that one names: both that one and the connection's peer count.
    ends = scope.get("client"), scope.get("extensions", {}).get(PEER, scope.get("client"))
    is_near = all(end is not None and _is_loopback(end[0]) for end in ends)
    if not is_near or _brings_credential(scope):
        return None
    if any(_FORWARDING.fullmatch(name) for name, _ in scope["headers"]):
        return None
    hosts, pages = header_values(scope, b"host"), [*header_values(scope, b"origin"), *header_values(scope, b"referer")]
    if len(hosts) != 1 or not _names_loopback(hosts[0]):
        return None
    if any(_origin(page) != f"{scope.get('scheme', 'http')}://{hosts[0]}".lower() for page in pages):
        return None
    if any(site not in ("same-origin", "none") for site in header_values(scope, b"sec-fetch-site")):
        return None
    return key


def read_loopback_key(file: str, variable: str, environment: Mapping[str, str]) -> str:
    """The configured key; "" where none is.

    Raises:
        CallError: `invalid`: both places are named, or the one that is holds no API key.
    """
    if not file and not variable:
        return ""
    if file and variable:
        raise CallError("invalid", "Name one of `[gateway] loopback_key_file` and `loopback_key_env`, not both.")
    place = f"The file {file}" if file else f"The environment variable {variable}"
    if file:
        try:
            with Path(file).expanduser().open("rb") as opened:
                key = opened.read(KEY_BYTES_MAX).decode("ascii").strip()
        except (OSError, UnicodeDecodeError, RuntimeError) as error:
            raise CallError("invalid", f"{place} of `[gateway] loopback_key_file` cannot be read.") from error
    else:
        key = environment.get(variable, "").strip()
    if parse(key) is None:
        what = f"{place} holds no API key, which `[gateway]` wants there for clients that send none"
        raise CallError("invalid", f"{what}: make one with covey keys create, or leave it out.")
    return key


def _brings_credential(scope: Scope) -> bool:
    """Whether it says anything where a credential belongs, a wrong one too; `Bearer` and nothing more is nothing."""
    if any(value.strip().lower() not in ("", "bearer") for value in header_values(scope, b"authorization")):
        return True
    return any(value.strip() for name in (b"x-api-key", b"api-key") for value in header_values(scope, name))


def _origin(page: str) -> str:
    scheme, _, rest = page.lower().partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def _names_loopback(host: str) -> bool:
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match[1].lower().strip("[]")
    return name == "localhost" or name.endswith(".localhost") or _is_loopback(name)


def _is_loopback(address: str) -> bool:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
