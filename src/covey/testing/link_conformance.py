"""What must hold of a link between two nodes beyond `covey.testing.conformance`: death, junk, and both directions."""

import msgspec
import trio

from covey.bus import wire
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.testing.callee import (
    CALL_BACK,
    COUNT,
    ECHO,
    HANG,
    HANG_STREAM,
    LARGE,
    LEDGER,
    LENGTH,
    LENGTH_STREAM,
    WHO,
    Amount,
    Text,
)
from covey.testing.conformance import PATIENCE_SECONDS, reaches, refused
from covey.testing.ends import Ends

LONG_CHARS = 15_000_000

_HELLO = wire.hello(wire.Hello(wire.VERSION, wire.VERSION_OLDEST, "boot", "stranger"))
JUNK: dict[str, bytes] = {
    "another protocol": b"GET / HTTP/1.1\r\nHost: covey\r\n\r\n",
    "no HELLO": wire.frame(wire.Type.PING, 1),
    "a HELLO that is none": wire.frame(wire.Type.HELLO, 0, b"\xc1"),
    "a HELLO of a release too far away": wire.hello(wire.Hello(wire.VERSION + 9, wire.VERSION + 8)),
    "an unknown type": _HELLO + b"\0\0\0\0\x63\0\0\0\1",
    "an oversize frame": _HELLO + b"\xff\xff\xff\xff\x03\0\0\0\1",
    "an OPEN that is none": _HELLO + wire.frame(wire.Type.OPEN, 1, b"\xc1"),
    "the other side's call id": _HELLO + wire.open_call(2, wire.Open("x", "gateway", msgspec.Raw(b"\xc0"))),
    "an OPEN without an id": _HELLO + wire.frame(wire.Type.OPEN, 0),
    "more than was announced": _HELLO
    + wire.open_call(1, wire.Open("conformance.length", "gateway", wire.NIL, body_bytes=4))
    + wire.frame(wire.Type.BODY, 1, b"12345"),
    "an empty piece": _HELLO
    + wire.open_call(1, wire.Open("conformance.length", "gateway", wire.NIL, body_bytes=4))
    + wire.frame(wire.Type.BODY, 1),
    "a piece of a call that needs none": _HELLO
    + wire.open_call(1, wire.Open("conformance.hang", "gateway", msgspec.Raw(b"\x80")))
    + wire.frame(wire.Type.BODY, 1, b"1"),
    "another identity": _HELLO + wire.hello(wire.Hello(wire.VERSION, wire.VERSION_OLDEST, "other", "stranger")),
}
"""What a stranger might send."""


