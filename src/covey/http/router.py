"""One listener, many applications: who gets which path, and which Host names are ours at all."""

import ipaddress
import re
import socket
from collections.abc import Iterable
from functools import lru_cache

from covey.http.asgi import ASGIApp, Receive, Scope, Send, header_values, respond

_LABEL = "[A-Za-z0-9_-]+"
_HOST = re.compile(rf"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<name>{_LABEL}(?:\.{_LABEL})*)\.?)(?::[0-9]{{1,5}})?")


HOST_CHARS_MAX = 253 + len("[]:65535")
"""RFC 1035, 2.3.4: the longest name of a host; and its port."""
HOSTS_KNOWN_MAX = 256
"""How many Host headers are judged once: most clients send the same one for ever."""


class Router:
    """An ASGI application that hands each request to the application mounted at the longest matching prefix.

    Args:
        host_names: further names that this service is called by. Without an allow-list, a page anywhere could
            point a name of its own at our loopback address and read our answers in the visitor's browser
            (DNS rebinding: Ollama CVE-2024-28224). Addresses and `localhost` cannot be rebound, so they are let in.
    """

    def __init__(self, host_names: Iterable[str] = ()) -> None:
        own = socket.gethostname().lower()
        self._names = {"localhost", own, f"{own}.local", *(name.lower() for name in host_names)}
        self._mounts: list[tuple[str, ASGIApp]] = []
        self._judge = lru_cache(HOSTS_KNOWN_MAX)(self._judged)

    def mount(self, prefix: str, app: ASGIApp) -> None:
        """Give an application every path that is `prefix` or lies below it; "/" takes what nobody else does.

        `ValueError` where the prefix is taken. Lifespan messages are not passed on: what an application needs
        opened, its role opens.
        """
        if any(taken == prefix for taken, _ in self._mounts):
            raise ValueError(f"something is mounted at {prefix} already")
        self._mounts.append((prefix, app))
        self._mounts.sort(key=lambda mount: -len(mount[0]))

    def unmount(self, prefix: str) -> None:
        """Take an application away; none there is no error."""
        self._mounts = [mount for mount in self._mounts if mount[0] != prefix]

    @property
    def mounted(self) -> bool:
        """Whether anything at all is served."""
        return bool(self._mounts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await _no_lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        hosts = header_values(scope, b"host") or [_authority(scope)]
        ours = self.is_ours(hosts[0]) if len(hosts) == 1 else None
        if ours is None:
            # RFC 9112, 3.2: two of them, or a user's name in it, are read differently by others on the way.
            text = "The Host header is not one host name.\n"
            await respond(send, 400, text.encode(), "text/plain; charset=utf-8", [(b"connection", b"close")])
            return
        if not ours:
            text = (
                "This service is not called by that host name. Its administrator can add it"
                " in roles.toml: [http] host_names = [...]\n"
            )
            await respond(send, 421, text.encode(), "text/plain; charset=utf-8", [(b"connection", b"close")])
            return
        app = self._find(scope["path"])
        if app is None:
            await respond(send, 404, b"Nothing is here.\n", "text/plain; charset=utf-8", [])
            return
        await app(scope, receive, send)

    def is_ours(self, host: str) -> bool | None:
        """Whether a Host header names this service; `None` where it is not the name of one host."""
        return self._judge(host) if len(host) <= HOST_CHARS_MAX else None

    def _judged(self, host: str) -> bool | None:
        match = _HOST.fullmatch(host)
        if match is None:
            return None
        if match["v6"] is not None:
            return _is_address(match["v6"], ipaddress.IPv6Address)
        name = match["name"].lower()
        return name in self._names or name.endswith(".localhost") or _is_address(name, ipaddress.IPv4Address)

    def _find(self, path: str) -> ASGIApp | None:
        for prefix, app in self._mounts:
            if prefix == "/" or path == prefix or path.startswith(prefix.rstrip("/") + "/"):
                return app
        return None


def _is_address(name: str, kind: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]) -> bool:
    try:
        kind(name)
    except ValueError:
        return False
    return True


def _authority(scope: Scope) -> str:
    # HTTP/1.0 may omit Host: then only the address that was dialled can be meant.
    server = scope.get("server")
    if not server:
        return ""
    address = str(server[0])
    return f"[{address}]" if ":" in address else address


async def _no_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
