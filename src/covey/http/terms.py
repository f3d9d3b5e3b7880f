"""What all connections of one listener share."""

import time
from dataclasses import dataclass, field
from typing import Protocol
from wsgiref.handlers import format_date_time

from covey.http.asgi import PEER, ASGIApp, Scope
from covey.http.proxies import Proxies


class Served(Protocol):
    """A connection, as its listener sees it."""

    def close_if_idle(self) -> None:
        """Close between two requests; during one, its answer is the last."""
        ...

    def cut(self) -> None:
        """Give up the writes under way, and those to come."""
        ...


@dataclass
class Terms:
    """Set `closing` and no answer keeps its connection any more.

    `idle` holds the connections that nobody waits for an answer on, the longest idle first: a new one may take its
    place.
    """

    app: ASGIApp
    write_seconds_max: float
    keep_alive_seconds: float
    head_seconds_max: float = 15.0
    proxies: Proxies = field(default_factory=Proxies)
    closing: bool = False
    idle: dict[Served, None] = field(default_factory=dict[Served, None])
    _date: tuple[int, list[tuple[bytes, bytes]]] = (-1, [])

    def settle(self, scope: Scope) -> None:
        """Say who is at the other end of the connection, and, where that is a trusted proxy, who is behind it."""
        scope["extensions"][PEER] = scope["client"]
        if self.proxies:
            self.proxies.apply(scope)

    def own_headers(self) -> list[tuple[bytes, bytes]]:
        """What every answer carries: the date, made once a second."""
        now = int(time.time())
        if now != self._date[0]:
            self._date = now, [(b"date", format_date_time(now).encode("ascii"))]
        return self._date[1]
