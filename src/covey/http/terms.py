"""What all connections of one listener share."""

import time
from dataclasses import dataclass, field
from typing import NoReturn, Protocol
from wsgiref.handlers import format_date_time

import trio

from covey.http.asgi import PEER, ASGIApp, Scope
from covey.http.proxies import Proxies

SWEEP_SECONDS_MIN, SWEEP_SECONDS_MAX = 0.05, 1.0
"""Between two looks at which connections have been idle for too long."""


class Served(Protocol):
    """A connection, as its listener sees it."""

    def close_if_idle(self) -> None:
        """Close between two requests; during one, its answer is the last."""
        ...

    def expire(self) -> None:
        """Close: it has been idle for too long."""
        ...

    def cut(self) -> None:
        """Give up the writes under way, and those to come."""
        ...


@dataclass
class Terms:
    """Set `closing` and no answer keeps its connection any more.

    `idle` holds the connections that nobody waits for an answer on, the longest idle first, each with trio's time
    until which it may be that: before, a new one may take its place. `sweep` is the task that closes them then; a
    deadline each would cost a request more than all of this.
    """

    app: ASGIApp
    write_seconds_max: float
    keep_alive_seconds: float
    head_seconds_max: float = 15.0
    proxies: Proxies = field(default_factory=Proxies)
    closing: bool = False
    idle: dict[Served, float] = field(default_factory=dict[Served, float])
    _date: tuple[int, list[tuple[bytes, bytes]]] = (-1, [])

    def is_idle(self, connection: Served, seconds_max: float = 0.0) -> None:
        """Nobody waits for an answer on it, from now on; for `keep_alive_seconds`, or what is said, if that is more."""
        self.idle.pop(connection, None)
        self.idle[connection] = trio.current_time() + max(self.keep_alive_seconds, seconds_max)

    def is_busy(self, connection: Served) -> None:
        """Somebody does; or it is gone."""
        self.idle.pop(connection, None)

    async def sweep(self) -> NoReturn:
        """Close what has been idle for too long; for ever."""
        while True:
            await trio.sleep(min(max(self.keep_alive_seconds / 4, SWEEP_SECONDS_MIN), SWEEP_SECONDS_MAX))
            now = trio.current_time()
            for connection, until in list(self.idle.items()):
                if until > now:
                    break
                self.is_busy(connection)
                connection.expire()

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
