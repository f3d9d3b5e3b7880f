"""multistream-select: both ends agree on what a connection or a stream carries, in one round trip.

https://github.com/multiformats/multistream-select. libp2p's own takes two round trips, and reads a name of any length.
"""

from collections.abc import Collection
from typing import Protocol

HEADER = "/multistream/1.0.0"
REFUSAL = "na"
NAME_BYTES_MAX = 256
ATTEMPTS_MAX = 8

NOISE = "/noise"
YAMUX = "/yamux/1.0.0"
RPC = "/covey/rpc/1"
JOIN = "/covey/join/1"


class NegotiationError(Exception):
    """The other side does not speak what it should; the message says what it did, for people."""


class Refused(NegotiationError):
    """The other side understood, and will not."""


class Line(Protocol):
    """What `YamuxStream` and `Channel` have in common."""

    async def send_all(self, data: bytes) -> None:
        """As `trio.abc.SendStream`."""
        ...

    async def receive_some(self, max_bytes: int) -> bytes:
        """As `trio.abc.ReceiveStream`."""
        ...


async def ask(line: Line, protocol: str) -> None:
    """Propose a protocol, as the side that opened the line.

    Raises:
        Refused: the other side does not offer it to us.
        NegotiationError: it said something else.
        trio.BrokenResourceError, trio.ClosedResourceError, ChannelError: as the line does.
    """
    await line.send_all(_message(HEADER) + _message(protocol))
    if (header := await _read(line)) != HEADER:
        raise NegotiationError(f"it said {header!r} instead of {HEADER}")
    answer = await _read(line)
    if answer == REFUSAL:
        raise Refused(f"it does not offer {protocol}")
    if answer != protocol:
        raise NegotiationError(f"it said {answer!r} when asked for {protocol}")


async def answer(line: Line, offered: Collection[str], *, patient: bool) -> str:
    """Agree to the first protocol that the other side proposes and that is offered here, and return it.

    Args:
        line: which the other side opened.
        offered: the protocols' names.
        patient: whether it may propose another after one that is not offered, `ATTEMPTS_MAX` in all.

    Raises:
        NegotiationError: there is none, or the other side does not speak multistream-select.
        trio.BrokenResourceError, trio.ClosedResourceError, ChannelError: as the line does.
    """
    await line.send_all(_message(HEADER))
    if (header := await _read(line)) != HEADER:
        raise NegotiationError(f"it said {header!r} instead of {HEADER}")
    proposal = ""
    for _ in range(ATTEMPTS_MAX if patient else 1):
        proposal = await _read(line)
        if proposal in offered:
            await line.send_all(_message(proposal))
            return proposal
        if patient:
            await line.send_all(_message(REFUSAL))
    raise NegotiationError(f"it asked for {proposal!r}, which is not offered to it")


def _message(text: str) -> bytes:
    return with_length(text.encode() + b"\n")


async def _read(line: Line) -> str:
    content = await read_with_length(line, NAME_BYTES_MAX)
    if not content.endswith(b"\n") or not content.isascii():
        raise NegotiationError("it does not speak multistream-select")
    return content[:-1].decode("ascii")


def with_length(content: bytes) -> bytes:
    """At most 16,383 bytes behind their number, as an unsigned varint."""
    size = len(content)
    return (bytes([size]) if size < 0x80 else bytes([size & 0x7F | 0x80, size >> 7])) + content


async def read_with_length(line: Line, bytes_max: int) -> bytes:
    """The reverse.

    Raises:
        NegotiationError: longer than that, or the line ended.
        trio.BrokenResourceError, trio.ClosedResourceError, ChannelError: as the line does.
    """
    size = (await _exactly(line, 1))[0]
    if size >= 0x80:
        size = size & 0x7F | (await _exactly(line, 1))[0] << 7
    if size > bytes_max:
        raise NegotiationError("it sends a message that is too long for one")
    return await _exactly(line, size)


async def _exactly(line: Line, size: int) -> bytes:
    content = b""
    while len(content) < size:
        data = await line.receive_some(size - len(content))
        if not data:
            raise NegotiationError("it hung up")
        content += data
    return content
