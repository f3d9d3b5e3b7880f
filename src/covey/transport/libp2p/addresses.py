"""Where nodes can be reached, as text that libp2p calls multiaddr. Pure.

Of https://github.com/multiformats/multiaddr this knows what Covey dials:
`/ip4/192.168.1.4/tcp/26840`, `/ip6/…`, `/dns/gpu.example.org/tcp/26840`, each with `/p2p/<peer id>` after it or not,
and `<address of a relay>/p2p/<relay's peer id>/p2p-circuit`, with `/p2p/<peer id>` after it or not.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from covey.transport.base import PeerId

DEFAULT_PORT = 26840
ADDRESS_LENGTH_MAX = 512
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_PEER_ID = re.compile(r"[1-9A-HJ-NP-Za-km-z]{32,64}")
_FAMILIES = {"ip4": 4, "ip6": 6}
_NAMES = ("dns", "dns4", "dns6")


@dataclass(frozen=True, slots=True)
class Address:
    """One way to a node."""

    host: str
    """An IP address, canonical, or a host's name."""
    port: int
    peer: PeerId | None = None
    """Who should answer, where the text says so."""
    relay: PeerId | None = None
    """The member who passes the bytes on and answers at `host`; `None` for a direct way."""
    kind: str = "ip4"
    """`ip4`, `ip6`, `dns`, `dns4` or `dns6`."""

    def __str__(self) -> str:
        text = f"/{self.kind}/{self.host}/tcp/{self.port}"
        if self.relay is not None:
            text += f"/p2p/{self.relay}/p2p-circuit"
        return text if self.peer is None else f"{text}/p2p/{self.peer}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine itself can use it."""
        return self.kind in _FAMILIES and ipaddress.ip_address(self.host).is_loopback


def parse_address(text: str) -> Address:
    """The reverse of `str`; `ValueError`, in words for people, for whatever else there is."""
    parts = text.split("/")
    if len(text) > ADDRESS_LENGTH_MAX or len(parts) < 5 or parts[0] or parts[3] != "tcp":
        raise ValueError(f"not an address: {text[:80]!r}; it should look like /ip4/192.168.1.4/tcp/26840")
    kind, host, port = parts[1], parts[2], parts[4]
    if kind in _FAMILIES:
        ip = ipaddress.ip_address(host)
        if ip.version != _FAMILIES[kind]:
            raise ValueError(f"{host} is no {kind} address")
        host = str(ip)
    elif kind not in _NAMES or not _HOST_NAME.fullmatch(host):
        raise ValueError(f"not an address: {text[:80]!r}; it should look like /ip4/192.168.1.4/tcp/26840")
    peers, circuit = _parse_peers(text, parts[5:])
    if circuit:
        return Address(host, parse_port(port), peers[1] if len(peers) > 1 else None, peers[0], kind)
    return Address(host, parse_port(port), peers[0] if peers else None, None, kind)


def parse_port(text: str) -> int:
    """A TCP port, 0 to 65535; `ValueError` otherwise."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError(f"{text[:20]!r} is no port")
    return int(text)


def parse_listen(text: str) -> tuple[str, int]:
    """`0.0.0.0:26840` or `[::]:26840` to host and port; a missing port is `DEFAULT_PORT`. `ValueError` otherwise."""
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError(f"{text[:60]!r} should look like [::]:{DEFAULT_PORT}")
        port = rest[1:]
    else:
        host, _, port = text.partition(":")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError as error:
        raise ValueError(f"{text[:60]!r} should look like 0.0.0.0:{DEFAULT_PORT} or [::]:{DEFAULT_PORT}") from error
    return str(ip), parse_port(port) if port else DEFAULT_PORT


def announced(bound: Iterable[tuple[str, int]], interfaces: Iterable[str]) -> tuple[Address, ...]:
    """What to tell others for the places where this node listens.

    A wildcard stands for the machine's own addresses. Loopback and link-local ones are left out, unless nothing else is
    there: only this machine can use the former, and the latter need a zone that others don't know.

    Args:
        bound: hosts and ports.
        interfaces: the machine's addresses.
    """
    own = [ipaddress.ip_address(each) for each in interfaces]
    found: dict[Address, None] = {}
    for host, port in bound:
        ip = ipaddress.ip_address(host)
        for each in [it for it in own if it.version == ip.version] if ip.is_unspecified else [ip]:
            found[Address(str(each), port, kind=f"ip{each.version}")] = None
    reachable = [each for each in found if not _is_local(each)]
    return tuple(reachable or found)


def address_of(host: str, port: int) -> Address:
    """The address of a connected socket's other end."""
    ip = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return Address(str(ip), port, kind=f"ip{ip.version}")


def accounting_key(host: str) -> str:
    """What connections are counted by: an IPv4 address, or an IPv6 /64, which is what one customer gets."""
    ip = ipaddress.ip_address(host)
    if ip.version == 4:
        return host
    return str(ipaddress.ip_network((ip, 64), strict=False))


def dial_order(addresses: Iterable[str]) -> tuple[Address, ...]:
    """The addresses that make sense, each once: direct before relayed, loopback last among the direct ones.

    What is no address is left out: peers hand on what they heard from others.
    """
    found: dict[Address, None] = {}
    for text in addresses:
        try:
            address = parse_address(text)
        except ValueError:
            continue
        if address.port:
            found[address] = None
    return tuple(sorted(found, key=lambda each: (each.relay is not None, each.is_loopback)))


def _is_local(address: Address) -> bool:
    ip = ipaddress.ip_address(address.host)
    return ip.is_loopback or ip.is_link_local


def _parse_peers(text: str, parts: list[str]) -> tuple[list[PeerId], bool]:
    peers: list[PeerId] = []
    circuit = False
    rest = iter(parts)
    for part in rest:
        if part == "p2p" and len(peers) <= circuit:
            peer = next(rest, "")
            if not _PEER_ID.fullmatch(peer):
                raise ValueError(f"{text[:80]!r} names no peer id after /p2p")
            peers.append(PeerId(peer))
        elif part == "p2p-circuit" and len(peers) == 1 and not circuit:
            circuit = True
        else:
            raise ValueError(f"Covey does not understand the address {text[:80]!r}")
    return peers, circuit
