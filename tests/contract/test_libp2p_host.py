"""The host towards members: dialling, cutting, listening, and what must not leak or last."""

import contextlib
import gc
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest
import trio
from libp2p_world import ALICE, BOB, MALLORY, a_host, bare_channel, bare_yamux, breaks, exactly, says, until

from covey.errors import CallError
from covey.testing.machines import Machines, other_machines
from covey.testing.proxy import open_proxy
from covey.transport.base import PeerId
from covey.transport.libp2p.addresses import parse_address
from covey.transport.libp2p.host import Libp2pHost
from covey.transport.libp2p.limits import HostLimits
from covey.transport.libp2p.negotiation import RPC, ask
from covey.transport.libp2p.yamux_frames import Flag, Kind, data_frame, frame

DEAD = "/ip4/127.0.0.1/tcp/1"


@pytest.fixture
async def alice() -> AsyncGenerator[Libp2pHost, None]:
    async with a_host(ALICE) as host:
        yield host


@pytest.fixture
async def bob() -> AsyncGenerator[Libp2pHost, None]:
    async with a_host(BOB, listen=[]) as host:
        yield host


@pytest.fixture(scope="module")
def machines() -> Generator[Machines, None, None]:
    with other_machines() as machines:
        yield machines


async def test_a_member_is_heard(alice: Libp2pHost, bob: Libp2pHost) -> None:
    stream, address = await bob.dial(alice.me, alice.addresses)
    assert address == alice.addresses[0]
    assert await says(stream, b"hello") == b"hello"
    assert alice.peers == {bob.me}
    (path,) = bob.paths(alice.me)
    assert (path.address, path.dialled, path.relayed) == (address, True, False)
    assert path.received_bytes > 0
    await stream.aclose()
    await until(lambda: not alice.peers and not bob.peers)


async def test_a_node_that_only_dials_opens_no_port(bob: Libp2pHost) -> None:
    assert bob.addresses == ()
    assert bob.listening == ()


async def test_bytes_both_ways_at_once(alice: Libp2pHost, bob: Libp2pHost) -> None:
    stream, _ = await bob.dial(alice.me, alice.addresses)
    sent = os.urandom(5_000_000)

    async def send() -> None:
        await stream.send_all(sent)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        assert await exactly(stream, len(sent)) == sent


async def test_a_cancelled_reader_or_writer_harms_nothing(alice: Libp2pHost, bob: Libp2pHost) -> None:
    stream, _ = await bob.dial(alice.me, alice.addresses)
    for number in range(300):
        with trio.move_on_after(number % 7 / 5_000):
            await stream.receive_some()
        assert await says(stream, b"ping%d" % number) == b"ping%d" % number
    unread, _ = await bob.dial(alice.me, alice.addresses)
    with trio.move_on_after(0.2):
        while True:
            await unread.send_all(bytes(100_000))  # until both ways are full
    assert await says(stream, b"unharmed") == b"unharmed"
    await trio.aclose_forcefully(unread)


async def test_every_address_is_tried(alice: Libp2pHost, bob: Libp2pHost) -> None:
    async with a_host(MALLORY) as other, open_proxy("127.0.0.1", alice.listening[0][1]) as silent:
        silent.blackhole()
        wrong = [DEAD, "no address", *other.addresses, f"/ip4/127.0.0.1/tcp/{silent.port}", f"{DEAD}/p2p/{BOB.peer_id}"]
        stream, address = await bob.dial(alice.me, [*wrong, *alice.addresses])
        assert address == alice.addresses[0]
        assert await says(stream, b"x") == b"x"
        await stream.aclose()
        with pytest.raises(CallError) as caught:
            await bob.dial(alice.me, [DEAD, *other.addresses])
        assert caught.value.code == "unreachable"
        assert "connection refused" in str(caught.value)
        assert "another node answers there" in str(caught.value)


async def test_a_dial_ends_in_time(bob: Libp2pHost) -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    limits = HostLimits(dial_seconds=0.3)
    async with a_host(BOB, listen=[], limits=limits) as host:
        with silent, trio.fail_after(2), pytest.raises(CallError, match="no answer"):
            await host.dial(ALICE.peer_id, [f"/ip4/127.0.0.1/tcp/{silent.getsockname()[1]}"])
    for addresses in ([], ["nonsense"], ["/ip4/127.0.0.1/tcp/0"]):
        with pytest.raises(CallError) as caught:
            await bob.dial(ALICE.peer_id, addresses)
        assert (caught.value.code, caught.value.reason) == ("unreachable", "no_address")
    with pytest.raises(CallError, match="this node itself"):
        await bob.dial(bob.me, [DEAD])


