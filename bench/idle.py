"""What idle keep-alive connections cost: the memory of a whole node with 10,000 of them, beside itself without.

Each connection has been answered once, as a client's pool keeps it. The clients are this process, the node is another.
"""

import resource
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import trio

from bench.figure import Figure
from bench.processes import Machine, place

CONNECTIONS = 10_000
SPARE_DESCRIPTORS = 200
SETTLED_SECONDS = 1.0
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
MEGABYTE = 1e6


@contextmanager
def connected(address: tuple[str, int], count: int) -> Iterator[list[socket.socket]]:
    """So many connections, each after one request."""
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            one = socket.create_connection(address, 30)
            opened.append(one)
            ask(one)
        yield opened
    finally:
        for one in opened:
            one.close()


def ask(connection: socket.socket) -> None:
    """One request and its answer."""
    connection.sendall(REQUEST)
    if not connection.recv(65_536).startswith(b"HTTP/1.1 200"):
        raise RuntimeError("the node did not answer")


def run(seconds: float) -> Iterable[Figure]:
    """Open them all; ask the first and the last once more, so that they are known to be open."""
    del seconds  # there is nothing to repeat
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, CONNECTIONS + SPARE_DESCRIPTORS), hard))
    with place() as folder:
        node = Machine(folder, "idle", roles='"auth", "inference", "gateway"')
        try:
            trio.run(node.launch, "up")
            host, _, port = node.url.removeprefix("http://").partition(":")
            address = (host, int(port))
            with connected(address, 100):
                time.sleep(SETTLED_SECONDS)
            before = node.resident_bytes
            with connected(address, CONNECTIONS) as connections:
                time.sleep(SETTLED_SECONDS)
                after = node.resident_bytes
                ask(connections[0])
                ask(connections[-1])
        finally:
            node.close()
    yield Figure(
        f"a node with {CONNECTIONS:,} idle connections", after / MEGABYTE, "MB", before / MEGABYTE, "without",
        goal_max=300,
    )  # fmt: skip
    yield Figure("an idle connection", (after - before) / CONNECTIONS / 1000, "kB")
