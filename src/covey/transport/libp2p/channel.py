"""The bytes of one connection: in the clear during the handshake, then through Noise.

libp2p's own readers and writers take some ten awaits and two system calls for a message, and give up on one that comes
in more than a hundred pieces. Here one read takes whatever the socket has, and many frames leave in one write.
"""

import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Protocol

import trio

READ_BYTES = 1 << 18
NOISE_MESSAGE_BYTES_MAX = 65_535
NOISE_PAYLOAD_BYTES_MAX = NOISE_MESSAGE_BYTES_MAX - 16
"""Of a message, without Poly1305's tag."""
_LENGTH = struct.Struct("!H")
_AT_ONCE = struct.pack("ii", 1, 0)


class ChannelError(Exception):
    """The connection is of no more use; the message says why, for people."""


class Carrying(Protocol):
    """What a connection runs on: a TCP socket, or a stream through a relay."""

    async def send_all(self, data: bytes) -> None:
        """As `trio.abc.SendStream`."""
        ...

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As `trio.abc.ReceiveStream`."""
        ...

    async def send_eof(self) -> None:
        """As `trio.abc.HalfCloseableStream`."""
        ...

    def abort(self) -> None:
        """Close at once and for good, whatever is queued; wakes whoever reads or writes. May be called twice."""
        ...

    def close(self) -> None:
        """Close at once, too; what was written before still arrives. May be called twice."""
        ...


class TcpCarrying:
    """A TCP connection that can be cut without waiting for anything."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.send_all = stream.send_all
        self.receive_some = stream.receive_some
        self.send_eof = stream.send_eof

    def abort(self) -> None:
        """See `Carrying`. The other side gets a reset, and the kernel keeps nothing for it."""
        with contextlib.suppress(OSError):  # it has been closed already
            self._stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self._stream.socket.close()

    def close(self) -> None:
        """See `Carrying`."""
        self._stream.socket.close()


class Channel:
    """One connection's bytes, read by one task and written by one.

    Args:
        carrying: what it runs on.
        bytes_max: received in all, above which the connection breaks; raised by `trust`.
    """

    def __init__(self, carrying: Carrying, *, bytes_max: int) -> None:
        self._carrying = carrying
        self._bytes_max: int | None = bytes_max
        self._encrypt: Callable[[bytes], bytes] | None = None
        self._decrypt: Callable[[bytes], bytes] | None = None
        self._incoming = bytearray()
        """As received; of Noise, at most a partial message."""
        self._plain = bytearray()
        """Read by `receive_some`, which wanted less."""
        self.heard_at = trio.current_time()
        self.received_bytes = 0
        self.sent_bytes = 0

    def secure(self, encrypt: Callable[[bytes], bytes], decrypt: Callable[[bytes], bytes]) -> None:
        """From now on everything is a Noise message, what has been received and not been taken included."""
        self._encrypt, self._decrypt = encrypt, decrypt
        self._incoming[:0] = self._plain
        self._plain.clear()

    def trust(self, bytes_max: int | None) -> None:
        """Receive this much in all, or as much as comes."""
        self._bytes_max = bytes_max

    def abort(self) -> None:
        """Cut the connection, at once."""
        self._carrying.abort()

    def close(self) -> None:
        """Close the connection, at once; what was written before still arrives."""
        self._carrying.close()

    async def send_eof(self) -> None:
        """Tell the other side that nothing more comes."""
        await self._carrying.send_eof()

    async def send_all(self, data: bytes) -> None:
        """Write, encrypted once the connection is.

        Raises:
            trio.BrokenResourceError, trio.ClosedResourceError
        """
        if self._encrypt is None:
            message = data
        elif len(data) <= NOISE_PAYLOAD_BYTES_MAX:
            message = self._sealed(data)
        else:
            parts = (data[at : at + NOISE_PAYLOAD_BYTES_MAX] for at in range(0, len(data), NOISE_PAYLOAD_BYTES_MAX))
            message = b"".join([self._sealed(part) for part in parts])
        await self._carrying.send_all(message)
        self.sent_bytes += len(message)

    async def receive(self) -> bytes:
        """Whatever has come, decrypted; empty where the other side has ended.

        Raises:
            ChannelError: it sent too much, or what it sent was tampered with.
            trio.BrokenResourceError, trio.ClosedResourceError
        """
        if self._plain:
            plain = bytes(self._plain)
            self._plain.clear()
            return plain
        while True:
            if self._incoming and (plain := self._opened()):
                return plain
            data = await self._carrying.receive_some(READ_BYTES)
            if not data:
                if self._incoming:
                    raise ChannelError("the connection ended within a message")
                return b""
            self.heard_at = trio.current_time()
            self.received_bytes += len(data)
            if self._bytes_max is not None and self.received_bytes > self._bytes_max:
                raise ChannelError(f"the peer sent more than {self._bytes_max} bytes")
            self._incoming += data

    async def receive_some(self, max_bytes: int) -> bytes:
        """At most so many bytes: for the handshake, in which others take over in the middle."""
        if not self._plain:
            self._plain += await self.receive()
        taken = bytes(self._plain[:max_bytes])
        del self._plain[:max_bytes]
        return taken

    def _sealed(self, plain: bytes) -> bytes:
        assert self._encrypt is not None
        message = self._encrypt(plain)
        return _LENGTH.pack(len(message)) + message

    def _opened(self) -> bytes:
        """Decrypt the whole messages that have come."""
        incoming = self._incoming
        if self._decrypt is None:
            plain = bytes(incoming)
            incoming.clear()
            return plain
        parts: list[bytes] = []
        position, end = 0, len(incoming)
        while end - position >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(incoming, position)
            start = position + _LENGTH.size
            if end - start < length:
                break
            position = start + length
            try:
                parts.append(self._decrypt(bytes(incoming[start:position])))
            except Exception as error:  # the library's errors here have no common ancestor
                raise ChannelError("what the peer sent does not decrypt") from error
        del incoming[:position]
        return parts[0] if len(parts) == 1 else b"".join(parts)
