"""The host: a node's door to the others, and its way to them. Knows peers and membership, nothing of methods."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Literal

import ifaddr
import trio

from covey.errors import CallError, leaves
from covey.transport.base import Accept, PeerId
from covey.transport.libp2p.addresses import (
    Address,
    accounting_key,
    address_of,
    announced,
    dial_order,
    parse_listen,
)  # fmt: skip
from covey.transport.libp2p.channel import Carrying, Channel, TcpCarrying
from covey.transport.libp2p.connection import Connection, Path
from covey.transport.libp2p.dial import AttemptError, RaceLost, race
from covey.transport.libp2p.gate import Door, Gate
from covey.transport.libp2p.handshake import Handshake, HandshakeError, Keys
from covey.transport.libp2p.limits import HostLimits
from covey.transport.libp2p.listening import bound, open_listener
from covey.transport.libp2p.lobby import Attempts, Lobby, Places
from covey.transport.libp2p.negotiation import JOIN, RPC, NegotiationError, ask
from covey.transport.libp2p.yamux import Yamux
from covey.transport.libp2p.yamux_stream import YamuxStream

log = logging.getLogger(__name__)

AcceptJoin = Callable[[PeerId, str, trio.abc.Stream], Awaitable[None]]
"""Talks to somebody who wants to join: the proved peer id, the address, the stream. The host closes it."""
Purpose = Literal["rpc", "join"]
_PROTOCOLS: dict[Purpose, str] = {"rpc": RPC, "join": JOIN}


class Libp2pHost:
    """Made by `open_libp2p`."""

    def __init__(
        self,
        keys: Keys,
        is_member: Callable[[PeerId], bool],
        limits: HostLimits,
        connections: trio.Nursery,
        handlers: trio.Nursery,
    ) -> None:
        self.me = keys.peer_id
        self.limits = limits
        self.gate = Gate(is_member, limits.negotiate_seconds, self._complain)
        self.lobby = Lobby(limits.unproved_max, limits.unproved_per_address_max)
        self._handshake = Handshake(keys)
        self._is_member = is_member
        self._strangers = Places(limits.strangers_max, limits.strangers_per_address_max)
        self._notices = Attempts(1, limits.notice_seconds)
        self._attempts = Attempts(limits.stranger_attempts_max, limits.stranger_attempts_seconds)
        self._connections: dict[Connection, None] = {}
        self._listening: list[tuple[str, int]] = []
        self.relayed: dict[Connection, tuple[str, ...]] = {}
        """Further addresses to announce, by the connection to the relay that serves them."""
        self.attempt_circuit: Callable[[PeerId, Address], Awaitable[Channel]] | None = None
        """How an address through a relay is dialled; set by `relay.use_relays`."""
        self._closing = False
        self._task_nursery = connections
        self._handler_nursery = handlers

    @property
    def listening(self) -> tuple[tuple[str, int], ...]:
        """The hosts and ports where this node listens; none for one that only dials."""
        return tuple(self._listening)

    @property
    def addresses(self) -> tuple[str, ...]:
        """What others may dial, as multiaddrs, from the machine's addresses of this moment: ask again when in doubt."""
        interfaces = [_ip(each) for adapter in ifaddr.get_adapters() for each in adapter.ips] if self._listening else []
        direct = [str(each) for each in announced(self._listening, interfaces)]
        return (*direct, *(way for ways in self.relayed.values() for way in ways))

    @property
    def peers(self) -> frozenset[PeerId]:
        """The peers to whom there is a connection, strangers among them."""
        return frozenset(each.peer for each in self._connections)

    def paths(self, peer: PeerId) -> tuple[Path, ...]:
        """The connections to a peer, oldest first."""
        return tuple(each.path for each in self._connections if each.peer == peer)

    def close_peer(self, peer: PeerId) -> None:
        """Cut every connection to a peer, at once: their streams break, on both sides. A new dial starts afresh."""
        for connection in [each for each in self._connections if each.peer == peer]:
            connection.yamux.abort("this node cut the connection")

    async def listen(self, place: str) -> tuple[str, int]:
        """Accept connections at one more place (`0.0.0.0:26840`), as long as the host is open; returns where.

        Raises:
            CallError: as `open_listener`; `invalid` for a place that is none.
        """
        try:
            host, port = parse_listen(place)
        except ValueError as error:
            raise CallError("invalid", f"This node cannot listen there: {error}.", param="network.listen") from error
        listener = await open_listener(host, port)
        self._task_nursery.start_soon(self._serve, listener)
        self._listening.append(bound(listener))
        return self._listening[-1]

    async def dial(
        self, peer: PeerId, addresses: Sequence[str], protocol: Purpose = "rpc"
    ) -> tuple[trio.abc.Stream, str]:
        """Connect to a peer at whichever of its addresses answers first, on a connection of the stream's own.

        Args:
            peer: who has to answer, and prove it.
            addresses: multiaddrs; what is none is passed over.
            protocol: `rpc` to a fellow member, `join` to who invited us.

        Returns:
            The stream, and the address that answered. The caller closes the stream, and the connection with it: in
            order with `aclose`, at once with `trio.aclose_forcefully`.

        Raises:
            CallError: `unreachable` (`no_address`, `dial`): the message says what happened at each address;
                `forbidden` (`not_member`): the peer answered and does not count us as a member.
        """
        connection = await self.connect(peer, addresses)
        return await self.open_stream(connection, _PROTOCOLS[protocol]), connection.address

    # What the relay needs as well

    async def connect(self, peer: PeerId, addresses: Sequence[str]) -> Connection:
        """A new connection to a peer, without a stream as yet; it ends where none is opened soon.

        Raises:
            CallError: `unreachable` (`no_address`, `dial`).
        """
        ways = dial_order(addresses)[: self.limits.dial_addresses_max]
        if peer == self.me or not ways:
            why = "it is this node itself" if peer == self.me else "no address of it is known"
            raise CallError("unreachable", f"The node {peer} cannot be dialled: {why}.", reason="no_address")
        try:
            address, channel = await race(
                ways, lambda way: self._attempt(peer, way), Channel.abort,
                seconds=self.limits.dial_seconds, stagger_seconds=self.limits.dial_stagger_seconds,
            )  # fmt: skip
        except RaceLost as lost:
            raise _unreachable(peer, ways, lost.reasons) from lost
        return self.keep(channel, peer, address)

    def keep(self, channel: Channel, peer: PeerId, address: Address) -> Connection:
        """Run an outbound connection until it ends. `address` says where it leads.

        Raises:
            CallError: `unreachable`: the host closes.
        """
        if self._closing:
            channel.abort()
            raise CallError("unreachable", "This node is stopping, and dials nobody any more.", reason="stopping")
        channel.trust(None)
        connection = self._connection(channel, peer, str(address), relayed=address.relay is not None, dialled=True)
        self._task_nursery.start_soon(self._run, connection)
        return connection

    async def open_stream(self, connection: Connection, protocol: str, *, owning: bool = True) -> YamuxStream:
        """A stream on a connection of our own, which is cut where this fails. `owning`: and ends with the stream.

        Raises:
            CallError: `unreachable`, `forbidden` (`not_member`).
        """
        opened = False
        try:
            stream = connection.yamux.open()
            stream.owns_connection = owning
            with trio.fail_after(self.limits.negotiate_seconds):
                await ask(stream, protocol)
            opened = True
            return stream
        except (NegotiationError, trio.BrokenResourceError, trio.TooSlowError) as error:
            raise self._refused(connection, error) from error
        finally:
            if not opened:
                connection.yamux.abort("the peer did not take the stream")

    async def attempt_tcp(self, peer: PeerId, address: Address) -> Channel:
        """An authenticated channel to a peer at one address.

        Raises:
            AttemptError
        """
        try:
            tcp = await trio.open_tcp_stream(address.host, address.port)
        except OSError as error:
            raise AttemptError(_os_reason(error)) from error
        return await self.secure(TcpCarrying(tcp), peer)

    async def secure(self, carrying: Carrying, peer: PeerId) -> Channel:
        """Authenticate a peer on an outbound connection, which is cut where this fails or is cancelled.

        Raises:
            AttemptError
        """
        channel = Channel(carrying, bytes_max=self.limits.handshake_bytes_max)
        proved = False
        try:
            with trio.fail_after(self.limits.handshake_seconds):
                await self._handshake.connect(channel, peer)
            proved = True
            return channel
        except HandshakeError as error:
            raise AttemptError(str(error)) from error
        except trio.TooSlowError as error:
            raise AttemptError("it does not finish the handshake") from error
        finally:
            if not proved:
                channel.abort()

    async def welcome(self, carrying: Carrying, address: str, account: str, *, relayed: bool) -> None:
        """Take an inbound connection from its first byte to its end.

        Args:
            carrying: closed here.
            address: for people.
            account: what strangers are counted by.
            relayed: whether a member passes the bytes on.
        """
        channel = Channel(carrying, bytes_max=self.limits.handshake_bytes_max)
        leaving = self.lobby.enter(account, channel)
        if leaving is not None:
            leaving.abort()
            self._complain("lobby", f"Many connections come, from {address} too, and do not say who they are.")
        peer: PeerId | None = None
        try:
            with trio.move_on_after(self.limits.handshake_seconds):
                peer = await self._handshake.accept(channel)
        except HandshakeError as error:
            self._complain(account, f"Somebody at {address} was refused: {error}.")
        finally:
            self.lobby.leave(account, channel)
            if peer is None:
                channel.abort()
        if peer is None:
            return
        try:
            await self._take_in(channel, peer, address, account, relayed=relayed)
        finally:
            channel.abort()

    # Inbound

    async def _serve(self, listener: trio.SocketListener) -> None:
        async with listener:
            await trio.serve_listeners(self._welcome_tcp, [listener], handler_nursery=self._task_nursery)

    async def _welcome_tcp(self, tcp: trio.SocketStream) -> None:
        carrying = TcpCarrying(tcp)
        try:
            host, port = tcp.socket.getpeername()[:2]
            address = address_of(host, port)
            await self.welcome(carrying, str(address), accounting_key(address.host), relayed=False)
        except OSError:
            pass  # it hung up before it was asked who it is
        except Exception:
            log.exception("A connection failed.")
        finally:
            carrying.close()

    async def _take_in(self, channel: Channel, peer: PeerId, address: str, account: str, *, relayed: bool) -> None:
        if self._is_member(peer):
            mine = sum(each.peer == peer and not each.dialled for each in self._connections)
            if mine >= self.limits.connections_per_member_max:
                self._complain(account, f"The node {peer} at {address} was refused: it has {mine} connections already.")
                return
            channel.trust(None)
            await self._run(self._connection(channel, peer, address, relayed=relayed, dialled=False, account=account))
            return
        if not self._strangers.take(account):
            self._complain(account, f"The stranger {peer} at {address} was refused: too many strangers are here.")
            return
        try:
            if not self._attempts.allow(account, trio.current_time()):
                self._complain(account, f"The stranger {peer} at {address} was refused: it comes too often.")
                return
            channel.trust(self.limits.join_bytes_max)
            connection = self._connection(
                channel, peer, address, relayed=relayed, dialled=False, account=account, stranger=True
            )
            with trio.move_on_after(self.limits.join_seconds):
                await self._run(connection)
        finally:
            self._strangers.free(account)

    # Outbound

    async def _attempt(self, peer: PeerId, address: Address) -> Channel:
        if address.peer not in (None, peer):
            raise AttemptError(f"the address is another node's, {address.peer}")
        if address.relay is not None:
            if self.attempt_circuit is None:
                raise AttemptError("this node uses no relays")
            return await self.attempt_circuit(peer, address)
        return await self.attempt_tcp(peer, address)

    def _refused(self, connection: Connection, error: Exception) -> CallError:
        where = f"The node {connection.peer} at {connection.address}"
        if connection.yamux.lost is None and not isinstance(error, trio.TooSlowError):
            return CallError(
                "forbidden",
                f"{where} answers, but does not count this node as a member: it was removed, or never joined;"
                " `covey join` with a new invite.",
                reason="not_member",
            )
        return CallError("unreachable", f"{where} hung up on this node before it could say anything.", reason="dial")

    # Both

    def _connection(
        self,
        channel: Channel,
        peer: PeerId,
        address: str,
        *,
        relayed: bool,
        dialled: bool,
        account: str = "",
        stranger: bool = False,
    ) -> Connection:
        def on_stream(stream: YamuxStream) -> None:
            self._handler_nursery.start_soon(self.gate.pass_through, connection, stream)

        limits = self.limits
        inbound_max = limits.stranger_streams_max if stranger else limits.inbound_streams_max
        streams_max = limits.relayed_streams_max if dialled else inbound_max
        yamux = Yamux(channel, dialer=dialled, on_stream=on_stream, limits=self.limits, streams_max=streams_max)
        connection = Connection(peer, address, dialled, relayed, channel, yamux, account)
        self._connections[connection] = None
        return connection

    def _complain(self, account: str, message: str) -> None:
        """Log a refusal: aloud, but seldom, for whoever is refused may come a thousand times a second."""
        aloud = self._notices.allow(account, trio.current_time())
        log.log(logging.WARNING if aloud else logging.DEBUG, "%s", message)

    async def _run(self, connection: Connection) -> None:
        try:
            await connection.yamux.run()
        finally:
            del self._connections[connection]
            log.debug(
                "A connection with %s at %s ended: %s", connection.peer, connection.address, connection.yamux.lost
            )

    async def finish(self) -> None:
        """Dial no more, and end every connection in order."""
        self._closing = True
        for connection in self._connections:
            connection.yamux.finish()
        for connection in list(self._connections):
            await connection.yamux.ended.wait()


