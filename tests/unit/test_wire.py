"""The bus's frames: whatever is cut, whatever is thrown at them."""

import math
from contextlib import suppress
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.bus import wire
from covey.bus.wire import FRAME_BYTES_MAX, Decoder, Frame, Hello, Open, ProtocolError, Type
from covey.contracts.inference import Message
from covey.errors import CODES, CallError

FRAMES = st.builds(
    Frame,
    st.sampled_from(Type),
    st.integers(0, wire.CALL_ID_MAX),
    st.one_of(st.binary(max_size=300), st.integers(0, 3).map(lambda n: b"x" * (n * 20_000))),
)
TEXT = st.text(max_size=40)


@given(st.lists(FRAMES, max_size=12), st.data())
def test_any_cutting_gives_the_same_frames(frames: list[Frame], data: st.DataObject) -> None:
    sent = b"".join(wire.frame(each.type, each.call, each.payload) for each in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=30)))
    decoder = Decoder()
    got = [each for start, end in pairwise([0, *cuts, len(sent)]) for each in decoder.receive(sent[start:end])]
    assert got == frames


def test_byte_by_byte() -> None:
    frames = [Frame(Type.PING, 7, b""), Frame(Type.DATA, 1, b"x" * 500), Frame(Type.END, 1, b"")]
    decoder = Decoder()
    got = [
        each
        for byte in b"".join(wire.frame(each.type, each.call, each.payload) for each in frames)
        for each in decoder.receive(bytes([byte]))
    ]
    assert got == frames


