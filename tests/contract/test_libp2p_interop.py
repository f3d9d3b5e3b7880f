"""Covey's host and a stock py-libp2p host speak the same wire: the standard's Noise, yamux and multistream-select."""

import gc
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p_world import ALICE, BOB, MALLORY, a_host, says
from multiaddr import Multiaddr

from covey.store.identity import Identity
from covey.transport.libp2p.negotiation import JOIN, RPC

# A stock host leaves sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _collected() -> Generator[None, None, None]:
    yield
    gc.collect()  # here, and not in whichever test comes next


ANYWHERE = [Multiaddr("/ip4/127.0.0.1/tcp/0")]


@asynccontextmanager
async def stock_host(keys: Identity) -> AsyncGenerator[IHost, None]:
    host = new_host(key_pair=create_new_key_pair(keys.seed()), listen_addrs=ANYWHERE)
    async with host.run(ANYWHERE):
        yield host


async def read_exactly(stream: INetStream, size: int) -> bytes:
    got = b""
    while len(got) < size:
        got += await stream.read(size - len(got))
    return got


async def test_a_stock_member_dials_in() -> None:
    async with a_host(ALICE) as alice, stock_host(BOB) as bob:
        await bob.connect(PeerInfo(ID.from_string(alice.me), [Multiaddr(each) for each in alice.addresses]))
        stream = await bob.new_stream(ID.from_string(alice.me), [TProtocol(RPC)])
        sent = bytes(range(256)) * 4_000  # several windows' worth, both ways

        async def write() -> None:
            await stream.write(sent)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                assert await read_exactly(stream, len(sent)) == sent
        await stream.close()


async def test_a_stock_host_is_dialled() -> None:
    async def echo(stream: INetStream) -> None:
        await stream.write(await read_exactly(stream, 100_000))
        await stream.close()

    async with stock_host(BOB) as bob, a_host(ALICE, listen=[]) as alice:
        bob.set_stream_handler(TProtocol(RPC), echo)
        addresses = [str(each) for each in bob.get_transport_addrs()]
        stream, _ = await alice.dial(BOB.peer_id, addresses)
        assert await says(stream, bytes(100_000)) == bytes(100_000)
        with trio.fail_after(5):
            assert await stream.receive_some() == b""
        await stream.aclose()


async def test_a_stock_stranger_may_join_and_nothing_else() -> None:
    async with a_host(ALICE) as alice, stock_host(MALLORY) as mallory:
        await mallory.connect(PeerInfo(ID.from_string(alice.me), [Multiaddr(each) for each in alice.addresses]))
        for protocol in (RPC, "/ipfs/ping/1.0.0", "/ipfs/id/1.0.0"):
            with trio.fail_after(10), pytest.raises(Exception):  # noqa: B017 - libp2p's, of many kinds
                await mallory.new_stream(ID.from_string(alice.me), [TProtocol(protocol)])
        stream = await mallory.new_stream(ID.from_string(alice.me), [TProtocol(JOIN)])
        assert await read_exactly(stream, 53) == MALLORY.peer_id.encode() + b"\n"


async def test_a_stock_host_cannot_pass_for_another() -> None:
    async with stock_host(MALLORY) as mallory, a_host(ALICE, listen=[]) as alice:
        with pytest.raises(Exception, match="another node answers there"):
            await alice.dial(BOB.peer_id, [str(each) for each in mallory.get_transport_addrs()])