@asynccontextmanager
async def open_libp2p(
    keys: Keys,
    *,
    listen: Sequence[str],
    is_member: Callable[[PeerId], bool],
    on_rpc: Accept,
    on_join: AcceptJoin,
    limits: HostLimits | None = None,
) -> AsyncGenerator[Libp2pHost, None]:
    """Run a host as long as the block runs.

    Leaving cancels what `on_rpc` and `on_join` still do, lets them say goodbye, and closes every connection. Streams
    from `dial` should be closed before.

    Args:
        keys: this node's identity.
        listen: where to accept connections: `0.0.0.0:26840`, `[::]:26840`, `127.0.0.1:0`. Nowhere: it only dials.
        is_member: whether a peer may do more than join; asked for every connection and every stream, so must be quick.
        on_rpc: takes over a member's stream; the connection ends with it.
        on_join: talks to whoever asks to join, within `HostLimits`.
        limits: default: `HostLimits()`.

    Raises:
        CallError: `conflict` (`port_in_use`), `forbidden`, `invalid`: this node cannot listen there.
    """
    limits = limits or HostLimits()

    async def serve_rpc(connection: Connection, stream: YamuxStream) -> None:
        stream.owns_connection = True
        await on_rpc(connection.peer, stream)

    async def serve_join(connection: Connection, stream: YamuxStream) -> None:
        await on_join(connection.peer, connection.address, stream)

    failure: Exception | None = None
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as handlers:
            host = Libp2pHost(keys, is_member, limits, connections, handlers)
            host.gate.add(RPC, Door(serve_rpc, lambda connection, member: member and not connection.dialled))
            host.gate.add(JOIN, Door(serve_join, lambda connection, _: not connection.dialled))
            try:
                for place in listen:
                    await host.listen(place)
                yield host
            except Exception as error:  # noqa: BLE001 - raised again below, where no nursery wraps it
                failure = error
            finally:
                handlers.cancel_scope.cancel()
        with trio.move_on_after(limits.close_seconds, shield=True):
            await host.finish()
        connections.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _ip(found: ifaddr.IP) -> str:
    return found.ip if isinstance(found.ip, str) else found.ip[0]


def _os_reason(error: OSError) -> str:
    # trio tries every address that a name has, and wraps what became of them.
    first = next(leaves(error.__cause__ or error))
    return ((first.strerror if isinstance(first, OSError) else None) or str(first) or type(first).__name__).lower()


def _unreachable(peer: PeerId, ways: Sequence[Address], reasons: Sequence[str | None]) -> CallError:
    told = [f"{way}: {reason or 'no answer'}" for way, reason in zip(ways[:4], reasons, strict=False)]
    more = len(ways) - len(told)
    return CallError(
        "unreachable",
        f"The node {peer} cannot be reached ({'; '.join(told)}{f'; and {more} more' if more else ''}).",
        reason="dial",
    )
