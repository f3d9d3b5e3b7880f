"""Hosts on loopback, for the tests of the libp2p transport."""

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager

import trio

from covey.store.identity import Identity
from covey.transport.base import Accept, PeerId
from covey.transport.libp2p.addresses import parse_address
from covey.transport.libp2p.channel import Channel, TcpCarrying
from covey.transport.libp2p.handshake import Handshake
from covey.transport.libp2p.host import Libp2pHost, open_libp2p
from covey.transport.libp2p.limits import HostLimits
from covey.transport.libp2p.yamux import Yamux
from covey.transport.libp2p.yamux_stream import YamuxStream

ALICE, BOB, MALLORY = (Identity(name * 32) for name in (b"a", b"b", b"m"))
LOOPBACK = ["127.0.0.1:0"]


async def echo(_peer: PeerId, stream: trio.abc.Stream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def greet(peer: PeerId, _address: str, stream: trio.abc.Stream) -> None:
    """Says who joins, then echoes."""
    await stream.send_all(peer.encode() + b"\n")
    await echo(peer, stream)


@asynccontextmanager
async def a_host(
    keys: Identity = ALICE,
    *,
    listen: Collection[str] = LOOPBACK,
    members: Collection[PeerId] = (ALICE.peer_id, BOB.peer_id),
    on_rpc: Accept = echo,
    limits: HostLimits | None = None,
) -> AsyncGenerator[Libp2pHost, None]:
    """One that echoes what members say, and greets those who join."""
    async with open_libp2p(
        keys, listen=list(listen), is_member=members.__contains__, on_rpc=on_rpc, on_join=greet, limits=limits
    ) as host:
        yield host


async def says(stream: trio.abc.Stream, text: bytes) -> bytes:
    """Send, and receive as much."""
    await stream.send_all(text)
    return await exactly(stream, len(text))


async def exactly(stream: trio.abc.Stream, size: int) -> bytes:
    got = b""
    with trio.fail_after(30):
        while len(got) < size:
            data = await stream.receive_some(size - len(got))
            assert data, f"the stream ended after {got!r}"
            got += data
    return got


async def tcp_to(host: Libp2pHost) -> trio.SocketStream:
    place = parse_address(host.addresses[0])
    return await trio.open_tcp_stream(place.host, place.port)


async def breaks(stream: trio.abc.Stream) -> None:
    """Read until the stream breaks: an end in order is a failure."""
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        return
    raise AssertionError("the stream ended in order")


async def until(true: Callable[[], object]) -> None:
    """Wait for what a host does in its own time."""
    with trio.fail_after(20):
        while not true():  # noqa: ASYNC110 - nothing tells
            await trio.sleep(0.005)


@asynccontextmanager
async def bare_channel(host: Libp2pHost, keys: Identity) -> AsyncGenerator[Channel, None]:
    """A connection past Noise, which nobody reads but the test."""
    channel = Channel(TcpCarrying(await tcp_to(host)), bytes_max=1 << 30)
    try:
        await Handshake(keys).connect(channel, host.me)
        yield channel
    finally:
        channel.abort()


@asynccontextmanager
async def bare_yamux(
    host: Libp2pHost, keys: Identity, inbound: list[YamuxStream] | None = None
) -> AsyncGenerator[tuple[Yamux, Channel], None]:
    """The same with yamux, on which a test can open what it likes. `inbound`: takes what the host opens."""
    taken: list[YamuxStream] = [] if inbound is None else inbound
    async with bare_channel(host, keys) as channel, trio.open_nursery() as nursery:
        limits = HostLimits(idle_seconds=60)
        yamux = Yamux(channel, dialer=True, on_stream=taken.append, limits=limits, streams_max=64)
        nursery.start_soon(yamux.run)
        yield yamux, channel
        yamux.abort("the test is over")
