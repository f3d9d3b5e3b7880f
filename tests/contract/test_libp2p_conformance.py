"""The bus across libp2p between two processes: directly, and over a line with 50 ms of delay each way."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager

import pytest
import trio

from covey.bus.bus import Bus
from covey.bus.session import open_session
from covey.store.identity import Identity
from covey.telemetry.metrics import Metrics
from covey.testing.callee import serve_near
from covey.testing.conformance import BusConformance
from covey.testing.ends import GRANTED, Ends
from covey.testing.link_conformance import LinkConformance
from covey.testing.machines import Machines, other_machines
from covey.testing.proxy import Line, open_proxy
from covey.transport.base import PeerId
from covey.transport.libp2p.addresses import parse_address
from covey.transport.libp2p.host import open_libp2p


@pytest.fixture(scope="module")
def machines() -> Generator[Machines, None, None]:
    with other_machines() as machines:
        yield machines


async def nobody(_peer: PeerId, *_: object) -> None:
    raise AssertionError("nobody dials here")


@asynccontextmanager
async def libp2p_ends(machines: Machines, line: Line | None = None) -> AsyncGenerator[Ends, None]:
    keys = Identity.generate()
    far = await trio.to_thread.run_sync(machines.start, keys.peer_id)
    near = Bus(keys.peer_id, Metrics(), name="near")
    serve_near(near.stamped("gateway"))
    place = parse_address(far.addresses[0])
    async with (
        open_proxy(place.host, place.port, there=line or Line()) as proxy,
        near.open(),
        open_libp2p(keys, listen=[], is_member=lambda _: True, on_rpc=nobody, on_join=nobody) as host,
    ):
        addresses = far.addresses if line is None else [f"/ip4/127.0.0.1/tcp/{proxy.port}"]

        async def dial() -> trio.abc.Stream:
            stream, _ = await host.dial(far.peer_id, addresses)
            return stream

        async with open_session(near, await dial(), peer=far.peer_id, granted=GRANTED, dialer=True) as session:
            try:
                yield Ends(near, far.peer_id, session, dial, far.kill)
            finally:
                far.kill()


class TestLibp2p(BusConformance, LinkConformance):
    @pytest.fixture
    async def ends(self, machines: Machines) -> AsyncGenerator[Ends, None]:
        async with libp2p_ends(machines) as ends:
            yield ends


@pytest.mark.slow
class TestLibp2pFarAway(BusConformance, LinkConformance):
    @pytest.fixture
    async def ends(self, machines: Machines) -> AsyncGenerator[Ends, None]:
        async with libp2p_ends(machines, Line(delay_seconds=0.05)) as ends:
            yield ends
