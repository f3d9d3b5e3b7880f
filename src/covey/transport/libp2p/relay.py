"""Circuit relay v2: a member that can be reached passes bytes on between two that cannot.

https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md; the messages are libp2p's own, the rest is not: its
`CircuitV2Transport` serves anybody, and cuts circuits after a while. The relay sees nothing but Noise, end to end.

    serve_relay(host)                                     # on a node that others can reach
    async with use_relays(host) as relays:                # on every node: dials `…/p2p-circuit` addresses from now on
        async with relays.reserve(relay, addresses) as reservation: ...   # behind NAT: can now be dialled through it
"""

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio
from libp2p.peer.id import ID
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Status, StopMessage
from libp2p.relay.circuit_v2.pb.circuit_pb2 import PeerId as PeerMessage

from covey.errors import CallError
from covey.transport.base import PeerId
from covey.transport.libp2p.addresses import Address, dial_order
from covey.transport.libp2p.channel import Channel
from covey.transport.libp2p.connection import Connection
from covey.transport.libp2p.dial import AttemptError
from covey.transport.libp2p.gate import Door
from covey.transport.libp2p.host import Libp2pHost
from covey.transport.libp2p.negotiation import Line, NegotiationError, ask, read_with_length, with_length
from covey.transport.libp2p.yamux_stream import YamuxStream

log = logging.getLogger(__name__)

HOP = "/libp2p/circuit/relay/0.2.0/hop"
STOP = "/libp2p/circuit/relay/0.2.0/stop"
MESSAGE_BYTES_MAX = 4_096
PIECE_BYTES = 1 << 16
RESERVATIONS_MAX = 256
CIRCUITS_MAX = 256
RESERVATION_SECONDS = 24 * 3_600
"""What a reservation says of itself; in truth it lasts as long as its connection."""


def serve_relay(host: Libp2pHost) -> "Relay":
    """Pass bytes on between members from now on, as long as the host is open."""
    relay = Relay(host)
    host.gate.add(HOP, Door(relay.hop, lambda connection, member: member and not connection.dialled))
    return relay


class Relay:
    """Made by `serve_relay`."""

    def __init__(self, host: Libp2pHost) -> None:
        self._host = host
        self._reserved: dict[PeerId, Connection] = {}
        self.circuits = 0
        """Under way now."""

    @property
    def reservations(self) -> frozenset[PeerId]:
        """The members that can be reached through this node."""
        return frozenset(peer for peer, each in self._reserved.items() if each.yamux.lost is None)

    async def hop(self, connection: Connection, stream: YamuxStream) -> None:
        """A member asks for a reservation, or for a circuit."""
        with trio.fail_after(self._host.limits.negotiate_seconds):
            asked = HopMessage.FromString(await _read(stream))
        if asked.type == HopMessage.RESERVE:
            await self._reserve(connection, stream)
        elif asked.type == HopMessage.CONNECT:
            await self._connect(connection, stream, _peer_id(asked.peer.id))
        else:
            await _send(stream, HopMessage(type=HopMessage.STATUS, status=Status.UNEXPECTED_MESSAGE))

    async def _reserve(self, connection: Connection, stream: YamuxStream) -> None:
        self._reserved = {peer: each for peer, each in self._reserved.items() if each.yamux.lost is None}
        if len(self._reserved) >= RESERVATIONS_MAX and connection.peer not in self._reserved:
            await _send(stream, HopMessage(type=HopMessage.STATUS, status=Status.RESERVATION_REFUSED))
            return
        self._reserved[connection.peer] = connection
        connection.yamux.hold()
        answer = HopMessage(type=HopMessage.STATUS, status=Status.OK)
        answer.reservation.expire = int(time.time()) + RESERVATION_SECONDS
        await _send(stream, answer)

    async def _connect(self, source: Connection, stream: YamuxStream, target: PeerId) -> None:
        reserved = self._reserved.get(target)
        if reserved is None or reserved.yamux.lost is not None:
            status = Status.NO_RESERVATION
        elif not self._host.gate.is_member(target):
            status = Status.PERMISSION_DENIED
        elif self.circuits >= CIRCUITS_MAX:
            status = Status.RESOURCE_LIMIT_EXCEEDED
        else:
            self.circuits += 1
            try:
                await self._carry(source, stream, reserved)
            finally:
                self.circuits -= 1
            return
        await _send(stream, HopMessage(type=HopMessage.STATUS, status=status))

    async def _carry(self, source: Connection, stream: YamuxStream, reserved: Connection) -> None:
        onward: YamuxStream | None = None
        orderly = False
        try:
            try:
                with trio.fail_after(self._host.limits.negotiate_seconds):
                    onward = reserved.yamux.open()
                    await ask(onward, STOP)
                    await _send(onward, StopMessage(type=StopMessage.CONNECT, peer=_peer(source.peer)))
                    accepted = StopMessage.FromString(await _read(onward)).status == Status.OK
            except (trio.BrokenResourceError, NegotiationError, trio.TooSlowError):
                accepted = False
            if onward is None or not accepted:
                await _send(stream, HopMessage(type=HopMessage.STATUS, status=Status.CONNECTION_FAILED))
                return
            await _send(stream, HopMessage(type=HopMessage.STATUS, status=Status.OK))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pump, stream, onward, nursery.cancel_scope)
                nursery.start_soon(_pump, onward, stream, nursery.cancel_scope)
            orderly = not nursery.cancel_scope.cancelled_caught
        finally:
            if onward is not None:
                onward.close() if orderly else onward.abort()
            if not orderly and onward is not None:
                stream.abort()


