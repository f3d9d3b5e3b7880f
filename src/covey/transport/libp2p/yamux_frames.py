"""yamux's frames, without input or output: https://github.com/hashicorp/yamux/blob/master/spec.md"""

import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

_HEADER = struct.Struct("!BBHII")
HEADER_BYTES = _HEADER.size
VERSION = 0
INITIAL_WINDOW_BYTES = 1 << 18
"""What either side may send on a new stream before it is told more."""
NORMAL_END = 0
PROTOCOL_ERROR = 1


class Kind(IntEnum):
    """A frame's type. The length field is: of DATA the payload's, of WINDOW the increment, of PING an opaque value."""

    DATA = 0
    WINDOW = 1
    PING = 2
    GO_AWAY = 3


class Flag(IntFlag):
    """The first frame of a stream has SYN, the first one back ACK, the last one each way FIN; RST ends it at once."""

    SYN = 1
    ACK = 2
    FIN = 4
    RST = 8


class YamuxError(Exception):
    """The peer broke the protocol; the connection is of no more use."""


class Received(NamedTuple):
    """A frame, or a piece of a DATA frame's payload."""

    kind: int
    flags: int
    stream: int
    length: int
    """Of DATA: this piece's. Otherwise as in the header."""
    payload: bytes


def frame(kind: int, flags: int, stream: int, length: int) -> bytes:
    """A frame without payload."""
    return _HEADER.pack(VERSION, kind, flags, stream, length)


def data_frame(stream: int, payload: bytes | memoryview) -> bytes:
    """Some of a stream's bytes."""
    return _HEADER.pack(VERSION, Kind.DATA, 0, stream, len(payload)) + payload


class Decoder:
    """Bytes to frames. A DATA frame's payload is passed on as it comes, so nothing but a partial header is ever held.

    The pieces of one DATA frame share its flags: SYN and ACK are on the first, FIN and RST on the last.
    """

    def __init__(self) -> None:
        self._header = b""
        self._flags = 0
        self._stream = 0
        self._left = 0

    def receive(self, data: bytes) -> list[Received]:
        """What has become known with these bytes.

        Raises:
            YamuxError: they are no yamux.
        """
        if self._header:
            data = self._header + data
            self._header = b""
        got: list[Received] = []
        position, end = 0, len(data)
        while position < end:
            if self._left:
                piece = data[position : position + self._left]
                position += len(piece)
                got.append(self._piece(piece))
            elif end - position < HEADER_BYTES:
                self._header = data[position:]
                break
            else:
                version, kind, flags, stream, length = _HEADER.unpack_from(data, position)
                position += HEADER_BYTES
                if version != VERSION or kind > Kind.GO_AWAY:
                    raise YamuxError(f"A frame of version {version} and type {kind} arrived.")
                if kind == Kind.DATA and length:
                    self._flags, self._stream, self._left = flags, stream, length
                else:
                    got.append(Received(kind, flags, stream, length, b""))
        return got

    def _piece(self, piece: bytes) -> Received:
        flags = self._flags
        self._left -= len(piece)
        if self._left:
            flags &= Flag.SYN | Flag.ACK
            self._flags &= ~(Flag.SYN | Flag.ACK)
        return Received(Kind.DATA, flags, self._stream, len(piece), piece)
