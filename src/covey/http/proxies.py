"""Who is behind a proxy: the headers by which it tells, believed from trusted peers alone.

Sources: RFC 7239 (Forwarded); X-Forwarded-For, -Proto and -Host as nginx, Caddy and HAProxy write them.
"""

import ipaddress
import re
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

ProxyHeader = Literal["x-forwarded-for", "forwarded"]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
HOPS_MAX = 32
"""How many addresses of a header are looked at, from its end."""
_PAIR = re.compile(r'\s*(?P<name>[A-Za-z]+)=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^\s";,]*))\s*')


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of a request's way: who asked there, and by which scheme and name; empty where it does not say."""

    address: str = ""
    scheme: str = ""
    host: str = ""


class Proxies:
    """The peers that may say whom they speak for.

    Args:
        trusted: addresses and networks, `10.0.0.0/8`. `ValueError` for what is neither.
        header: which of the two ways they tell it. Only that one is read: a proxy that writes the one passes on the
            other as its client, who may be anybody, wrote it.
    """

    def __init__(self, trusted: Iterable[str] = (), header: ProxyHeader = "x-forwarded-for") -> None:
        self._networks = tuple(ipaddress.ip_network(each, strict=False) for each in trusted)
        self._header = header

    def __bool__(self) -> bool:
        """Whether any is trusted."""
        return bool(self._networks)

    def trusts(self, address: str) -> bool:
        """Whether a peer's word counts."""
        parsed = _parse(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def apply(self, scope: MutableMapping[str, Any]) -> None:
        """Rewrite `client`, `scheme` and the Host header of an ASGI scope whose peer is trusted; leave others alone."""
        peer = scope["client"]
        if not peer or not self.trusts(peer[0]):
            return
        hops = self._hops(scope["headers"])
        origin = self._origin(hops)
        if origin is None:
            return
        if origin.address:
            scope["client"] = (origin.address, 0)
        if origin.scheme in ("http", "https"):
            scope["scheme"] = origin.scheme
        if origin.host:
            host = origin.host.encode("latin-1")
            scope["headers"] = [(b"host", host), *(pair for pair in scope["headers"] if pair[0] != b"host")]

    def _origin(self, hops: list[Hop]) -> Hop | None:
        """The hop nearest to us that no trusted proxy asked at: what stands before it, anybody may have written."""
        found: Hop | None = None
        for hop in reversed(hops[-HOPS_MAX:]):
            if hop.address and _parse(hop.address) is None:
                # "unknown", or a name that hides it: what it says of the request is still its proxy's word.
                return Hop(found.address if found else "", hop.scheme, hop.host)
            found = hop
            if not self.trusts(hop.address):
                break
        return found

    def _hops(self, headers: Iterable[tuple[bytes, bytes]]) -> list[Hop]:
        if self._header == "forwarded":
            return parse_forwarded(_joined(headers, b"forwarded"))
        addresses = [bare_address(each) for each in _joined(headers, b"x-forwarded-for").split(",") if each.strip()]
        # These two are set by the nearest proxy, whatever the number of addresses.
        scheme = _joined(headers, b"x-forwarded-proto").rpartition(",")[2].strip().lower()
        host = _joined(headers, b"x-forwarded-host").rpartition(",")[2].strip()
        return [Hop(address, scheme, host) for address in addresses or [""]]


def parse_forwarded(text: str) -> list[Hop]:
    """The elements of a `Forwarded` header, the nearest last; none of it where any is malformed."""
    hops: list[Hop] = []
    at, pairs = 0, dict[str, str]()
    while text.strip() and at <= len(text):
        match = _PAIR.match(text, at)
        if match is None:
            return []
        pairs[match["name"].lower()] = match["token"] or re.sub(r"\\(.)", r"\1", match["quoted"] or "")
        separator = text[match.end() : match.end() + 1]
        at = match.end() + 1
        if separator in ("", ","):
            address = bare_address(pairs.get("for", ""))
            hops.append(Hop(address, pairs.get("proto", "").lower(), pairs.get("host", "")))
            pairs = {}
        elif separator != ";":
            return []
    return hops


def bare_address(text: str) -> str:
    """An address as the two headers write it, without port and brackets; what is none is left as it is."""
    text = text.strip()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _parse(address: str) -> Address | None:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    # A socket for both families shows its IPv4 peers in the other's dress.
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _joined(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> str:
    return ",".join(value.decode("latin-1") for key, value in headers if key == name)
