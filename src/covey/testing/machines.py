"""Other processes, for tests of what happens between machines: each a node with a libp2p host, on loopback.

    with other_machines() as machines:
        far = machines.start(near.peer_id)     # serves the conformance suite's callee to this one member
        far.kill()                             # as a machine dies: SIGKILL

`python -m covey.testing.machines` is the process that the others are forked from, so that only one of them spends the
seconds that importing libp2p takes. Every other ends with it, and it ends with its standard input.
"""

import gc
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import IO, cast

import msgspec
import trio

from covey.bus.bus import Bus
from covey.bus.carrier import SessionLimits
from covey.bus.session import acceptor
from covey.contracts.method import Party
from covey.store.identity import Identity
from covey.telemetry.metrics import Metrics
from covey.testing.callee import serve_far
from covey.transport.base import PeerId

GRANTED: frozenset[Party] = frozenset({"gateway", "auth", "member"})


class Order(msgspec.Struct, frozen=True):
    """Be this node, for these members."""

    seed: bytes
    members: tuple[PeerId, ...]
    limits: SessionLimits


class Report(msgspec.Struct, frozen=True):
    """What a process says once its node can be dialled."""

    pid: int
    addresses: tuple[str, ...]


class Machine:
    """A node in a process of its own; made by `Machines.start`.

    Args:
        identity: of the node.
        report: what its process said.
    """

    def __init__(self, identity: Identity, report: Report) -> None:
        self.peer_id = identity.peer_id
        self.identity = identity
        self.pid = report.pid
        self.addresses = report.addresses
        self._alive = True

    def kill(self) -> None:
        """The process dies, and says nothing to anybody."""
        if self._alive:
            os.kill(self.pid, signal.SIGKILL)
            self._alive = False

    def freeze(self) -> None:
        """The process stops, as a machine whose lid is closed; nobody is told."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on."""
        os.kill(self.pid, signal.SIGCONT)


class Machines:
    """Made by `other_machines`. Its methods block."""

    def __init__(self) -> None:
        self._forker = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start(self, *members: PeerId, identity: Identity | None = None, limits: SessionLimits | None = None) -> Machine:
        """A new process with a new node, which serves `covey.testing.callee` to these members.

        Args:
            members: who else there is.
            identity: of the node; default: a new one.
            limits: of its sessions.
        """
        identity = identity or Identity.generate()
        order = Order(identity.seed(), members, limits or SessionLimits())
        stdin, stdout = cast("IO[bytes]", self._forker.stdin), cast("IO[bytes]", self._forker.stdout)
        stdin.write(msgspec.json.encode(order) + b"\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError("the other process died; standard error says why")
        return Machine(identity, msgspec.json.decode(line, type=Report))

    def close(self) -> None:
        """End every process."""
        self._forker.kill()
        self._forker.wait()
        for pipe in (self._forker.stdin, self._forker.stdout):
            cast("IO[bytes]", pipe).close()


@contextmanager
def other_machines() -> Generator[Machines, None, None]:
    """Processes that end with the block, at the latest."""
    machines = Machines()
    try:
        yield machines
    finally:
        machines.close()


def _fork_on_order() -> None:
    importlib.import_module("covey.transport.libp2p.host")  # what takes long is done before the first fork

    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    alive, _held = os.pipe()  # its other end closes with this process
    for line in sys.stdin.buffer:
        if os.fork() == 0:
            os.close(_held)
            os.close(0)
            trio.run(_node, msgspec.json.decode(line, type=Order), alive)
            os._exit(0)


async def _node(order: Order, alive: int) -> None:
    from covey.transport.libp2p.host import open_libp2p

    keys = Identity(order.seed)

    async def hang_up(_peer: PeerId, _address: str, stream: trio.abc.Stream) -> None:
        await stream.send_all(b"hello")

    async with Bus(keys.peer_id, Metrics(), name="far").open() as bus:
        serve_far(bus.stamped("gateway"))
        accept = acceptor(bus, lambda _: GRANTED, limits=order.limits)
        async with open_libp2p(
            keys, listen=["127.0.0.1:0"], is_member=order.members.__contains__, on_rpc=accept, on_join=hang_up
        ) as host:
            sys.stdout.write(msgspec.json.encode(Report(os.getpid(), host.addresses)).decode() + "\n")
            sys.stdout.flush()
            async for _ in trio.lowlevel.FdStream(alive):
                pass


if __name__ == "__main__":
    _fork_on_order()
