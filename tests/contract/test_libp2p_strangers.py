"""The host towards everybody else: strangers, junk, and those who pretend."""

import random
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack
from functools import partial

import psutil
import pytest
import trio
from libp2p_world import (
    ALICE,
    BOB,
    MALLORY,
    a_host,
    bare_channel,
    bare_yamux,
    breaks,
    exactly,
    says,
    tcp_to,
    until,
)  # fmt: skip

from covey.errors import CallError
from covey.store.identity import Identity
from covey.testing.machines import Machines, other_machines
from covey.transport.libp2p.addresses import parse_address
from covey.transport.libp2p.host import Libp2pHost
from covey.transport.libp2p.limits import HostLimits
from covey.transport.libp2p.negotiation import JOIN, NOISE, RPC, NegotiationError, Refused, answer, ask
from covey.transport.libp2p.yamux_frames import Flag, Kind, data_frame, frame

FORBIDDEN = [
    RPC, "/ipfs/ping/1.0.0", "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/libp2p/circuit/relay/0.2.0/hop",
    "/libp2p/circuit/relay/0.2.0/stop", "/rendezvous/1.0.0", "/ipfs/kad/1.0.0", "/meshsub/1.1.0", "/libp2p/dcutr", "ls",
]  # fmt: skip


@pytest.fixture
async def alice() -> AsyncGenerator[Libp2pHost, None]:
    async with a_host(ALICE) as host:
        yield host


@pytest.fixture(scope="module")
def machines() -> Generator[Machines, None, None]:
    with other_machines() as machines:
        yield machines


@pytest.mark.parametrize("protocol", FORBIDDEN)
async def test_a_strangers_streams_are_reset_whatever_they_ask_for(alice: Libp2pHost, protocol: str) -> None:
    async with bare_yamux(alice, MALLORY) as (yamux, _):
        stream = yamux.open()
        with pytest.raises(trio.BrokenResourceError, match="reset"):
            await ask(stream, protocol)
        joining = yamux.open()
        await ask(joining, JOIN)  # and the connection still serves to join
        assert await exactly(joining, 53) == MALLORY.peer_id.encode() + b"\n"
    assert alice.gate.refused == 1


async def test_a_stranger_that_dials_is_told_so(alice: Libp2pHost) -> None:
    async with a_host(MALLORY, listen=[]) as mallory:
        with pytest.raises(CallError) as caught:
            await mallory.dial(alice.me, alice.addresses)
        assert (caught.value.code, caught.value.reason) == ("forbidden", "not_member")
        stream, _ = await mallory.dial(alice.me, alice.addresses, "join")
        assert await exactly(stream, 53) == MALLORY.peer_id.encode() + b"\n"
        assert await says(stream, b"please") == b"please"
        await stream.aclose()


async def test_who_was_removed_gets_no_further_stream() -> None:
    members = {BOB.peer_id}
    async with a_host(ALICE, members=members) as alice, bare_yamux(alice, BOB) as (yamux, _):
        first = yamux.open()
        await ask(first, RPC)
        members.clear()
        with pytest.raises(trio.BrokenResourceError):
            await ask(yamux.open(), RPC)
        alice.close_peer(BOB.peer_id)
        with trio.fail_after(1):
            await breaks(first)


async def test_joining_has_a_budget_of_bytes_streams_and_time() -> None:
    async with a_host(ALICE, limits=HostLimits(join_bytes_max=50_000, join_seconds=0.5)) as alice:
        async with bare_yamux(alice, MALLORY) as (yamux, _):
            stream = yamux.open()
            await ask(stream, JOIN)
            await says(stream, bytes(5_000))
            await stream.send_all(bytes(60_000))
            with trio.fail_after(5):
                await breaks(stream)
        async with bare_yamux(alice, MALLORY) as (yamux, _):
            streams = [yamux.open() for _ in range(3)]
            await ask(streams[0], JOIN)
            with trio.fail_after(2):
                await breaks(streams[2])
                await breaks(streams[0])  # its time is over


async def test_joining_has_a_budget_of_attempts_for_each_address() -> None:
    limits = HostLimits(stranger_attempts_max=3, strangers_per_address_max=9)
    async with (
        a_host(ALICE, limits=limits) as alice,
        a_host(MALLORY, listen=[]) as mallory,
        a_host(BOB, listen=[]) as bob,
    ):
        for _ in range(3):
            stream, _ = await mallory.dial(alice.me, alice.addresses, "join")
            await trio.aclose_forcefully(stream)
        with pytest.raises(CallError):
            await mallory.dial(alice.me, alice.addresses, "join")
        stream, _ = await bob.dial(alice.me, alice.addresses)
        assert await says(stream, b"member") == b"member"


async def test_strangers_are_few_at_once() -> None:
    limits = HostLimits(strangers_per_address_max=2)
    async with a_host(ALICE, limits=limits) as alice, a_host(MALLORY, listen=[]) as mallory:
        held = [(await mallory.dial(alice.me, alice.addresses, "join"))[0] for _ in range(2)]
        with pytest.raises(CallError):
            await mallory.dial(alice.me, alice.addresses, "join")
        await held[0].aclose()
        await until(lambda: len(alice.paths(mallory.me)) == 1)
        await mallory.dial(alice.me, alice.addresses, "join")


