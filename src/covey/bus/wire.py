"""The bus's frames: bytes to frames and back. Pure: no I/O, no trio.

A frame is `u32 length | u8 type | u32 call id | payload`, big endian; the length is the payload's, at most
`FRAME_BYTES_MAX`. Payloads are MessagePack: of the structs here, or of a contract's types.

| type | call id | payload |
| --- | --- | --- |
| HELLO | 0 | `Hello`; the first frame in either direction, and again when the sender serves other methods |
| OPEN | the caller's | `Open`; the dialer of the session uses odd ids, the acceptor even ones |
| BODY | as opened | the next piece of a long request, whose OPEN said how long; other calls' frames go in between |
| DATA | as opened | one reply of a stream |
| END | as opened | the response of a unary call; nothing for a stream, or for a call that was cancelled |
| ERROR | as opened | `covey.errors.Problem`; ends the call |
| CANCEL | as opened | nothing: the caller has left. END or ERROR follows once the handler has ended |
| CREDIT | as opened | how many DATA frames the reader has taken since the last one |
| PING, PONG | any | nothing; PONG returns the id |
| END, ERROR | 0 | the whole session: its end, or why it is refused |
"""

import math
from collections.abc import Iterator
from enum import IntEnum
from struct import Struct as Layout
from typing import Annotated, TypeVar

import msgspec

from covey.errors import CODES, CallError, Code, Problem

VERSION = 1
"""What this release speaks."""
VERSION_OLDEST = 1
"""The oldest that this release still understands: its neighbours in a rolling upgrade."""
LONG_REQUESTS = "long_requests"
"""Takes requests in BODY frames."""
FEATURES: tuple[str, ...] = (LONG_REQUESTS,)
"""What this release can do beyond its version; a session uses what both ends name."""

FRAME_BYTES_MAX = 1 << 20
REQUEST_BYTES_MAX = 16 << 20
"""Of one request, however it travels: twice what the gateway takes as JSON. A reply is one frame: streams have many."""
BODY_PIECE_BYTES = 1 << 16
"""How much of a long request goes before other calls' frames have their turn."""
CALL_ID_MAX = 0xFFFF_FFFF
SESSION = 0
"""The call id of frames that concern the whole session."""
ERROR_CHARS_MAX = 4_096
"""Where an error's message is cut: it is a line for people."""

_HEADER = Layout("!IBI")
_encode = msgspec.msgpack.Encoder().encode
_Payload = TypeVar("_Payload")
_Name = Annotated[str, msgspec.Meta(max_length=200)]


class Type(IntEnum):
    """What a frame is about."""

    HELLO = 1
    OPEN = 2
    DATA = 3
    END = 4
    ERROR = 5
    CANCEL = 6
    CREDIT = 7
    PING = 8
    PONG = 9
    BODY = 10


_CODES: dict[str, Code] = {code: code for code in CODES}
_TYPES: dict[int, Type] = {int(kind): kind for kind in Type}


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One frame, its payload still encoded. No named tuple: there is one a token, and that takes thrice as long."""

    type: Type
    call: int
    payload: bytes


class Hello(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who speaks. `boot_id` is new in every process, so that an honest restart and a copied identity can be told apart.

    `methods`: what the sender serves. `name`: for messages; who the peer really is, the transport has proved.
    """

    version: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    version_oldest: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    boot_id: _Name = ""
    name: _Name = ""
    features: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=256)] = ()
    methods: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=4_096)] = ()


