"""A whole network in memory, for tests: delays, cuts, freezes and lost connections, all from one seed.

Everything happens on trio's clock, so that `autojump_clock` turns minutes of partition into milliseconds.
"""

import math
import operator
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import trio

from covey.errors import CallError
from covey.transport.base import Accept, PeerId

IN_FLIGHT_BYTES_MAX = 1 << 18
"""What one direction of a connection holds before its sender waits: the sockets' buffers of both sides."""
CHUNK_BYTES = 1 << 15
"""The most that travels in one piece."""
DIAL_SECONDS = 5.0
"""How long dialling a peer that does not answer takes to fail."""
BACKLOG = 128
"""How many connections may wait to be accepted."""


@dataclass(frozen=True, slots=True)
class LinkQuality:
    """How one direction between two peers behaves.

    `loss` is the probability, for each chunk, that the whole connection breaks: TCP has no other loss.
    """

    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    loss: float = 0.0


PERFECT = LinkQuality()


class MemoryNetwork:
    """Peers and the links between them. One seed gives one run: each direction of each link has a generator of its own.

    Args:
        seed: of every random decision.
        quality: of links that have none of their own.
    """

    def __init__(self, seed: int = 0, quality: LinkQuality = PERFECT) -> None:
        self._seed = seed
        self._quality = quality
        self._qualities: dict[tuple[PeerId, PeerId], LinkQuality] = {}
        self._randoms: dict[tuple[PeerId, PeerId], random.Random] = {}
        self._cuts: set[tuple[PeerId, PeerId]] = set()
        self._frozen: set[PeerId] = set()
        self._connections: dict[_Connection, None] = {}  # in their order: a seed gives one run
        self.inboxes: dict[PeerId, trio.MemorySendChannel[tuple[PeerId, MemoryStream]]] = {}

    def join(self, peer: PeerId) -> "MemoryTransport":
        """A peer's door to the network."""
        return MemoryTransport(self, peer)

    def set_quality(self, a: PeerId, b: PeerId, quality: LinkQuality) -> None:
        """How what is sent from now on travels between two peers, both ways."""
        self._qualities[a, b] = self._qualities[b, a] = quality

    def cut(self, a: PeerId, b: PeerId, *, one_way: bool = False) -> None:
        """Nothing passes between two peers, and neither is told: a black hole. `one_way`: only what `a` sends is lost.

        What is on its way arrives after `heal`, as TCP sends it again.
        """
        self._cuts |= {(a, b)} if one_way else {(a, b), (b, a)}

    def heal(self, a: PeerId, b: PeerId) -> None:
        """Undo every cut between two peers."""
        self._cuts -= {(a, b), (b, a)}
        self._wake()

    def freeze(self, peer: PeerId) -> None:
        """A peer's machine stops (SIGSTOP, a closed lid): nothing passes to or from it, and nothing is closed."""
        self._frozen.add(peer)

    def thaw(self, peer: PeerId) -> None:
        """A frozen peer goes on where it stopped."""
        self._frozen.discard(peer)
        self._wake()

    def drop(self, a: PeerId, b: PeerId) -> None:
        """Break every connection between two peers, at once and on both sides."""
        for connection in self._between(a, b):
            connection.breaks()

    def kill(self, peer: PeerId) -> None:
        """A peer's process dies: its connections break, and nobody accepts new ones."""
        self.inboxes.pop(peer, None)
        for connection in [each for each in self._connections if peer in each.peers]:
            connection.breaks()

    def vanish(self, peer: PeerId) -> None:
        """A peer's machine loses its power: nobody accepts new connections, and the old ones fall silent for ever."""
        self.inboxes.pop(peer, None)
        for connection in [each for each in self._connections if peer in each.peers]:
            connection.silent = True

    def connections(self, a: PeerId, b: PeerId) -> int:
        """How many connections there are between two peers, those included that only one of them has closed."""
        return len(self._between(a, b))

    def flows(self, a: PeerId, b: PeerId) -> bool:
        """Whether what `a` sends to `b` passes now."""
        return (a, b) not in self._cuts and a not in self._frozen and b not in self._frozen

    def connect(self, dialer: PeerId, acceptor: PeerId) -> "tuple[MemoryStream, MemoryStream]":
        """A new connection's two ends."""
        connection = _Connection(self, dialer, acceptor)
        self._connections[connection] = None
        return connection.ends

    def forget(self, connection: "_Connection") -> None:
        """A connection is over on both sides."""
        self._connections.pop(connection, None)

    def delay(self, a: PeerId, b: PeerId) -> float:
        """The seconds that the next chunk takes from `a` to `b`; infinite where the connection breaks under it."""
        quality = self._qualities.get((a, b), self._quality)
        if quality == PERFECT:
            return 0.0
        source = self._randoms.get((a, b))
        if source is None:
            source = self._randoms[a, b] = random.Random(f"{self._seed} {a} {b}")  # noqa: S311 - a simulation
        lost, jitter = source.random() < quality.loss, source.uniform(0, quality.jitter_seconds)
        return math.inf if lost else quality.delay_seconds + jitter

    def _between(self, a: PeerId, b: PeerId) -> list["_Connection"]:
        return [each for each in self._connections if set(each.peers) == {a, b}]

    def _wake(self) -> None:
        for connection in self._connections:
            for pipe in connection.pipes:
                pipe.changed.unpark_all()


