"""What links run over in tests: `ClusterHost` on a network in memory. What libp2p would prove, is said and believed.

A machine is a peer of the `MemoryNetwork`, and its name there is its address; the identity of the node that runs on it
is told when a connection opens. So two machines can have one identity, and a machine can change its address.
"""

import logging
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal
from weakref import WeakSet

import msgspec
import trio

from covey.bus.background import open_background
from covey.cluster.cluster import HostOpener
from covey.errors import CallError
from covey.store.identity import Identity
from covey.transport.base import PeerId
from covey.transport.libp2p.dial import AttemptError, RaceLost, race
from covey.transport.memory import MemoryNetwork, MemoryStream

log = logging.getLogger(__name__)

ADDRESS_PREFIX = "/memory/"
HANDSHAKE_SECONDS = 5.0
DIAL_SECONDS = 5.0
STAGGER_SECONDS = 0.25
_LENGTH = struct.Struct("!H")

Purpose = Literal["rpc", "join"]
Handler = Callable[[PeerId, trio.abc.Stream], Awaitable[None]]


class _Said(msgspec.Struct, frozen=True):
    """What each side says first. `taken`: whether the listener has that protocol for this peer."""

    peer: PeerId
    purpose: Purpose
    taken: bool = True


class MemoryHost:
    """Made by `memory_hosts`. `machine` is where it listens, and what faults of the network are about."""

    def __init__(
        self,
        network: MemoryNetwork,
        machine: PeerId,
        me: PeerId,
        *,
        listens: bool,
        is_member: Callable[[PeerId], bool],
        handlers: dict[Purpose, Handler],
        nursery: trio.Nursery,
    ) -> None:
        self.machine = machine
        self._network = network
        self._me = me
        self._listens = listens
        self._is_member = is_member
        self._handlers = handlers
        self._nursery = nursery
        self._listening = trio.CancelScope()
        self._streams: dict[PeerId, WeakSet[MemoryStream]] = {}
        self._came_from: dict[PeerId, list[PeerId]] = {}

    @property
    def addresses(self) -> tuple[str, ...]:
        """See `Host.addresses`."""
        return (self.machine,) if self._listens else ()

    def came_from(self, peer: PeerId) -> str:
        """See `Host.came_from`."""
        return next(iter(self._came_from.get(peer, [])[::-1]), "")

    def close_peer(self, peer: PeerId) -> None:
        """See `Host.close_peer`."""
        for stream in list(self._streams.pop(peer, ())):
            stream.connection.breaks()

    def connections(self, peer: PeerId) -> set[object]:
        """What connects this end with a peer, and is not closed here; the other end has the same objects."""
        streams = self._streams.get(peer, ())
        return {stream.connection for stream in streams if stream.is_open and stream.connection.flows}

    async def dial(self, peer: PeerId, addresses: tuple[str, ...]) -> tuple[trio.abc.Stream, str]:
        """See `Host.dial`."""
        return await self._dial(peer, addresses, "rpc")

    async def dial_join(self, peer: PeerId, addresses: tuple[str, ...]) -> tuple[trio.abc.Stream, str]:
        """See `JoinDialer.dial_join`."""
        return await self._dial(peer, addresses, "join")

    @asynccontextmanager
    async def reserve(self, relay: PeerId, addresses: tuple[str, ...]) -> AsyncGenerator[trio.Event, None]:
        """See `Relayer.reserve`: there are no relays here."""
        if relay:
            raise CallError("unsupported", "There are no relays on a network in memory.")
        yield trio.Event()

    async def listen(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept connections where the machine is now, until it moves."""
        if not self._listens:
            task_status.started()
            return

        async def accept(machine: PeerId, stream: trio.abc.Stream) -> None:
            self._nursery.start_soon(self._take_in, machine, stream)  # outlives this listener

        with trio.CancelScope() as self._listening:
            await self._network.join(self.machine).serve(accept, task_status=task_status)

    async def move(self, machine: PeerId) -> None:
        """The machine gets another address, and what runs to the old one leads nowhere."""
        self._network.freeze(self.machine)
        self._listening.cancel()
        self.machine = machine
        await self._nursery.start(self.listen)

    async def _dial(self, peer: PeerId, addresses: Sequence[str], purpose: Purpose) -> tuple[MemoryStream, str]:
        if peer == self._me or not addresses:
            raise CallError("unreachable", f"No address of the node {peer} is known.", reason="no_address")
        try:
            address, (stream, taken) = await race(
                addresses, partial(self._attempt, peer, purpose), lambda won: won[0].connection.breaks(),
                seconds=DIAL_SECONDS, stagger_seconds=STAGGER_SECONDS,
            )  # fmt: skip
        except RaceLost as lost:
            why = "; ".join(reason or "no answer" for reason in lost.reasons)
            raise CallError("unreachable", f"The node {peer} was not reached: {why}.", reason="dial") from lost
        if not taken:
            stream.connection.breaks()
            message = f"The node {peer} does not count this machine as a member."
            raise CallError("forbidden", message, reason="not_member")
        self._streams.setdefault(peer, WeakSet()).add(stream)
        return stream, address

    async def _attempt(self, peer: PeerId, purpose: Purpose, address: str) -> tuple[MemoryStream, bool]:
        transport, proved = self._network.join(self.machine), False
        stream: MemoryStream | None = None
        try:
            with trio.fail_after(HANDSHAKE_SECONDS):
                stream = await transport.dial(PeerId(address))
                await _send(stream, _Said(self._me, purpose))
                said = await _receive(stream)
            if said.peer != peer:
                raise AttemptError(f"another node is at {address}, {said.peer}")
            proved = True
            return stream, said.taken
        except (CallError, trio.TooSlowError, trio.BrokenResourceError, EOFError) as error:
            raise AttemptError(f"no node answers at {address}") from error
        finally:
            if stream is not None and not proved:
                stream.connection.breaks()

    async def _take_in(self, machine: PeerId, stream: trio.abc.Stream) -> None:
        assert isinstance(stream, MemoryStream)
        try:
            with trio.fail_after(HANDSHAKE_SECONDS):
                said = await _receive(stream)
                taken = said.purpose == "join" or self._is_member(said.peer)
                await _send(stream, _Said(self._me, said.purpose, taken))
        except (trio.TooSlowError, trio.BrokenResourceError, EOFError) as error:
            log.debug("A connection from %s came to nothing: %s", machine, error)
            stream.connection.breaks()
            return
        self._streams.setdefault(said.peer, WeakSet()).add(stream)
        self._came_from.setdefault(said.peer, []).append(machine)
        try:
            if taken:
                await self._handlers[said.purpose](said.peer, stream)
        finally:
            self._forget(said.peer, machine)
            await trio.aclose_forcefully(stream)

    def _forget(self, peer: PeerId, machine: PeerId) -> None:
        self._came_from[peer].remove(machine)
        if not self._came_from[peer]:
            del self._came_from[peer]
        if not self._streams.get(peer):
            self._streams.pop(peer, None)


def memory_hosts(
    network: MemoryNetwork, machine: Callable[[], PeerId], opened: Callable[[MemoryHost], None]
) -> HostOpener:
    """What opens hosts on a network in memory, for `Cluster`.

    Args:
        network: the whole of it.
        machine: where the node runs, asked when its host opens.
        opened: told of each host.
    """

    @asynccontextmanager
    async def open_host(
        identity: Identity,
        listen: str,
        *,
        announce: Sequence[str] = (),
        network_id: str = "",
        is_member: Callable[[PeerId], bool],
        on_rpc: Handler,
        on_join: Handler,
        on_hint: Callable[[PeerId, tuple[str, ...]], Awaitable[None]] | None = None,
    ) -> AsyncGenerator[MemoryHost, None]:
        async with open_background() as nursery:
            host = MemoryHost(
                network,
                machine(),
                identity.peer_id,
                listens=listen != "none",
                is_member=is_member,
                handlers={"rpc": on_rpc, "join": on_join},
                nursery=nursery,
            )
            await nursery.start(host.listen)
            opened(host)
            yield host

    return open_host


async def _send(stream: trio.abc.Stream, said: _Said) -> None:
    content = msgspec.msgpack.encode(said)
    await stream.send_all(_LENGTH.pack(len(content)) + content)


async def _receive(stream: trio.abc.Stream) -> _Said:
    (size,) = _LENGTH.unpack(await _exactly(stream, _LENGTH.size))
    return msgspec.msgpack.decode(await _exactly(stream, size), type=_Said)


async def _exactly(stream: trio.abc.Stream, size: int) -> bytes:
    received = b""
    while len(received) < size:
        piece = await stream.receive_some(size - len(received))
        if not piece:
            raise EOFError("the other side hung up")
        received += piece
    return received