class Open(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call begins. `seconds_left` until its deadline: never a time of day, for clocks differ; `None`: no deadline.

    `body_bytes`: where not 0, the request is that long, and comes in BODY frames; `body` is nil then. `stamp` is plain
    text here: a party that this release does not know is denied, it does not break the session.
    """

    method: _Name
    stamp: _Name
    body: msgspec.Raw
    seconds_left: Annotated[float, msgspec.Meta(ge=0)] | None = None
    request_id: _Name = ""
    body_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0


NIL = msgspec.Raw(b"\xc0")
"""What an OPEN has for a body that follows."""


class _LooseProblem(msgspec.Struct, frozen=True):
    """A `Problem` of any release: it may have codes that this one lacks."""

    code: str
    message: str
    reason: str = ""
    param: str = ""
    retry_after_seconds: float | None = None


class ProtocolError(CallError):
    """The other side broke the wire protocol: the session is over."""

    def __init__(self, message: str) -> None:
        super().__init__("protocol", message)


class Decoder:
    """Turns the bytes of one direction of a stream into frames, however they are cut.

    Holds at most one incomplete frame. After a `ProtocolError` the stream is out of step: there is no going on.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed = _HEADER.size

    def receive(self, data: bytes | bytearray) -> list[Frame]:
        """The frames that these bytes complete.

        Raises:
            ProtocolError: a length above `FRAME_BYTES_MAX` or an unknown type.
        """
        data = bytes(data)
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:  # a large frame in small pieces: look at it once, not at every piece
                return []
            data = bytes(self._buffer)
            self._buffer.clear()
        frames: list[Frame] = []
        start, end, size = 0, len(data), _HEADER.size
        self._needed = size
        while end - start >= size:
            length, number, call = _HEADER.unpack_from(data, start)
            kind = _TYPES.get(number)
            if kind is None:
                raise ProtocolError(f"A frame of the unknown type {number} arrived.")
            if length > FRAME_BYTES_MAX:
                raise ProtocolError(f"A frame announced {length} bytes; at most {FRAME_BYTES_MAX} are allowed.")
            stop = start + size + length
            if stop > end:
                self._needed = stop - start
                break
            frames.append(Frame(kind, call, data[start + size : stop]))
            start = stop
        if start < end:
            self._buffer += data[start:]
        return frames


def frame(kind: Type, call: int, payload: bytes = b"") -> bytes:
    """One frame for the stream.

    Raises:
        CallError: `too_large`: this message does not fit; nothing else is harmed.
    """
    if len(payload) > FRAME_BYTES_MAX:
        raise CallError(
            "too_large",
            f"A message of {len(payload)} bytes is more than the {FRAME_BYTES_MAX} that one may have between nodes:"
            " send less at once.",
            reason="frame",
        )
    return _HEADER.pack(len(payload), kind, call) + payload


def hello(message: Hello) -> bytes:
    """A HELLO frame."""
    return frame(Type.HELLO, SESSION, msgspec.msgpack.encode(message))


def open_call(call: int, message: Open) -> bytes:
    """An OPEN frame; `too_large` as in `frame`."""
    return frame(Type.OPEN, call, msgspec.msgpack.encode(message))


def body_frames(call: int, body: bytes) -> Iterator[bytes]:
    """The BODY frames of a long request, made one by one: a second copy of all of it would be as long as it is."""
    for start in range(0, len(body), BODY_PIECE_BYTES):
        yield frame(Type.BODY, call, body[start : start + BODY_PIECE_BYTES])


def encode_request(request: msgspec.Struct) -> bytes:
    """A request's message.

    Raises:
        CallError: `too_large`; `invalid` where a text is none: half a surrogate pair has no bytes. In the same words
            near and far.
    """
    try:
        body = _encode(request)
    except UnicodeEncodeError as error:
        raise CallError("invalid", "The request holds half a character: text must be Unicode.") from error
    if len(body) > REQUEST_BYTES_MAX:
        raise too_long(len(body))
    return body


def check_size(request: msgspec.Struct) -> None:
    """Refuse a request that stays within the process where its size would be refused on the way to another.

    Half a character passes: here it reaches the handler, which judges it with all other nonsense.

    Raises:
        CallError: `too_large`.
    """
    try:
        encode_request(request)  # in a tenth of a microsecond, as a rule
    except CallError as error:
        if error.code != "invalid":
            raise


def too_long(body_bytes: int) -> CallError:
    """The `too_large` of a request beyond `REQUEST_BYTES_MAX`."""
    return CallError(
        "too_large",
        f"A request of {body_bytes} bytes is more than the {REQUEST_BYTES_MAX} that one may have: send less at once.",
        reason="request",
    )


def error(call: int, failure: CallError) -> bytes:
    """An ERROR frame, its texts cut where they are longer than a line can be."""
    problem = failure.problem
    return frame(
        Type.ERROR,
        call,
        msgspec.msgpack.encode(
            msgspec.structs.replace(
                problem,
                message=problem.message[:ERROR_CHARS_MAX],
                reason=problem.reason[:ERROR_CHARS_MAX],
                param=problem.param[:ERROR_CHARS_MAX],
            )
        ),
    )


def credit(call: int, count: int) -> bytes:
    """A CREDIT frame."""
    return frame(Type.CREDIT, call, msgspec.msgpack.encode(count))


def read_hello(got: Frame) -> Hello:
    """What a HELLO says, or `ProtocolError`; also for any other first frame."""
    if got.type is not Type.HELLO or got.call != SESSION:
        raise ProtocolError(f"The first frame was {got.type.name}, not HELLO: this is no Covey node of our kind.")
    return _read(got, Hello)


def read_open(got: Frame) -> Open:
    """What an OPEN says, or `ProtocolError`."""
    return _read(got, Open)  # its `ge=0` keeps out what is no number, too


def read_error(got: Frame) -> CallError:
    """The failure that an ERROR carries, or `ProtocolError`. A code of a newer release becomes `internal`."""
    loose = _read(got, _LooseProblem)
    seconds = loose.retry_after_seconds
    return CallError.of(
        Problem(
            _CODES.get(loose.code, "internal"),
            loose.message,
            loose.reason,
            loose.param,
            seconds if seconds is not None and math.isfinite(seconds) else None,
        )
    )


def read_credit(got: Frame) -> int:
    """How many replies were taken, at least one, or `ProtocolError`."""
    count = _read(got, int)
    if not 1 <= count <= CALL_ID_MAX:
        raise ProtocolError(f"A CREDIT frame granted {count}.")
    return count


def agree(mine: Hello, theirs: Hello) -> int:
    """The version that a session speaks: the newest that both understand. Both ends come to the same verdict.

    Raises:
        CallError: `protocol` (`version`): the releases are too far apart.
    """
    version = min(mine.version, theirs.version)
    if version >= max(mine.version_oldest, theirs.version_oldest):
        return version
    older = "this node" if mine.version < theirs.version else f"the node {theirs.name or '(unnamed)'}"
    raise CallError(
        "protocol",
        f"{theirs.name or 'The other node'} speaks versions {theirs.version_oldest} to {theirs.version} of the bus,"
        f" this node {mine.version_oldest} to {mine.version}: upgrade {older}.",
        reason="version",
    )


def _read(got: Frame, kind: type[_Payload]) -> _Payload:
    try:
        return msgspec.msgpack.decode(got.payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as failure:
        raise ProtocolError(f"A malformed {got.type.name} frame arrived: {failure}.") from failure