@dataclass(frozen=True, slots=True)
class Reservation:
    """A place at a relay, through which others can dial this node."""

    relay: PeerId
    addresses: tuple[str, ...]
    """For others, as multiaddrs; the host announces them as well."""
    lost: trio.Event
    """Set when the relay is gone: make another."""


class Relays:
    """Made by `use_relays`."""

    def __init__(self, host: Libp2pHost) -> None:
        self._host = host
        self._held: set[Connection] = set()

    def held(self, connection: Connection) -> bool:
        """Whether the peer of a connection may open circuits to us on it."""
        return connection in self._held

    @asynccontextmanager
    async def reserve(self, relay: PeerId, addresses: Sequence[str]) -> AsyncGenerator[Reservation, None]:
        """Be reachable through a relay as long as the block runs and the relay lives; `lost` tells.

        Args:
            relay: a member that serves as one.
            addresses: where it can be dialled, directly; others will dial the circuit there.

        Raises:
            CallError: `unreachable`; `no_capacity`: the relay has no room; `forbidden`: it counts us as no member.
        """
        direct = [each for each in dial_order(addresses) if each.relay is None]
        connection = await self._host.connect(relay, [str(each) for each in direct])
        try:
            self._held.add(connection)
            connection.yamux.hold()
            await self._ask(connection)
            ways = tuple(str(replace(each, peer=None, relay=relay)) for each in direct)
            self._host.relayed[connection] = ways
            yield Reservation(relay, ways, connection.yamux.ended)
        finally:
            self._host.relayed.pop(connection, None)
            self._held.discard(connection)
            connection.yamux.abort("this node gave the reservation back")

    async def stop(self, connection: Connection, stream: YamuxStream) -> None:
        """A relay says that a member wants to reach us through it."""
        with trio.fail_after(self._host.limits.negotiate_seconds):
            asked = StopMessage.FromString(await _read(stream))
        source = _peer_id(asked.peer.id)
        if asked.type != StopMessage.CONNECT or not self._host.gate.is_member(source):
            await _send(stream, StopMessage(type=StopMessage.STATUS, status=Status.PERMISSION_DENIED))
            return
        await _send(stream, StopMessage(type=StopMessage.STATUS, status=Status.OK))
        # Who it really is, Noise tells: within the circuit, where the relay has no say.
        way = f"{connection.address}/p2p/{connection.peer}/p2p-circuit"
        await self._host.welcome(stream, way, f"relay {connection.peer}", relayed=True)

    async def attempt(self, peer: PeerId, address: Address) -> Channel:
        """Dial a circuit, on a connection to the relay for it alone.

        Raises:
            AttemptError
        """
        relay = address.relay
        if relay is None or relay == self._host.me or not self._host.gate.is_member(relay):
            raise AttemptError("the relay is none of this network's others")
        first = replace(address, peer=None, relay=None)
        channel = await self._host.attempt_tcp(relay, first)
        secured = False
        connection: Connection | None = None
        try:
            connection = self._host.keep(channel, relay, first)
            stream = await self._host.open_stream(connection, HOP)
            with trio.fail_after(self._host.limits.negotiate_seconds):
                await _send(stream, HopMessage(type=HopMessage.CONNECT, peer=_peer(peer)))
                answer = HopMessage.FromString(await _read(stream))
            if answer.status != Status.OK:
                raise AttemptError(f"the relay says {Status.Name(answer.status)}")
            through = await self._host.secure(stream, peer)
            secured = True
            return through
        except CallError as error:
            raise AttemptError("the relay does not take the call") from error
        except (trio.BrokenResourceError, NegotiationError, trio.TooSlowError, ValueError) as error:
            raise AttemptError("the relay does not answer") from error
        finally:
            if not secured and connection is not None:
                connection.yamux.abort("the circuit came to nothing")

    async def _ask(self, connection: Connection) -> None:
        stream = await self._host.open_stream(connection, HOP, owning=False)
        try:
            with trio.fail_after(self._host.limits.negotiate_seconds):
                await _send(stream, HopMessage(type=HopMessage.RESERVE))
                answer = HopMessage.FromString(await _read(stream))
        except (trio.BrokenResourceError, NegotiationError, trio.TooSlowError) as error:
            raise CallError("unreachable", f"The relay {connection.peer} does not answer.", reason="relay") from error
        finally:
            stream.close()
        if answer.status != Status.OK:
            raise CallError("no_capacity", f"The relay {connection.peer} has no room for this node.", reason="relay")


@asynccontextmanager
async def use_relays(host: Libp2pHost) -> AsyncGenerator[Relays, None]:
    """Dial through relays, and let relays with a reservation dial us, as long as the block runs."""
    relays = Relays(host)
    host.gate.add(STOP, Door(relays.stop, lambda connection, _: relays.held(connection)))
    host.attempt_circuit = relays.attempt
    try:
        yield relays
    finally:
        host.attempt_circuit = None
        host.gate.remove(STOP)


async def _pump(source: YamuxStream, sink: YamuxStream, circuit: trio.CancelScope) -> None:
    try:
        while data := await source.receive_some(PIECE_BYTES):
            await sink.send_all(data)
        await sink.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        circuit.cancel()  # what breaks on one side breaks on the other


async def _send(line: Line, message: HopMessage | StopMessage) -> None:
    await line.send_all(with_length(message.SerializeToString()))


async def _read(line: Line) -> bytes:
    return await read_with_length(line, MESSAGE_BYTES_MAX)


def _peer(peer: PeerId) -> PeerMessage:
    return PeerMessage(id=ID.from_string(str(peer)).to_bytes())


def _peer_id(content: bytes) -> PeerId:
    return PeerId(str(ID(content)))
