"""The bytes of one connection, plain or under TLS: what the protocols read from and write to."""

import contextlib
import os
import socket
from typing import Protocol

import trio

RECEIVE_BYTES = 64 * 1024
CLOSE_SECONDS = 1.0
"""How long TLS may take to say that it ends."""
BROKEN = (trio.BrokenResourceError, trio.ClosedResourceError)
"""What reading and writing raise where there is no connection any more."""


class Wire(Protocol):
    """One connection's two directions. Whoever runs the connection closes it."""

    scheme: str
    protocol: str
    """What ALPN chose: `h2` or `http/1.1`."""

    @property
    def socket(self) -> "trio.socket.SocketType":
        """Of the TCP connection below."""
        ...

    async def receive(self) -> bytes:
        """What has come, at most `RECEIVE_BYTES`; empty at the end. Raises one of `BROKEN`."""
        ...

    def write_at_once(self, data: bytes) -> bytes:
        """Write what the kernel takes; the rest is returned, and so is all of it where `send_all` will say why not."""
        ...

    async def send_all(self, data: bytes) -> None:
        """Write everything. Raises one of `BROKEN`."""
        ...

    def end_writing(self) -> None:
        """Say that nothing more comes, and go on reading."""
        ...

    async def close(self) -> None:
        """In order, and within `CLOSE_SECONDS`."""
        ...

    def abort(self) -> None:
        """At once."""
        ...


class PlainWire:
    """TCP alone."""

    __slots__ = ("_stream",)
    scheme = "http"
    protocol = "http/1.1"

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    @property
    def socket(self) -> "trio.socket.SocketType":
        """The connection's."""
        return self._stream.socket

    async def receive(self) -> bytes:
        """See `Wire`."""
        # Clients answer no sooner than they are answered, so that trio's first attempt to read is nearly always one
        # in vain; this waits first.
        while self._stream.socket.fileno() >= 0:
            await trio.lowlevel.wait_readable(self._stream.socket)
            try:
                return os.read(self._stream.socket.fileno(), RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError from error
        raise trio.ClosedResourceError

    def write_at_once(self, data: bytes) -> bytes:
        """See `Wire`."""
        try:
            return data[os.write(self._stream.socket.fileno(), data) :]
        except OSError:
            return data

    async def send_all(self, data: bytes) -> None:
        """See `Wire`."""
        await self._stream.send_all(data)

    def end_writing(self) -> None:
        """See `Wire`."""
        with contextlib.suppress(OSError):
            self._stream.socket.shutdown(socket.SHUT_WR)

    async def close(self) -> None:
        """See `Wire`; without a checkpoint."""
        self.abort()

    def abort(self) -> None:
        """See `Wire`."""
        self.end_writing()
        self._stream.socket.close()


class TlsWire:
    """TLS over TCP, after its handshake."""

    __slots__ = ("_stream", "_tls", "protocol")
    scheme = "https"

    def __init__(self, stream: trio.SocketStream, tls: "trio.SSLStream[trio.SocketStream]", protocol: str) -> None:
        self._stream = stream
        self._tls = tls
        self.protocol = protocol

    @property
    def socket(self) -> "trio.socket.SocketType":
        """Of the TCP connection below."""
        return self._stream.socket

    async def receive(self) -> bytes:
        """See `Wire`; at most one record, of 16 KiB."""
        return bytes(await self._tls.receive_some(RECEIVE_BYTES))

    def write_at_once(self, data: bytes) -> bytes:
        """See `Wire`: TLS has to encrypt first, and never does."""
        return data

    async def send_all(self, data: bytes) -> None:
        """See `Wire`."""
        await self._tls.send_all(data)

    def end_writing(self) -> None:
        """See `Wire`: the TCP connection's end says so; answers carry their own length."""
        with contextlib.suppress(OSError):
            self._stream.socket.shutdown(socket.SHUT_WR)

    async def close(self) -> None:
        """See `Wire`."""
        # Shielded: without its closing message a client cannot tell the end of an answer from an attacker's cut.
        with trio.move_on_after(CLOSE_SECONDS, shield=True), contextlib.suppress(*BROKEN):
            await self._tls.aclose()
        self.abort()

    def abort(self) -> None:
        """See `Wire`."""
        self.end_writing()
        self._stream.socket.close()
