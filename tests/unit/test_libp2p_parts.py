"""The libp2p transport's parts that need no network: addresses, the lobby, yamux's frames, negotiation, races."""

import contextlib
import struct

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair

from covey.transport.base import PeerId
from covey.transport.libp2p import yamux_frames as yamux
from covey.transport.libp2p.addresses import (
    Address,
    accounting_key,
    address_of,
    announced,
    dial_order,
    parse_address,
    parse_listen,
)
from covey.transport.libp2p.channel import NOISE_PAYLOAD_BYTES_MAX, Channel, ChannelError
from covey.transport.libp2p.dial import AttemptError, RaceLost, race
from covey.transport.libp2p.lobby import ADDRESSES_MAX, Attempts, Lobby, Places
from covey.transport.libp2p.negotiation import NegotiationError, Refused, answer, ask

ME = PeerId("12D3KooWEP6D3C9YtCxS2F4Wtj22TWUhU7DAziKudwG1kETrqhig")
RELAY = PeerId("12D3KooWM7Vka8yp1nwQV2QyyVTCwKixcokhrK8D2TmwRHceWE9S")


class TestAddresses:
    @pytest.mark.parametrize(
        "text",
        [
            "/ip4/192.168.1.4/tcp/26840",
            "/ip6/2001:db8::1/tcp/1",
            f"/ip4/10.0.0.1/tcp/26840/p2p/{ME}",
            "/dns/gpu.example.org/tcp/26840",
            f"/dns4/a/tcp/1/p2p/{RELAY}/p2p-circuit",
            f"/ip4/1.2.3.4/tcp/1/p2p/{RELAY}/p2p-circuit/p2p/{ME}",
        ],
    )
    def test_there_and_back(self, text: str) -> None:
        assert str(parse_address(text)) == text

    @pytest.mark.parametrize(
        "text",
        [
            "", "/", "127.0.0.1:80", "/ip4/127.0.0.1", "/ip4/127.0.0.1/udp/1", "/ip4/::1/tcp/1", "/ip4/1.2.3/tcp/1",
            "/ip4/1.2.3.4/tcp/65536", "/ip4/1.2.3.4/tcp/-1", "/ip4/1.2.3.4/tcp/x", "/ip4/1.2.3.4/tcp/١",
            "/ip4/1.2.3.4/tcp/1/p2p/x", "/ip4/1.2.3.4/tcp/1/p2p-circuit", "/ip4/1.2.3.4/tcp/1/quic", "/dns/-a/tcp/1",
            f"/ip4/1.2.3.4/tcp/1/p2p/{ME}/p2p/{ME}", f"/ip4/1.2.3.4/tcp/1/p2p/{RELAY}/p2p-circuit/p2p-circuit",
            "/dns/" + "a." * 300 + "/tcp/1",
        ],
    )  # fmt: skip
    def test_what_is_none(self, text: str) -> None:
        with pytest.raises(ValueError):
            parse_address(text)

    @given(st.text(max_size=80))
    def test_no_text_surprises(self, text: str) -> None:
        with contextlib.suppress(ValueError):
            parse_address("/ip4/1.2.3.4/tcp/1/" + text)
        with contextlib.suppress(ValueError):
            parse_address(text)
        with contextlib.suppress(ValueError):
            parse_listen(text)

    def test_a_wildcard_stands_for_the_machine(self) -> None:
        own = ["127.0.0.1", "192.168.1.4", "10.8.0.2", "::1", "fe80::1%eth0", "2001:db8::1"]
        assert [str(each) for each in announced([("0.0.0.0", 5)], own)] == [
            "/ip4/192.168.1.4/tcp/5",
            "/ip4/10.8.0.2/tcp/5",
        ]
        assert [str(each) for each in announced([("::", 5)], own)] == ["/ip6/2001:db8::1/tcp/5"]
        assert [str(each) for each in announced([("0.0.0.0", 5)], own[:1])] == ["/ip4/127.0.0.1/tcp/5"]
        assert [str(each) for each in announced([("127.0.0.1", 5)], own)] == ["/ip4/127.0.0.1/tcp/5"]
        assert announced([], own) == ()

    def test_order_of_dialling(self) -> None:
        circuit = f"/ip4/1.2.3.4/tcp/1/p2p/{RELAY}/p2p-circuit"
        tried = dial_order([circuit, "/ip4/127.0.0.1/tcp/1", "junk", "/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1"])
        assert [str(each) for each in tried] == ["/ip4/10.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1", circuit]

    def test_listening(self) -> None:
        assert parse_listen("0.0.0.0") == ("0.0.0.0", 26840)
        assert parse_listen("[::]") == ("::", 26840)
        assert parse_listen("[::1]:7") == ("::1", 7)

    @pytest.mark.parametrize("text", ["[::1", "[::1]7", "[here]:7", "here:7", "0.0.0.0:65536", "0.0.0.0:x"])
    def test_what_is_no_place_to_listen(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"should look like|is no port"):
            parse_listen(text)

    def test_a_place_without_a_port_cannot_be_dialled(self) -> None:
        assert dial_order(["/ip4/10.0.0.1/tcp/0"]) == ()

    def test_accounting(self) -> None:
        assert accounting_key("10.0.0.1") == "10.0.0.1"
        assert accounting_key("2001:db8::1") == accounting_key("2001:db8::ffff") != accounting_key("2001:db9::1")
        assert address_of("::ffff:10.0.0.1", 5) == Address("10.0.0.1", 5)
        assert str(address_of("fe80::1%eth0", 5)) == "/ip6/fe80::1/tcp/5"


