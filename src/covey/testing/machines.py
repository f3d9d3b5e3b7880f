"""A second process, for tests of what happens between machines: it serves the conformance suite's callee over libp2p.

    with other_machine() as far:
        address = far.start(near.peer_id)      # a fresh node in that process, on loopback
        far.kill()                             # as a machine dies; `start` makes a new process

`python -m covey.testing.machines` is that process: each line on its standard input is an `Order`, each answered with a
line that has the addresses; it ends with its standard input.
"""

import os
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
    """Be this node from now on, for this one member."""

    seed: bytes
    member: PeerId
    limits: SessionLimits


class OtherMachine:
    """Made by `other_machine`. Its methods block."""

    def __init__(self) -> None:
        self.identity = Identity.generate()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    def start(self, member: PeerId, limits: SessionLimits | None = None) -> tuple[str, ...]:
        """A fresh node with nothing in its ledger; returns where it can be dialled."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        order = Order(self.identity.seed(), member, limits or SessionLimits())
        stdin, stdout = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
        stdin.write(msgspec.json.encode(order) + b"\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError("the other process died; standard error says why")
        return msgspec.json.decode(line, type=tuple[str, ...])

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                cast("IO[bytes]", pipe).close()
            self._process = None


@contextmanager
def other_machine() -> Generator[OtherMachine, None, None]:
    """A process that starts with the first `start`."""
    machine = OtherMachine()
    try:
        yield machine
    finally:
        machine.kill()


async def _main() -> None:
    lines = trio.lowlevel.FdStream(os.dup(0))
    rest = b""
    async with trio.open_nursery() as nursery:
        running: tuple[trio.CancelScope, trio.Event] | None = None
        async for data in lines:
            *orders, rest = (rest + data).split(b"\n")
            for order in orders:
                if running is not None:
                    running[0].cancel()
                    await running[1].wait()
                running = await nursery.start(_node, msgspec.json.decode(order, type=Order))
        nursery.cancel_scope.cancel()


async def _node(order: Order, *, task_status: trio.TaskStatus[tuple[trio.CancelScope, trio.Event]]) -> None:
    from covey.transport.libp2p.host import open_libp2p

    keys = Identity(order.seed)
    gone = trio.Event()

    async def refuse(_peer: PeerId, _address: str, _stream: trio.abc.Stream) -> None:
        await trio.lowlevel.checkpoint()

    with trio.CancelScope() as scope:
        async with Bus(keys.peer_id, Metrics(), name="far").open() as bus:
            serve_far(bus.stamped("gateway"))
            accept = acceptor(bus, lambda _: GRANTED, limits=order.limits)
            async with open_libp2p(
                keys, listen=["127.0.0.1:0"], is_member=lambda peer: peer == order.member,
                on_rpc=accept, on_join=refuse,
            ) as host:  # fmt: skip
                sys.stdout.write(msgspec.json.encode(host.addresses).decode() + "\n")
                sys.stdout.flush()
                task_status.started((scope, gone))
                await trio.sleep_forever()
    gone.set()


if __name__ == "__main__":
    trio.run(_main)
