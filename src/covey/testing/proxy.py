"""A TCP proxy that behaves like a bad network: delay, a thin line, cuts, black holes. Real sockets, one seed.

It passes bytes on in order, as TCP does: what a bad network does to packets shows as delay, as a standstill, or as a
connection that breaks.
"""

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import trio

READ_BYTES = 1 << 14
UNDER_WAY_CHUNKS_MAX = 256
"""In each direction of a connection; beyond, the sender has to wait."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """How one direction behaves. `cut_chance`: for each piece of up to 16 KiB, that the connection breaks under it."""

    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    bytes_per_second: float | None = None
    cut_chance: float = 0.0


PERFECT = Line()


@dataclass(slots=True, eq=False)
class Proxy:
    """Made by `open_proxy`; everything may be changed while bytes flow.

    Args:
        target: host and port.
        there: from who dials to the target.
        back: the other way.
        source: of every random decision.
    """

    target: tuple[str, int]
    there: Line
    back: Line
    source: random.Random
    port: int = 0
    """On 127.0.0.1."""
    connections: int = 0
    """Accepted so far."""
    _pairs: dict[trio.CancelScope, None] = field(default_factory=dict[trio.CancelScope, None])
    _stopped: set[str] = field(default_factory=set[str])
    _changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    def cut(self) -> None:
        """Break every connection, at once and on both sides; new ones are let in."""
        for scope in self._pairs:
            scope.cancel()

    def blackhole(self, *, there: bool = True, back: bool = True) -> None:
        """Nothing passes from now on, in the directions said, and nobody is told; new connections get no answer."""
        self._stopped = {name for name, stopped in (("there", there), ("back", back)) if stopped}

    def heal(self) -> None:
        """What waits goes on its way again."""
        self._stopped = set()
        self._changed.unpark_all()

    async def carry(self, near: trio.SocketStream) -> None:
        """Take one connection to its end."""
        self.connections += 1
        try:
            far = await trio.open_tcp_stream(*self.target)
        except OSError:
            await trio.aclose_forcefully(near)
            return
        with trio.CancelScope() as scope:
            self._pairs[scope] = None
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, near, far, "there", scope)
                    nursery.start_soon(self._pump, far, near, "back", scope)
            finally:
                del self._pairs[scope]
                near.socket.close()
                far.socket.close()

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, name: str, scope: trio.CancelScope
    ) -> None:
        send, receive = trio.open_memory_channel[tuple[float, bytes]](UNDER_WAY_CHUNKS_MAX)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._deliver, receive, sink, name)
                async with send:
                    free_at = 0.0
                    while True:
                        data = await source.receive_some(READ_BYTES)
                        line: Line = self.there if name == "there" else self.back
                        if self.source.random() < line.cut_chance:
                            scope.cancel()
                            return
                        now = trio.current_time()
                        if line.bytes_per_second is not None:
                            free_at = max(free_at, now) + len(data) / line.bytes_per_second
                        arrival = max(free_at, now) + line.delay_seconds + self.source.uniform(0, line.jitter_seconds)
                        await send.send((arrival, data))
                        if not data:
                            return
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            scope.cancel()  # a connection that breaks on one side breaks on the other

    async def _deliver(
        self, receive: trio.MemoryReceiveChannel[tuple[float, bytes]], sink: trio.SocketStream, name: str
    ) -> None:
        async with receive:
            async for arrival, data in receive:
                await trio.sleep_until(arrival)
                while name in self._stopped:
                    await self._changed.park()
                if data:
                    await sink.send_all(data)
                else:
                    await sink.send_eof()


@asynccontextmanager
async def open_proxy(
    host: str, port: int, *, there: Line = PERFECT, back: Line | None = None, seed: int = 0
) -> AsyncGenerator[Proxy, None]:
    """Listen on a free port of 127.0.0.1, and pass on whatever connects.

    Args:
        host: of the target.
        port: of the target.
        there: from who dials to the target.
        back: the other way; default: like `there`.
        seed: of every random decision.
    """
    proxy = Proxy((host, port), there, there if back is None else back, random.Random(seed))  # noqa: S311 - a simulation
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        proxy.port = listener.socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, proxy.carry, [listener])
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()