class MemoryTransport:
    """One peer's `Transport`."""

    def __init__(self, network: MemoryNetwork, me: PeerId) -> None:
        self._network = network
        self.me = me

    async def dial(self, peer: PeerId) -> "MemoryStream":
        """See `Transport.dial`."""
        network = self._network
        if not (network.flows(self.me, peer) and network.flows(peer, self.me)):
            await trio.sleep(DIAL_SECONDS)
        inbox = network.inboxes.get(peer)
        if inbox is None or not network.flows(self.me, peer) or not network.flows(peer, self.me):
            raise CallError("unreachable", f"The node {peer} does not answer.", reason="dial")
        near, far = network.connect(self.me, peer)
        try:
            inbox.send_nowait((self.me, far))
        except (trio.WouldBlock, trio.BrokenResourceError) as error:
            near.connection.breaks()
            raise CallError("unreachable", f"The node {peer} accepts no connection now.", reason="dial") from error
        await trio.lowlevel.checkpoint()
        return near

    async def serve(self, accept: Accept, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Transport.serve`. `ValueError` where the peer serves already."""
        if self.me in self._network.inboxes:
            raise ValueError(f"{self.me} serves already")
        send, receive = trio.open_memory_channel[tuple[PeerId, MemoryStream]](BACKLOG)
        self._network.inboxes[self.me] = send
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                async for peer, stream in receive:
                    nursery.start_soon(accept, peer, stream)
        finally:
            receive.close()
            if self._network.inboxes.get(self.me) is send:
                del self._network.inboxes[self.me]


@dataclass(slots=True, eq=False)
class _Pipe:
    """One direction: chunks with their times of arrival. An empty chunk is the sender's end."""

    sender: PeerId
    receiver: PeerId
    chunks: deque[tuple[float, bytes]] = field(default_factory=deque[tuple[float, bytes]])
    changed: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)
    in_flight_bytes: int = 0
    latest: float = -math.inf
    closed: bool = False
    """By its sender."""
    abandoned: bool = False
    """By its receiver."""

    def put(self, arrival: float, data: bytes) -> None:
        self.latest = max(self.latest, arrival)  # a stream: later bytes never overtake
        self.chunks.append((self.latest, data))
        self.in_flight_bytes += len(data)
        self.changed.unpark_all()


class _Connection:
    """Two pipes, and whether they still hold."""

    def __init__(self, network: MemoryNetwork, dialer: PeerId, acceptor: PeerId) -> None:
        self.network = network
        self.peers = (dialer, acceptor)
        there, back = _Pipe(dialer, acceptor), _Pipe(acceptor, dialer)
        self.pipes = (there, back)
        self.broken = False
        self.silent = False
        """Neither end hears anything any more, not even that."""
        self.ends = MemoryStream(self, there, back), MemoryStream(self, back, there)

    @property
    def flows(self) -> bool:
        """Whether both ends hear each other."""
        a, b = self.peers
        return not (self.broken or self.silent) and self.network.flows(a, b) and self.network.flows(b, a)

    def breaks(self) -> None:
        """Both ends get `BrokenResourceError` from now on."""
        self.broken = True
        self.network.forget(self)
        for pipe in self.pipes:
            pipe.changed.unpark_all()

    def closed(self) -> None:
        """One end was closed."""
        if all(pipe.closed for pipe in self.pipes):
            self.network.forget(self)
        for pipe in self.pipes:
            pipe.changed.unpark_all()


class MemoryStream(trio.abc.Stream):
    """One end of a connection. As with a socket, one task may send and one receive at a time."""

    def __init__(self, connection: _Connection, outgoing: _Pipe, incoming: _Pipe) -> None:
        self.connection = connection
        self._out = outgoing
        self._in = incoming
        self._sending = False
        self._receiving = False

    @property
    def is_open(self) -> bool:
        """Whether this end was neither closed nor broken; what the other end thinks, it cannot know."""
        return not self._out.closed and not self.connection.broken

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream.send_all`; waits while `IN_FLIGHT_BYTES_MAX` are under way."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            self._check()
            for chunk in _chunks(bytes(data)):
                await self._wait_for_room()
                self._send(chunk)
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await trio.lowlevel.checkpoint()
        await self._wait_for_room()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.ReceiveStream.receive_some`."""
        bytes_max = CHUNK_BYTES if max_bytes is None else operator.index(max_bytes)
        if bytes_max < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this stream")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            while True:
                self._check()
                ready_at = self._ready_at()
                if ready_at <= trio.current_time():
                    return self._receive(bytes_max)
                with trio.CancelScope(deadline=ready_at):
                    await self._in.changed.park()
        finally:
            self._receiving = False

    async def aclose(self) -> None:
        """Tell the other side, as far as the network lets it know; what was sent before still arrives."""
        if not self._out.closed:
            self._out.closed = True
            self._in.abandoned = True
            delay = self.connection.network.delay(self._out.sender, self._out.receiver)
            if not math.isinf(delay):
                self._out.put(trio.current_time() + delay, b"")
            self.connection.closed()
        await trio.lowlevel.checkpoint()

    def _check(self) -> None:
        if self._out.closed:
            raise trio.ClosedResourceError("this end was closed")
        if self.connection.broken:
            raise trio.BrokenResourceError("the connection broke")

    async def _wait_for_room(self) -> None:
        network, out = self.connection.network, self._out
        while True:
            self._check()
            # its reset has to reach us
            if out.abandoned and not self.connection.silent and network.flows(out.receiver, out.sender):
                raise trio.BrokenResourceError("the other end was closed")
            if out.in_flight_bytes < IN_FLIGHT_BYTES_MAX:
                return
            await out.changed.park()

    def _send(self, chunk: bytes) -> None:
        delay = self.connection.network.delay(self._out.sender, self._out.receiver)
        if math.isinf(delay):
            self.connection.breaks()
            self._check()
        self._out.put(trio.current_time() + delay, chunk)

    def _ready_at(self) -> float:
        pipe = self._in
        connection = self.connection
        if not pipe.chunks or connection.silent or not connection.network.flows(pipe.sender, pipe.receiver):
            return math.inf
        return pipe.chunks[0][0]

    def _receive(self, bytes_max: int) -> bytes:
        arrival, data = self._in.chunks.popleft()
        if not data:
            self._in.chunks.appendleft((arrival, data))  # the end stays the end
        elif len(data) > bytes_max:
            self._in.chunks.appendleft((arrival, data[bytes_max:]))
            data = data[:bytes_max]
        self._in.in_flight_bytes -= len(data)
        self._in.changed.unpark_all()
        return data


def _chunks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]