class Guest:
    def __init__(self, heard_at: float) -> None:
        self.heard_at = heard_at

    def abort(self) -> None:
        raise AssertionError("the lobby only says who has to go")


class TestLobby:
    def test_who_is_silent_longest_makes_room(self) -> None:
        lobby = Lobby(guests_max=4, per_address_max=2)
        old, new, newest, other = Guest(1), Guest(2), Guest(3), Guest(0)
        assert lobby.enter("b", other) is None
        assert lobby.enter("a", new) is None
        assert lobby.enter("a", old) is None
        assert lobby.enter("a", newest) is old
        assert lobby.enter("c", Guest(5)) is None
        assert lobby.enter("d", Guest(5)) is new, "of the address that has most"
        assert (len(lobby), lobby.turned_out) == (4, 2)
        assert not lobby.leave("a", old)
        assert lobby.leave("a", newest)
        assert not lobby.leave("a", newest)
        assert len(lobby) == 3

    def test_attempts(self) -> None:
        attempts = Attempts(2, 10)
        assert [attempts.allow("a", now) for now in (0, 1, 2)] == [True, True, False]
        assert attempts.allow("b", 2)
        assert [attempts.allow("a", now) for now in (10, 10.5, 11)] == [True, False, True]
        for number in range(ADDRESSES_MAX + 10):
            attempts.allow(str(number), 12)
        assert len(attempts._times) == ADDRESSES_MAX

    def test_places(self) -> None:
        places = Places(3, 2)
        assert [places.take(key) for key in "aaabb"] == [True, True, False, True, False]
        places.free("a")
        assert places.take("b")
        for key in "abb":
            places.free(key)
        assert len(places) == 0


class TestYamuxFrames:
    @given(st.lists(st.binary(max_size=300), min_size=1, max_size=8), st.lists(st.integers(1, 40), max_size=60))
    def test_it_does_not_matter_how_the_bytes_come(self, payloads: list[bytes], cuts: list[int]) -> None:
        wire = b"".join(
            yamux.data_frame(number, payload) + yamux.frame(yamux.Kind.PING, 1, 0, number)
            for number, payload in enumerate(payloads, 1)
        )
        decoder, got, position = yamux.Decoder(), list[yamux.Received](), 0
        for cut in [*cuts, len(wire)]:
            got += decoder.receive(wire[position : position + cut])
            position += cut
        assert [each.length for each in got if each.kind == yamux.Kind.PING] == list(range(1, len(payloads) + 1))
        for number, payload in enumerate(payloads, 1):
            assert b"".join(each.payload for each in got if each.kind == 0 and each.stream == number) == payload

    def test_flags_of_a_frame_in_pieces(self) -> None:
        flags = yamux.Flag
        header = struct.pack("!BBHII", 0, 0, flags.SYN | flags.FIN, 1, 6)
        decoder = yamux.Decoder()
        got = decoder.receive(header + b"ab") + decoder.receive(b"cd") + decoder.receive(b"ef")
        assert [(each.flags, each.payload) for each in got] == [(flags.SYN, b"ab"), (0, b"cd"), (flags.FIN, b"ef")]

    def test_rubbish(self) -> None:
        for wire in (b"\1" + bytes(11), b"\0\7" + bytes(10)):
            with pytest.raises(yamux.YamuxError):
                yamux.Decoder().receive(wire)