async def test_a_failed_dial_is_not_held_against_anybody(bob: Libp2pHost) -> None:
    async with a_host(ALICE) as alice:
        addresses = alice.addresses
    for _ in range(20):
        with pytest.raises(CallError):
            await bob.dial(ALICE.peer_id, addresses)
    place = parse_address(addresses[0])
    async with a_host(ALICE, listen=[f"{place.host}:{place.port}"]) as alice:
        stream, _ = await bob.dial(alice.me, addresses)
        assert await says(stream, b"again") == b"again"


async def test_a_cancelled_dial_leaves_nothing(alice: Libp2pHost, bob: Libp2pHost) -> None:
    for number in range(40):
        with trio.move_on_after(number / 2_000):
            stream, _ = await bob.dial(alice.me, alice.addresses)
            await stream.aclose()
    await until(lambda: not alice.peers and not bob.peers)


async def test_members_get_in_after_hundreds_of_connections(alice: Libp2pHost, bob: Libp2pHost) -> None:
    for _ in range(300):  # a stock host refuses everybody after 250
        stream, _ = await bob.dial(alice.me, alice.addresses)
        await trio.aclose_forcefully(stream)
    stream, _ = await bob.dial(alice.me, alice.addresses)
    assert await says(stream, b"still here") == b"still here"


async def test_a_member_has_so_many_connections(bob: Libp2pHost) -> None:
    async with a_host(ALICE, limits=HostLimits(connections_per_member_max=3)) as alice:
        streams = [(await bob.dial(alice.me, alice.addresses))[0] for _ in range(3)]
        with pytest.raises(CallError):
            await bob.dial(alice.me, alice.addresses)
        assert await says(streams[0], b"x") == b"x"
        await streams[0].aclose()
        await until(lambda: len(alice.paths(bob.me)) == 2)
        await bob.dial(alice.me, alice.addresses)


async def test_cutting_a_peer(alice: Libp2pHost, bob: Libp2pHost) -> None:
    stream, _ = await bob.dial(alice.me, alice.addresses)
    await says(stream, b"x")
    alice.close_peer(bob.me)
    with trio.fail_after(1), pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"x")
    await until(lambda: not alice.peers and not bob.peers)
    again, _ = await bob.dial(alice.me, alice.addresses)
    assert await says(again, b"afresh") == b"afresh"


async def test_a_frozen_peer_is_cut_at_once_and_dialled_again(machines: Machines, bob: Libp2pHost) -> None:
    far = machines.start(bob.me)
    stream, _ = await bob.dial(far.peer_id, far.addresses)
    far.freeze()
    with trio.move_on_after(0.3):
        while True:
            await stream.send_all(bytes(100_000))  # as much as goes: windows and sockets are full
    with trio.fail_after(1.5):
        bob.close_peer(far.peer_id)
        await trio.aclose_forcefully(stream)
    far.thaw()
    again, _ = await bob.dial(far.peer_id, far.addresses)
    await again.aclose()
    await until(lambda: not bob.peers)
    far.kill()


async def test_closing_towards_a_frozen_peer_is_bounded(machines: Machines, bob: Libp2pHost) -> None:
    far = machines.start(bob.me)
    stream, _ = await bob.dial(far.peer_id, far.addresses)
    far.freeze()
    with trio.move_on_after(0.3):
        while True:
            await stream.send_all(bytes(100_000))
    with trio.fail_after(bob.limits.close_seconds + 1):
        await stream.aclose()
    await until(lambda: not bob.peers)
    far.kill()


async def test_death_is_noticed_at_once_and_never_looks_like_an_end(machines: Machines, bob: Libp2pHost) -> None:
    far = machines.start(bob.me)
    stream, _ = await bob.dial(far.peer_id, far.addresses)
    await stream.receive_some()  # its HELLO
    far.kill()
    with trio.fail_after(1.5):
        await breaks(stream)


@pytest.mark.slow
async def test_two_hundred_deaths_leave_nothing(machines: Machines, bob: Libp2pHost) -> None:
    async def one() -> None:
        far = await trio.to_thread.run_sync(machines.start, bob.me)
        stream, _ = await bob.dial(far.peer_id, far.addresses)
        await stream.receive_some()
        far.kill()
        await breaks(stream)
        await until(lambda: not bob.peers)

    def held() -> tuple[int, int]:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), trio.lowlevel.current_statistics().tasks_living

    await one()
    before = held()
    for _ in range(200):
        await one()
    assert held() == before


async def test_a_handler_that_fails_harms_its_stream_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def fails(_peer: PeerId, stream: trio.abc.Stream) -> None:
        if await exactly(stream, 4) == b"boom":
            raise ZeroDivisionError
        await stream.send_all(b"fine")

    async with a_host(ALICE, on_rpc=fails) as alice, a_host(BOB, listen=[]) as bob:
        broken, _ = await bob.dial(alice.me, alice.addresses)
        well, _ = await bob.dial(alice.me, alice.addresses)
        await broken.send_all(b"boom")
        with pytest.raises(trio.BrokenResourceError):
            await broken.receive_some()
        await well.send_all(b"good")
        assert await exactly(well, 4) == b"fine"
        third, _ = await bob.dial(alice.me, alice.addresses)
        await third.send_all(b"good")
        assert await exactly(third, 4) == b"fine"
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


