"""Finding each other by mDNS, on the loopback interface."""

import secrets
from functools import partial

import pytest
import trio
from libp2p_world import ALICE, BOB
from zeroconf import ServiceInfo

from covey.transport.libp2p import discovery
from covey.transport.libp2p.discovery import Hint, _hint, open_discovery, service_type

discover = partial(open_discovery, interfaces=["127.0.0.1"], refresh_seconds=0.1)
PORT_A, PORT_B = "/ip4/127.0.0.1/tcp/1001", "/ip4/127.0.0.1/tcp/1002"


async def next_hint(hints: trio.MemoryReceiveChannel[Hint]) -> Hint:
    with trio.fail_after(20):
        return await hints.receive()


@pytest.mark.slow
async def test_two_nodes_of_a_network_find_each_other_and_follow() -> None:
    network = secrets.token_hex(8)
    addresses = [PORT_A]
    async with (
        discover(network, ALICE.peer_id, lambda: tuple(addresses)),
        discover(network, BOB.peer_id, lambda: ()) as hints,
        discover(network + "other", BOB.peer_id, lambda: ()) as strangers_hints,
    ):
        assert await next_hint(hints) == Hint(ALICE.peer_id, (PORT_A,))
        addresses[:] = [PORT_B, PORT_A]
        while True:  # the first may be told again
            hint = await next_hint(hints)
            if len(hint.addresses) == 2:
                break
        assert hint == Hint(ALICE.peer_id, (PORT_B, PORT_A))
        with pytest.raises(trio.WouldBlock):
            strangers_hints.receive_nowait()


@pytest.mark.slow
async def test_the_loop_is_never_blocked() -> None:
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = trio.current_time()
            await trio.sleep(0.01)
            longest = max(longest, trio.current_time() - before)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        network = secrets.token_hex(8)
        async with (
            discover(network, ALICE.peer_id, lambda: (PORT_A,)),
            discover(network, BOB.peer_id, lambda: ()) as hints,
        ):
            await next_hint(hints)
        nursery.cancel_scope.cancel()
    assert longest < 0.5  # a stock one blocks for 1.6 s


async def test_no_network_is_no_failure(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network() -> None:
        raise OSError("no network")

    monkeypatch.setattr(discovery, "Zeroconf", no_network)  # the real one forgets a socket when it fails
    async with open_discovery("n", ALICE.peer_id, lambda: (PORT_A,)):
        with trio.fail_after(10):
            while not caplog.records:  # noqa: ASYNC110 - nothing tells
                await trio.sleep(0.01)
    assert "mDNS does not work (no network)" in caplog.text


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({"dnsaddr": f"{PORT_A}/p2p/{ALICE.peer_id}"}, Hint(ALICE.peer_id, (PORT_A,))),
        ({"dnsaddr": PORT_A}, None),
        ({"dnsaddr": "junk", "dnsaddr2": f"{PORT_B}/p2p/{ALICE.peer_id}"}, Hint(ALICE.peer_id, (PORT_B,))),
        (
            {"dnsaddr": f"{PORT_A}/p2p/{ALICE.peer_id}", "dnsaddr2": f"{PORT_B}/p2p/{BOB.peer_id}"},
            Hint(ALICE.peer_id, (PORT_A,)),
        ),
        ({"other": "x", "dnsaddr": None}, None),
        ({"dnsaddr": b"\xff\xfe"}, None),
    ],
)
def test_whatever_somebody_announces(properties: dict[str, object], expected: Hint | None) -> None:
    service = service_type("n")
    assert _hint(ServiceInfo(service, f"x.{service}", port=1, properties=properties)) == expected
