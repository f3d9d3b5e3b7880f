"""For tests of roles and plug-ins, ours and others': two nodes' buses joined over a network in memory.

`covey.testing.conformance` holds the suite that every way a call can travel must pass.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from covey.bus.background import open_background
from covey.bus.bus import Bus, BusHandle
from covey.bus.carrier import SessionLimits
from covey.bus.session import acceptor, open_session
from covey.contracts.method import Party
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId
from covey.transport.memory import MemoryNetwork

__all__ = ["ALICE", "BOB", "MEMBER", "alice_and_bob"]

ALICE = PeerId("alice")
BOB = PeerId("bob")
MEMBER: frozenset[Party] = frozenset({"gateway", "auth", "inference", "web", "member"})
"""What an admitted node with every role may act as."""


@asynccontextmanager
async def alice_and_bob(
    *,
    alice: Callable[[BusHandle], None] | None = None,
    bob: Callable[[BusHandle], None] | None = None,
    network: MemoryNetwork | None = None,
    granted: frozenset[Party] = MEMBER,
    limits: SessionLimits | None = None,
) -> AsyncGenerator[tuple[Bus, Bus], None]:
    """Two buses with one session between them; alice dialled. Use it with `autojump_clock`.

        def serve(bus: BusHandle) -> None:
            bus.serve(VERIFY, verify)

        async with alice_and_bob(bob=serve) as (alice, bob):
            identity = await alice.stamped("gateway").call(VERIFY, request)

    Args:
        alice: registers what alice serves before they meet, so that bob knows of it.
        bob: the same the other way round.
        network: to cut, freeze or slow down (`network.cut(ALICE, BOB)`); default: a perfect one.
        granted: what each may act as at the other.
        limits: of both ends of the session.
    """
    network = network or MemoryNetwork()
    near, far = Bus(ALICE, Metrics(), name="alice"), Bus(BOB, Metrics(), name="bob")
    for bus, serve in ((near, alice), (far, bob)):
        if serve is not None:
            serve(bus.stamped("member"))
    async with near.open(), far.open(), open_background() as nursery:
        await nursery.start(network.join(BOB).serve, acceptor(far, lambda _: granted, limits=limits))
        stream = await network.join(ALICE).dial(BOB)
        async with open_session(near, stream, peer=BOB, granted=granted, dialer=True, limits=limits):
            yield near, far
