"""The one choke point: every stream that a peer opens passes here, whatever its protocol, and strangers may only join.

libp2p's own handlers belong to a host and know no members; here a protocol is offered to a peer or is not, and whether
it is a member is asked again for every stream.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from covey.transport.base import PeerId
from covey.transport.libp2p.channel import ChannelError
from covey.transport.libp2p.connection import Connection
from covey.transport.libp2p.negotiation import NegotiationError, answer
from covey.transport.libp2p.yamux_stream import YamuxStream

log = logging.getLogger(__name__)

StreamHandler = Callable[[Connection, YamuxStream], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Door:
    """A protocol that peers may ask for."""

    handle: StreamHandler
    """Takes over the stream; the gate closes it afterwards."""
    opens: Callable[[Connection, bool], bool]
    """Whether it is offered on a connection, given whether the peer is a member."""


class Gate:
    """Decides which streams get in, and survives whatever their handlers do.

    Args:
        is_member: asked for every stream; must be quick.
        negotiate_seconds: for agreeing on a protocol.
        complain: logs a refusal: whom it is counted against, and the message.
    """

    def __init__(
        self, is_member: Callable[[PeerId], bool], negotiate_seconds: float, complain: Callable[[str, str], None]
    ) -> None:
        self._complain = complain
        self.is_member = is_member
        self._negotiate_seconds = negotiate_seconds
        self._doors: dict[str, Door] = {}
        self.refused = 0
        """Streams that were reset, in all."""

    def add(self, protocol: str, door: Door) -> None:
        """Offer a protocol; `ValueError` where it is offered already."""
        if protocol in self._doors:
            raise ValueError(f"{protocol} is offered already")
        self._doors[protocol] = door

    def remove(self, protocol: str) -> None:
        """Offer a protocol no more."""
        del self._doors[protocol]

    async def pass_through(self, connection: Connection, stream: YamuxStream) -> None:
        """Take an inbound stream from its first byte to its end. Never raises but when cancelled."""
        orderly = False
        try:
            door = await self._negotiated(connection, stream)
            if door is not None:
                await door.handle(connection, stream)
                orderly = True
        except (trio.BrokenResourceError, trio.ClosedResourceError, ChannelError, NegotiationError) as error:
            log.debug("A stream of %s broke: %s", connection.peer, error)
        except Exception:
            log.exception("The handler of a stream of the node %s failed.", connection.peer)
        finally:
            if orderly:
                with trio.CancelScope(shield=True):  # bounded: by `close_seconds`
                    await stream.aclose()
            else:
                stream.abort()

    async def _negotiated(self, connection: Connection, stream: YamuxStream) -> Door | None:
        is_member = self.is_member(connection.peer)
        offered = {name: door for name, door in self._doors.items() if door.opens(connection, is_member)}
        try:
            with trio.fail_after(self._negotiate_seconds):
                return offered[await answer(stream, offered, patient=is_member)]
        except (NegotiationError, trio.TooSlowError) as error:
            self.refused += 1
            who = "node" if is_member else "stranger"
            self._complain(
                connection.account, f"The {who} {connection.peer} at {connection.address} was refused: {error}."
            )
            return None