def test_a_large_frame_in_small_pieces_is_looked_at_once() -> None:
    sent = wire.frame(Type.DATA, 1, bytes(FRAME_BYTES_MAX))
    decoder = Decoder()
    for start in range(0, len(sent) - 10, 10):  # 100,000 pieces: quadratic buffering would take minutes
        assert decoder.receive(sent[start : start + 10]) == []
    rest = sent[(len(sent) - 10 + 9) // 10 * 10 :]
    assert [each.type for each in decoder.receive(rest)] == [Type.DATA]


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_random_bytes_raise_nothing_but_protocol_errors(chunks: list[bytes]) -> None:
    decoder, frames = Decoder(), list[Frame]()
    with suppress(ProtocolError):
        for chunk in chunks:
            frames += decoder.receive(chunk)
    for each in frames:
        for read in (wire.read_hello, wire.read_open, wire.read_error, wire.read_credit):
            with suppress(ProtocolError):
                read(each)


@given(st.sampled_from(["read_hello", "read_open", "read_error", "read_credit"]), st.binary(max_size=200))
def test_random_payloads_raise_nothing_but_protocol_errors(read: str, payload: bytes) -> None:
    kind = Type.HELLO if read == "read_hello" else Type.OPEN
    with suppress(ProtocolError):
        getattr(wire, read)(Frame(kind, 0, payload))


def test_a_deeply_nested_payload() -> None:
    with pytest.raises(ProtocolError):
        wire.read_error(Frame(Type.ERROR, 1, b"\x91" * 500_000))


@pytest.mark.parametrize("header", [b"\0\x10\0\1\3\0\0\0\1", b"\xff\xff\xff\xff\3\0\0\0\1"])
def test_an_oversize_frame_is_refused_by_its_header_alone(header: bytes) -> None:
    with pytest.raises(ProtocolError, match="at most 1048576"):
        Decoder().receive(header)


def test_the_largest_frame_passes() -> None:
    (got,) = Decoder().receive(wire.frame(Type.DATA, 1, bytes(FRAME_BYTES_MAX)))
    assert len(got.payload) == FRAME_BYTES_MAX
    with pytest.raises(CallError) as caught:
        wire.frame(Type.DATA, 1, bytes(FRAME_BYTES_MAX + 1))
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("number", [0, 11, 255])
def test_an_unknown_type_is_refused(number: int) -> None:
    with pytest.raises(ProtocolError, match=f"unknown type {number}"):
        Decoder().receive(b"\0\0\0\0" + bytes([number]) + b"\0\0\0\1")


@given(
    st.builds(
        Hello,
        version=st.integers(1, 9),
        version_oldest=st.integers(1, 9),
        boot_id=TEXT,
        name=TEXT,
        features=st.lists(TEXT, max_size=3).map(tuple),
        methods=st.lists(TEXT, max_size=3).map(tuple),
    )
)
def test_hello_survives_the_journey(message: Hello) -> None:
    (got,) = Decoder().receive(wire.hello(message))
    assert wire.read_hello(got) == message


@given(TEXT, TEXT, st.none() | st.floats(0, 1e9), TEXT, st.dictionaries(TEXT, st.integers(0, 99), max_size=3))
def test_open_survives_the_journey(
    method: str, stamp: str, seconds: float | None, request_id: str, body: dict[str, int]
) -> None:
    raw = msgspec.Raw(msgspec.msgpack.encode(body))
    (got,) = Decoder().receive(wire.open_call(5, Open(method, stamp, raw, seconds, request_id)))
    read = wire.read_open(got)
    assert (read.method, read.stamp, read.seconds_left, read.request_id) == (method, stamp, seconds, request_id)
    assert msgspec.msgpack.decode(read.body) == body


@given(st.integers(0, wire.CALL_ID_MAX), st.one_of(st.binary(max_size=300), st.integers(0, 300_000).map(bytes)))
def test_a_long_body_survives_the_journey(call: int, body: bytes) -> None:
    got = Decoder().receive(b"".join(wire.body_frames(call, body)))
    assert b"".join(each.payload for each in got) == body
    assert all(each.type is Type.BODY and each.call == call for each in got)
    assert all(0 < len(each.payload) <= wire.BODY_PIECE_BYTES for each in got)


def test_a_request_has_a_bound() -> None:
    class Prompt(msgspec.Struct):
        text: bytes

    fits = Prompt(bytes(wire.REQUEST_BYTES_MAX - 11))
    assert len(wire.encode_request(fits)) == wire.REQUEST_BYTES_MAX
    with pytest.raises(CallError, match="A request of 16777217 bytes is more than the 16777216") as caught:
        wire.encode_request(Prompt(fits.text + b"x"))
    assert (caught.value.code, caught.value.reason) == ("too_large", "request")


def test_what_an_older_release_reads_of_a_call_is_the_same() -> None:
    body = msgspec.Raw(msgspec.msgpack.encode({}))
    (got,) = Decoder().receive(wire.open_call(1, Open("m", "gateway", body)))
    assert set(msgspec.msgpack.decode(got.payload)) == {"method", "stamp", "body"}  # it is told of nothing new


@given(st.sampled_from(CODES), TEXT, TEXT, TEXT, st.none() | st.floats(0, 1e6))
def test_errors_survive_the_journey(code: str, message: str, reason: str, param: str, seconds: float | None) -> None:
    failure = CallError(code, message, reason=reason, param=param, retry_after_seconds=seconds)  # type: ignore[arg-type]
    (got,) = Decoder().receive(wire.error(3, failure))
    assert wire.read_error(got).problem == failure.problem


def test_an_error_of_a_newer_release_becomes_internal() -> None:
    payload = msgspec.msgpack.encode({"code": "eaten_by_bear", "message": "Gone.", "retry_after_seconds": math.inf})
    failure = wire.read_error(Frame(Type.ERROR, 1, payload))
    assert (failure.code, failure.message, failure.retry_after_seconds) == ("internal", "Gone.", None)


def test_an_endless_error_message_is_cut() -> None:
    (got,) = Decoder().receive(wire.error(1, CallError("upstream", "x" * 2_000_000, param="y" * 2_000_000)))
    assert len(got.payload) < 3 * wire.ERROR_CHARS_MAX


@pytest.mark.parametrize("seconds", [math.nan, -1.0])
def test_a_deadline_must_be_a_time(seconds: float) -> None:
    body = msgspec.Raw(msgspec.msgpack.encode({}))
    (got,) = Decoder().receive(wire.open_call(1, Open("m", "gateway", body, seconds)))
    with pytest.raises(ProtocolError):
        wire.read_open(got)


@pytest.mark.parametrize("count", [0, -1, 2**40, "many"])
def test_a_credit_must_be_a_count(count: object) -> None:
    with pytest.raises(ProtocolError):
        wire.read_credit(Frame(Type.CREDIT, 1, msgspec.msgpack.encode(count)))


@given(st.integers(1, 6), st.integers(0, 3), st.integers(1, 6), st.integers(0, 3))
def test_both_ends_agree_on_the_version(a: int, a_back: int, b: int, b_back: int) -> None:
    mine, theirs = Hello(a, max(1, a - a_back), name="a"), Hello(b, max(1, b - b_back), name="b")

    def verdict(one: Hello, other: Hello) -> int | str:
        try:
            return wire.agree(one, other)
        except CallError as error:
            return error.reason

    assert verdict(mine, theirs) == verdict(theirs, mine)
    assert wire.agree(mine, mine) == a


def test_the_older_node_is_told_to_upgrade() -> None:
    old, new = Hello(1, 1, name="attic"), Hello(4, 3, name="cellar")
    with pytest.raises(CallError, match="upgrade this node"):
        wire.agree(old, new)
    with pytest.raises(CallError, match="upgrade the node attic"):
        wire.agree(new, old)


def test_what_another_protocol_says_first_is_no_hello() -> None:
    with pytest.raises(ProtocolError, match="not HELLO"):
        wire.read_hello(Frame(Type.OPEN, wire.SESSION, b""))
    with pytest.raises(ProtocolError, match="not HELLO"):
        wire.read_hello(Frame(Type.HELLO, wire.SESSION + 1, b""))


def test_half_a_character_is_refused_and_no_crash() -> None:
    with pytest.raises(CallError, match="half a character") as caught:
        wire.encode_request(Message("user", "\ud800"))
    assert caught.value.code == "invalid"
    wire.check_size(Message("user", "\ud800"))  # within a process it is the handler's to judge


def test_what_is_too_large_for_another_node_is_too_large_here() -> None:
    with pytest.raises(CallError, match="send less at once"):
        wire.check_size(Message("user", "x" * (wire.REQUEST_BYTES_MAX + 1)))