class LinkConformance:
    """Subclasses give the fixture `ends`, with `raw`, `lose` and `session`."""

    async def test_the_peer_dies_in_a_call(self, ends: Ends) -> None:
        assert ends.lose is not None
        assert ends.session is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._lost_call, ends)
            await reaches(ends.bus, "running", 1)
            ends.lose()
        with trio.fail_after(PATIENCE_SECONDS):
            await ends.session.closed.wait()
        with refused("unreachable", "no_peer"):
            await ends.bus.call(ECHO, Text("anybody?"))
        with refused("unreachable", "no_peer"):
            await ends.bus.call(ECHO, Text("anybody?"), to=ends.far)

    async def _lost_call(self, ends: Ends) -> None:
        with refused("peer_lost"):
            await ends.bus.call(HANG, Nothing())

    async def test_the_peer_dies_in_a_stream(self, ends: Ends) -> None:
        assert ends.lose is not None
        taken: list[int] = []
        with refused("peer_lost"):
            async with ends.bus.stream(HANG_STREAM, Amount(3), timeout_seconds=PATIENCE_SECONDS) as replies:
                async for item in replies:
                    taken.append(item.number)
                    if len(taken) == 3:
                        ends.lose()
        assert taken == [0, 1, 2]

    async def test_long_requests_among_short_ones(self, ends: Ends) -> None:
        async def long(chars: int) -> None:
            assert (await ends.bus.call(LENGTH, Text("x" * chars))).number == chars

        async with trio.open_nursery() as nursery:
            for chars in (LONG_CHARS // 2, LONG_CHARS):
                nursery.start_soon(long, chars)
            for number in range(20):
                assert await ends.bus.call(ECHO, Text(str(number))) == Text(str(number))

    async def test_a_long_request_that_is_cut_short_leaves_nothing(self, ends: Ends) -> None:
        assert ends.session is not None
        text = Text("x" * LONG_CHARS)
        for streaming in (False, True) * 3:  # more than a peer may hold at once, were they kept
            sent = ends.session.sent_bytes
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._long_call, ends, text, streaming)
                while ends.session.sent_bytes < sent + 4 * wire.BODY_PIECE_BYTES:  # noqa: ASYNC110 - those are no event
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel()
            assert ends.session.calls_in_flight == (0, 0)
        assert (await ends.bus.call(LEDGER, Nothing())).counts.get("started", 0) == 0
        assert (await ends.bus.call(LENGTH, text)).number == LONG_CHARS

    async def _long_call(self, ends: Ends, text: Text, streaming: bool) -> None:  # noqa: FBT001 - started with it
        if streaming:
            async with ends.bus.stream(LENGTH_STREAM, text) as replies:
                await anext(replies)
        else:
            await ends.bus.call(LENGTH, text)

    async def test_oversize_messages_harm_their_own_call_alone(self, ends: Ends) -> None:
        with refused("too_large"):
            await ends.bus.call(ECHO, Text("x" * (wire.FRAME_BYTES_MAX + 1)))  # the reply is
        with refused("too_large"):
            await ends.bus.call(LARGE, Amount(0, wire.FRAME_BYTES_MAX + 1))
        with refused("too_large"):
            async with ends.bus.stream(COUNT, Amount(1, wire.FRAME_BYTES_MAX + 1)) as replies:
                await anext(replies)
        assert await ends.bus.call(ECHO, Text("unharmed")) == Text("unharmed")
        assert ends.session is not None
        assert ends.session.calls_in_flight == (0, 0)

    async def test_junk_ends_the_session_that_sent_it_alone(self, ends: Ends) -> None:
        assert ends.raw is not None
        for what, junk in JUNK.items():
            stream = await ends.raw()
            with trio.fail_after(PATIENCE_SECONDS):
                said = await self._told(stream, junk)
            refusal = [wire.read_error(got) for got in said if got.type is wire.Type.ERROR]
            assert [error.code for error in refusal] == ["protocol"], what
            assert await ends.bus.call(ECHO, Text(what)) == Text(what)

    async def _told(self, stream: trio.abc.Stream, junk: bytes) -> list[wire.Frame]:
        decoder, frames = wire.Decoder(), list[wire.Frame]()
        async with stream:
            await stream.send_all(junk)
            try:
                while data := await stream.receive_some(65_536):
                    frames += decoder.receive(data)
            except trio.BrokenResourceError:
                pass  # closed with our bytes unread: a reset
        return frames

    async def test_a_request_that_is_not_understood_harms_its_call_alone(self, ends: Ends) -> None:
        assert ends.raw is not None
        opened = wire.open_call(1, wire.Open("conformance.echo", "gateway", msgspec.Raw(b"\x81\xa4text\x01")))
        stream = await ends.raw()
        decoder, failure = wire.Decoder(), list[CallError]()
        async with stream:
            await stream.send_all(_HELLO + opened)
            with trio.fail_after(PATIENCE_SECONDS):
                while not failure:
                    frames = decoder.receive(await stream.receive_some(65_536))
                    failure = [wire.read_error(got) for got in frames if got.type is wire.Type.ERROR]
        assert failure[0].code == "invalid"

    async def test_calls_go_both_ways_on_one_session(self, ends: Ends) -> None:
        async def one(number: int) -> None:
            assert await ends.bus.call(CALL_BACK, Text(f"{number}>")) == Text(f">{str(number)[::-1]}")

        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(one, number)

    async def test_a_stamp_must_be_granted(self, ends: Ends) -> None:
        with refused("denied") as caught:
            await ends.near.stamped("inference").call(WHO, Nothing())
        assert caught[0].message == "The role 'inference' may not call conformance.who."
        seen = await ends.bus.call(WHO, Nothing())
        assert seen.peer == ends.near.me or seen.peer.startswith("unix:")