async def test_what_was_sent_before_closing_arrives(alice: Libp2pHost) -> None:
    async def says_much(_peer: PeerId, stream: trio.abc.Stream) -> None:
        await stream.send_all(bytes(200_000))

    async with a_host(BOB, on_rpc=says_much) as bob, a_host(ALICE, listen=[]) as near:
        stream, _ = await near.dial(bob.me, bob.addresses)
        size = 0
        with trio.fail_after(5):
            while data := await stream.receive_some():
                size += len(data)
        assert size == 200_000


async def test_a_port_has_one_owner(alice: Libp2pHost) -> None:
    (place,) = alice.listening
    with pytest.raises(CallError) as caught:
        async with a_host(BOB, listen=[f"{place[0]}:{place[1]}"]):
            pass
    assert (caught.value.code, caught.value.reason) == ("conflict", "port_in_use")
    with pytest.raises(CallError) as caught:
        await alice.listen(f"0.0.0.0:{place[1]}")
    assert caught.value.reason == "port_in_use"
    for wrong in ("nonsense", "127.0.0.1:99999", "[::1", "example.org:80"):
        with pytest.raises(CallError) as caught:
            await alice.listen(wrong)
        assert caught.value.code == "invalid", wrong
    another = await alice.listen("127.0.0.1:0")
    assert another in alice.listening


async def test_a_wildcard_announces_the_machines_addresses() -> None:
    async with a_host(ALICE, listen=["0.0.0.0:0"]) as alice, a_host(BOB, listen=[]) as bob:
        assert alice.addresses
        assert not any("/0.0.0.0/" in address for address in alice.addresses)
        stream, _ = await bob.dial(alice.me, alice.addresses)
        assert await says(stream, b"x") == b"x"


async def test_an_error_in_the_block_leaves_as_it_is() -> None:
    with pytest.raises(CallError):
        async with a_host(ALICE):
            raise CallError("conflict", "Somebody else's.")


@pytest.mark.parametrize(
    "rubbish",
    {
        "more than the window": data_frame(1, bytes(60_000)) * 6,
        "a body of 4 GiB": frame(Kind.DATA, 0, 1, 0xFFFFFFFF) + bytes(600_000),
        "another version": b"\x07" + frame(Kind.PING, Flag.SYN, 0, 1)[1:],
        "an unknown type": b"\0\x09" + bytes(10),
        "a stream with our own number": frame(Kind.WINDOW, Flag.SYN, 2, 0),
        "a stream twice": frame(Kind.WINDOW, Flag.SYN, 1, 0),
    }.items(),
    ids=lambda each: each[0],
)
async def test_a_member_that_breaks_the_rules_loses_that_connection_alone(
    rubbish: tuple[str, bytes], bob: Libp2pHost
) -> None:
    async def never_reads(_peer: PeerId, _stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    async with a_host(ALICE, on_rpc=never_reads) as alice:
        well, _ = await bob.dial(alice.me, alice.addresses)
        async with bare_yamux(alice, BOB) as (yamux, channel):
            stream = yamux.open()
            await ask(stream, RPC)
            with trio.fail_after(5):
                with contextlib.suppress(trio.BrokenResourceError):
                    await channel.send_all(rubbish[1])
                await yamux.ended.wait()
        await until(lambda: len(alice.paths(bob.me)) == 1)
        await well.send_all(b"x")


async def test_a_member_that_asks_and_never_reads_is_cut(alice: Libp2pHost, bob: Libp2pHost) -> None:
    pings = frame(Kind.PING, Flag.SYN, 0, 1) * 5_000
    async with bare_channel(alice, BOB) as channel:
        with trio.fail_after(20), contextlib.suppress(trio.BrokenResourceError):
            while True:
                await channel.send_all(pings)
    stream, _ = await bob.dial(alice.me, alice.addresses)
    assert await says(stream, b"x") == b"x"


async def test_streams_beyond_the_limit_are_reset(alice: Libp2pHost) -> None:
    async with bare_yamux(alice, BOB) as (yamux, _):
        streams = [yamux.open() for _ in range(alice.limits.inbound_streams_max + 1)]
        with trio.fail_after(5):
            await breaks(streams[-1])
            await ask(streams[0], RPC)
        assert await says(streams[0], b"x") == b"x"


def test_libp2p_is_imported_by_nobody_else() -> None:
    code = (
        "import sys, covey, covey.node, covey.cli.app, covey.testing, covey.transport.libp2p.addresses\n"
        "assert 'libp2p' not in sys.modules, 'libp2p was imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