@pytest.mark.parametrize("protocol", ["/plaintext/2.0.0", "/secio/1.0.0", "/tls/1.0.0"])
async def test_nothing_but_noise_is_offered(alice: Libp2pHost, protocol: str) -> None:
    tcp = await tcp_to(alice)
    with pytest.raises(Refused):
        await ask(tcp, protocol)
    await tcp.aclose()


async def test_nothing_but_noise_is_asked_for() -> None:
    offers: list[str] = []

    async def plaintext_only(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                offers.append(await answer(stream, {"/plaintext/2.0.0"}, patient=True))
            except (NegotiationError, trio.BrokenResourceError) as error:
                offers.append(str(error))

    async with trio.open_nursery() as nursery, a_host(BOB, listen=[]) as bob:
        (listener,) = await nursery.start(partial(trio.serve_tcp, plaintext_only, 0, host="127.0.0.1"))
        with pytest.raises(CallError, match=f"does not offer {NOISE}"):
            await bob.dial(ALICE.peer_id, [f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"])
        nursery.cancel_scope.cancel()
    assert "plaintext" not in offers[0]


async def test_random_bytes_are_survived(alice: Libp2pHost) -> None:
    source = random.Random(20)
    for _ in range(60):
        tcp = await tcp_to(alice)
        opening = source.choice([b"", b"\x13/multistream/1.0.0\n", b"\x13/multistream/1.0.0\n\x07/noise\n"])
        try:
            await tcp.send_all(opening + source.randbytes(source.randrange(1, 30_000)))
            await tcp.send_eof()
            with trio.fail_after(10):
                while await tcp.receive_some():
                    pass
        except trio.BrokenResourceError:
            pass
        await tcp.aclose()
    async with bare_channel(alice, BOB) as channel:  # the same from a member, past Noise
        await channel.send_all(source.randbytes(10_000))
    async with a_host(BOB, listen=[]) as bob:
        stream, _ = await bob.dial(alice.me, alice.addresses)
        assert await says(stream, b"well") == b"well"
    await until(lambda: len(alice.lobby) == 0)


async def test_frames_of_no_stream_are_survived(alice: Libp2pHost) -> None:
    async with bare_channel(alice, BOB) as channel:
        await channel.send_all(
            frame(Kind.WINDOW, 0, 77, 5) + data_frame(79, b"lost") + frame(Kind.WINDOW, Flag.RST, 81, 0)
            + frame(Kind.DATA, Flag.FIN, 83, 0) + frame(Kind.PING, Flag.SYN, 0, 4711)
        )  # fmt: skip
        with trio.fail_after(2):
            got = b""
            while frame(Kind.PING, Flag.ACK, 0, 4711) not in got:
                got += await channel.receive()
        assert frame(Kind.WINDOW, Flag.RST, 79, 0) in got


async def test_who_is_silent_in_the_handshake_goes() -> None:
    async with a_host(ALICE, limits=HostLimits(handshake_seconds=0.2)) as alice:
        tcp = await tcp_to(alice)
        with trio.fail_after(2):
            try:
                while await tcp.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
        await tcp.aclose()


@pytest.mark.slow
async def test_three_thousand_idle_connections(machines: Machines) -> None:
    """All from one address, which is the member's own, too."""
    far = machines.start(BOB.peer_id)
    place = parse_address(far.addresses[0])
    process = psutil.Process(far.pid)
    async with a_host(BOB, listen=[]) as bob, AsyncExitStack() as idle:
        before_bytes = process.memory_info().rss
        for number in range(3_000):
            tcp = await trio.open_tcp_stream(place.host, place.port)
            idle.push_async_callback(trio.aclose_forcefully, tcp)
            if number % 500 == 499:
                with trio.fail_after(10):  # it gets in; how fast is the figure of a quiet machine
                    stream, _ = await bob.dial(far.peer_id, far.addresses)
                await stream.aclose()
        assert process.num_fds() < 150
        assert process.memory_info().rss - before_bytes < 20 << 20
    far.kill()


async def test_a_forged_identity(alice: Libp2pHost) -> None:
    """Whoever answers at a member's address without its key is not taken for it."""
    imposter = Identity.generate()
    async with a_host(imposter) as other, a_host(BOB, listen=[]) as bob:
        with pytest.raises(CallError, match="another node answers there"):
            await bob.dial(alice.me, other.addresses)


async def test_refusals_are_said_aloud_and_seldom(alice: Libp2pHost, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        async with bare_yamux(alice, MALLORY) as (yamux, _):
            with pytest.raises(trio.BrokenResourceError):
                await ask(yamux.open(), RPC)
    (record,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert MALLORY.peer_id in record.getMessage()
    assert RPC in record.getMessage()
