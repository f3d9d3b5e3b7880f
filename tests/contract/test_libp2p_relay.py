"""Two members that only dial out, and a third that passes their bytes on."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p_world import ALICE, BOB, MALLORY, a_host, bare_yamux, breaks, exactly, says, until

from covey.errors import CallError
from covey.store.identity import Identity
from covey.transport.libp2p.host import Libp2pHost
from covey.transport.libp2p.limits import HostLimits
from covey.transport.libp2p.negotiation import ask
from covey.transport.libp2p.relay import HOP, Relay, Reservation, serve_relay, use_relays

CAROL = Identity(b"c" * 32)
MEMBERS = {ALICE.peer_id, BOB.peer_id, CAROL.peer_id}


@asynccontextmanager
async def two_behind_nat() -> AsyncGenerator[tuple[Libp2pHost, Libp2pHost, Relay, Reservation], None]:
    """Alice relays; Bob has a reservation; Carol dials."""
    async with (
        a_host(ALICE, members=MEMBERS) as alice,
        a_host(BOB, listen=[], members=MEMBERS) as bob,
        a_host(CAROL, listen=[], members=MEMBERS) as carol,
        use_relays(bob) as bobs,
        use_relays(carol),
    ):
        relay = serve_relay(alice)
        async with bobs.reserve(alice.me, alice.addresses) as reservation:
            yield bob, carol, relay, reservation


async def test_a_circuit() -> None:
    async with two_behind_nat() as (bob, carol, relay, reservation):
        assert relay.reservations == {bob.me}
        assert bob.addresses == reservation.addresses
        stream, address = await carol.dial(bob.me, bob.addresses)
        assert (address,) == bob.addresses
        assert await says(stream, b"hello") == b"hello"
        assert [(path.relayed, path.address) for path in carol.paths(bob.me)] == [(True, address)]
        assert [path.relayed for path in bob.paths(carol.me)] == [True]
        assert relay.circuits == 1
        await stream.aclose()
        await until(lambda: relay.circuits == 0 and not carol.peers)


async def test_a_lot_of_bytes_and_several_circuits() -> None:
    async with two_behind_nat() as (bob, carol, relay, _):

        async def one(number: int) -> None:
            stream, _ = await carol.dial(bob.me, bob.addresses)
            sent = os.urandom(1_000_000 + number)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send_all, sent)
                assert await exactly(stream, len(sent)) == sent
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(one, number)
        await until(lambda: relay.circuits == 0)


async def test_a_circuit_breaks_on_both_sides_and_is_dialled_again() -> None:
    async with two_behind_nat() as (bob, carol, relay, _):
        for cut in (lambda: bob.close_peer(carol.me), lambda: carol.close_peer(bob.me)):
            stream, _ = await carol.dial(bob.me, bob.addresses)
            await says(stream, b"x")
            cut()
            await breaks(stream)
            await until(lambda: relay.circuits == 0 and not bob.paths(carol.me))


async def test_a_lost_relay_is_noticed() -> None:
    limits = HostLimits(ping_seconds=0.05)
    async with (
        a_host(BOB, listen=[], members=MEMBERS, limits=limits) as bob,
        use_relays(bob) as relays,
        a_host(ALICE, members=MEMBERS) as alice,
    ):
        serve_relay(alice)
        async with relays.reserve(alice.me, alice.addresses) as reservation:
            await trio.sleep(0.5)
            assert not reservation.lost.is_set(), "a relay that answers is kept"
            alice.close_peer(bob.me)
            with trio.fail_after(1):
                await reservation.lost.wait()
        assert bob.addresses == ()


async def test_without_a_reservation_there_is_no_way() -> None:
    async with two_behind_nat() as (_, carol, _, reservation):
        with pytest.raises(CallError, match="NO_RESERVATION"):
            await carol.dial(MALLORY.peer_id, reservation.addresses)


async def test_strangers_get_neither_a_circuit_nor_a_reservation() -> None:
    async with two_behind_nat() as (bob, _, _, reservation):
        way = reservation.addresses[0]
        async with (
            a_host(MALLORY, listen=[], members=[*MEMBERS, MALLORY.peer_id]) as mallory,
            use_relays(mallory) as relays,
        ):
            with pytest.raises(CallError, match="does not take the call"):
                await mallory.dial(bob.me, [way])
            with pytest.raises(CallError) as caught:
                async with relays.reserve(ALICE.peer_id, [way.partition("/p2p/")[0]]):
                    pass
            assert caught.value.reason == "not_member"


async def test_rubbish_for_a_relay() -> None:
    async with a_host(ALICE, members=MEMBERS) as alice:
        serve_relay(alice)
        async with bare_yamux(alice, BOB) as (yamux, _):
            for rubbish in (b"\xff\xff", b"\x03\xff\xff\xff", b"\x02\x08\x02"):
                stream = yamux.open()
                await ask(stream, HOP)
                await stream.send_all(rubbish)
                with trio.fail_after(2):
                    try:
                        while await stream.receive_some():
                            pass
                    except trio.BrokenResourceError:
                        pass
        async with a_host(BOB, listen=[], members=MEMBERS) as bob:
            stream, _ = await bob.dial(alice.me, alice.addresses)
            assert await says(stream, b"well") == b"well"
