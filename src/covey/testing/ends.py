"""The ways a call can travel that ship with Covey, opened for the conformance suite."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from covey.bus.background import open_background
from covey.bus.bus import Bus, BusHandle
from covey.bus.carrier import SessionLimits
from covey.bus.session import Session, acceptor, open_session
from covey.contracts.method import Party
from covey.telemetry.metrics import Metrics
from covey.testing.callee import serve_far, serve_near
from covey.transport.base import Accept, PeerId
from covey.transport.memory import MemoryNetwork
from covey.transport.unix import dial_unix, serve_unix

NEAR = PeerId("near")
FAR = PeerId("far")
GRANTED: frozenset[Party] = frozenset({"gateway", "auth", "member"})
"""What both ends of a link must grant each other for the suite."""


@dataclass(frozen=True, slots=True)
class Ends:
    """Both ends of a way to travel, open.

    Args:
        near: calls.
        far: the id of the peer that serves; its own where the way stays in the process.
        session: the near end of the link, where there is one.
        raw: dials the far side and gives the bare stream, to say things that no session would.
        lose: makes the far side vanish without a word.
    """

    near: Bus
    far: PeerId
    session: Session | None = None
    raw: Callable[[], Awaitable[trio.abc.Stream]] | None = None
    lose: Callable[[], None] | None = None

    @property
    def bus(self) -> BusHandle:
        """What the tests call with."""
        return self.near.stamped("gateway")


@asynccontextmanager
async def local_ends() -> AsyncGenerator[Ends, None]:
    """In the process."""
    async with Bus(NEAR, Metrics(), name="near").open() as bus:
        serve_near(bus.stamped("gateway"))
        serve_far(bus.stamped("gateway"))
        yield Ends(bus, NEAR)


@asynccontextmanager
async def memory_ends(
    network: MemoryNetwork | None = None, limits: SessionLimits | None = None
) -> AsyncGenerator[Ends, None]:
    """Over the network in memory."""
    network = network or MemoryNetwork()
    async with open_background() as nursery, _far_bus(limits) as accept:
        await nursery.start(network.join(FAR).serve, accept)
        async with _linked(partial(network.join(NEAR).dial, FAR), lambda: network.kill(FAR), limits) as ends:
            yield ends


@asynccontextmanager
async def unix_ends(folder: Path, limits: SessionLimits | None = None) -> AsyncGenerator[Ends, None]:
    """Over a Unix socket in a private folder."""
    path = folder / "far.sock"
    async with open_background() as nursery, _far_bus(limits) as accept:
        process = await nursery.start(_serve_until_killed, path, accept)
        async with _linked(partial(dial_unix, path), process.cancel, limits) as ends:
            yield ends


async def _serve_until_killed(path: Path, accept: Accept, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    streams: set[trio.abc.Stream] = set()

    async def remember(peer: PeerId, stream: trio.abc.Stream) -> None:
        streams.add(stream)
        await accept(peer, stream)

    with trio.CancelScope() as scope:
        async with open_background() as nursery:
            await nursery.start(partial(serve_unix, path, remember))
            task_status.started(scope)
            try:
                await trio.sleep_forever()
            finally:
                for stream in streams:  # as if the process had died: no goodbye
                    await trio.aclose_forcefully(stream)


@asynccontextmanager
async def _far_bus(limits: SessionLimits | None) -> AsyncGenerator[Accept, None]:
    async with Bus(FAR, Metrics(), name="far").open() as far:
        serve_far(far.stamped("gateway"))
        yield acceptor(far, lambda _: GRANTED, limits=limits)


@asynccontextmanager
async def _linked(
    dial: Callable[[], Awaitable[trio.abc.Stream]], lose: Callable[[], None], limits: SessionLimits | None
) -> AsyncGenerator[Ends, None]:
    near = Bus(NEAR, Metrics(), name="near")
    serve_near(near.stamped("gateway"))
    async with (
        near.open(),
        open_session(near, await dial(), peer=FAR, granted=GRANTED, dialer=True, limits=limits) as session,
    ):
        yield Ends(near, FAR, session, dial, lose)