class TestNegotiation:
    async def agree(self, asked: str, offered: set[str], *, patient: bool) -> list[str]:
        near, far = memory_stream_pair()
        said: list[str] = []

        async def far_side() -> None:
            async with far:
                try:
                    said.append("far: " + await answer(far, offered, patient=patient))
                except NegotiationError as error:
                    said.append(f"far: {error}")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(far_side)
            async with near:
                try:
                    await ask(near, asked)
                    said.append("near: agreed")
                except NegotiationError as error:
                    said.append(f"near: {type(error).__name__}")
        return sorted(said)

    async def test_agreement(self) -> None:
        assert await self.agree("/a/1", {"/a/1", "/b/1"}, patient=False) == ["far: /a/1", "near: agreed"]

    async def test_refusal(self) -> None:
        assert "near: Refused" in await self.agree("/c/1", {"/a/1"}, patient=True)
        assert "near: NegotiationError" in await self.agree("/c/1", {"/a/1"}, patient=False)

    @pytest.mark.parametrize(
        "wire", [b"GET / HTTP/1.1\r\n", b"\0", b"\xff\xff\xff\xff", b"\x03no\n", b"\x03n\xc3\n", b""]
    )
    async def test_rubbish(self, wire: bytes) -> None:
        near, far = memory_stream_pair()
        await far.send_all(wire)
        await far.send_eof()
        with pytest.raises(NegotiationError):
            await answer(near, {"/a/1"}, patient=True)
        with pytest.raises(NegotiationError):
            await ask(near, "/a/1")
        assert not issubclass(NegotiationError, Refused)


class Wire:
    """Both ends of nothing: what is sent is kept, what is received was put there."""

    def __init__(self, *incoming: bytes) -> None:
        self.incoming = list(incoming)
        self.sent = b""

    async def send_all(self, data: bytes) -> None:
        self.sent += data

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return self.incoming.pop(0) if self.incoming else b""

    async def send_eof(self) -> None: ...

    def abort(self) -> None: ...

    def close(self) -> None: ...


def seal(data: bytes) -> bytes:
    return data + b"T" * 16


def unseal(data: bytes) -> bytes:
    if data[-16:] != b"T" * 16:
        raise ValueError("forged")
    return data[:-16]


class TestChannel:
    async def test_large_messages_are_split_and_come_back_whole(self) -> None:
        plain = bytes(range(256)) * 1_000
        out = Wire()
        channel = Channel(out, bytes_max=0)
        channel.secure(seal, unseal)
        await channel.send_all(plain)
        assert len(out.sent) > len(plain) + 3 * 18
        wire = out.sent
        back = Channel(Wire(*(wire[at : at + 999] for at in range(0, len(wire), 999))), bytes_max=1 << 20)
        back.secure(seal, unseal)
        got = b""
        while data := await back.receive():
            assert len(data) <= NOISE_PAYLOAD_BYTES_MAX
            got += data
        assert got == plain

    async def test_what_is_forged_cut_or_too_much(self) -> None:
        for incoming, limit, what in (
            (b"\0\x20" + bytes(32), 100, "does not decrypt"),
            (b"\0\x20" + bytes(10), 100, "within a message"),
            (b"\0\x20" + seal(bytes(16)), 20, "more than 20"),
        ):
            channel = Channel(Wire(incoming), bytes_max=limit)
            channel.secure(seal, unseal)
            with pytest.raises(ChannelError, match=what):
                await channel.receive()

    async def test_what_was_read_ahead_in_the_clear_is_the_start_of_what_is_sealed(self) -> None:
        channel = Channel(Wire(b"clear" + b"\0\x15" + seal(b"quiet")), bytes_max=100)
        assert await channel.receive_some(5) == b"clear"
        channel.secure(seal, unseal)
        assert await channel.receive() == b"quiet"


class TestRace:
    async def run(self, outcomes: dict[str, float | str], discarded: list[str] | None = None) -> tuple[str, str]:
        async def attempt(way: str) -> str:
            outcome = outcomes[way]
            if isinstance(outcome, str):
                raise AttemptError(outcome)
            await trio.sleep(outcome)
            return way.upper()

        thrown: list[str] = [] if discarded is None else discarded
        return await race(list(outcomes), attempt, thrown.append, seconds=10, stagger_seconds=1)

    async def test_the_first_to_answer_wins(self, autojump_clock: MockClock) -> None:
        assert await self.run({"slow": 5, "quick": 1}) == ("quick", "QUICK")
        assert trio.current_time() == 2
        assert await self.run({"refused": "no", "next": 0.5}) == ("next", "NEXT")
        assert trio.current_time() == 2.5, "who fails lets the next one start at once"

    async def test_nobody_answers(self, autojump_clock: MockClock) -> None:
        with pytest.raises(RaceLost) as lost:
            await self.run({"refused": "no", "silent": 99})
        assert lost.value.reasons == ("no", None)
        assert trio.current_time() == 10

    async def test_a_win_that_nobody_waits_for_is_undone(self, autojump_clock: MockClock) -> None:
        discarded: list[str] = []
        with trio.CancelScope() as scope:

            async def attempt(way: str) -> str:
                scope.cancel()
                return way

            await race(["a"], attempt, discarded.append, seconds=10, stagger_seconds=1)
        assert scope.cancelled_caught == (discarded == ["a"])
        with pytest.raises(RaceLost):
            await race([], attempt, discarded.append, seconds=10, stagger_seconds=1)
