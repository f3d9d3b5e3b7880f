"""Machines that join, die, freeze and are cut off: real `covey` processes over libp2p, and how soon it is noticed.

    python -m bench.faults [--seconds 2]

The first machine runs auth and gateway, the second has a model. Their links are libp2p's, on loopback; the partition is
of two network namespaces, whose routes to each other become black holes, and is left out where there is no root. All
that is asked goes through the first machine's Unix socket, so that asking is no part of what is measured.
"""

import argparse
import os
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

import msgspec
import trio

from bench.figure import Figure, show
from bench.processes import CLUSTER_PORT, DEAD_SECONDS, MODEL, Machine, place, until
from covey.client import Client
from covey.contracts.cluster import LINKS
from covey.contracts.method import Nothing
from covey.errors import CallError

NOTICE_SECONDS_MAX = 0.1
BARE_DIAL_SECONDS = 0.05
BARE_PEER = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); s.recv(1)"
BARE_DIALER = f"""
import socket, sys, time
while True:
    try:
        socket.create_connection((sys.argv[1], int(sys.argv[2])), {BARE_DIAL_SECONDS}).close()
    except OSError:
        time.sleep({BARE_DIAL_SECONDS})
    else:
        print(time.monotonic())
        break
"""


async def answered(client: Client) -> bool:
    """Whether the gateway has the model answer."""
    try:
        return (await client.chat("Are you there?", model=MODEL)).finish == "stop"
    except CallError:
        return False  # not yet; `until` has the limit


async def lost(client: Client) -> bool:
    """Whether the link to the other machine is down."""
    return all(link.path == "down" for link in (await client.bus.call(LINKS, Nothing())).links)


async def joining(rounds: int) -> tuple[list[float], list[float]]:
    """From `covey invite` to the first answer of the new machine's model, and from its next `covey up`."""
    joined: list[float] = []
    again: list[float] = []
    for _ in range(rounds):
        with place() as folder:
            first, second = Machine(folder, "first", roles='"auth", "gateway"'), Machine(folder, "second")
            try:
                await first.launch("up")
                async with first.client() as client:
                    for seen in (joined, again):
                        began = trio.current_time()
                        if seen is joined:
                            await second.launch("join", await first.invite())
                        else:
                            await second.launch("up")
                        await until(lambda: answered(client))
                        seen.append(trio.current_time() - began)
                        second.close()
                        await until(lambda: lost(client))
            finally:
                second.close()
                first.close()
    return joined, again


class Noticed(msgspec.Struct):
    """Seconds, of every round."""

    death: list[float] = []
    bare_death: list[float] = []
    freeze: list[float] = []
    thaw: list[float] = []


async def dying_and_freezing(rounds: int) -> Noticed:
    """How soon the first machine notices what happens to the second one, and asks it again afterwards."""
    noticed = Noticed()
    with place() as folder:
        first, second = Machine(folder, "first", roles='"auth", "gateway"'), Machine(folder, "second")
        try:
            await first.launch("up")
            await second.launch("join", await first.invite())
            async with first.client() as client:
                await until(lambda: answered(client))
                for _ in range(rounds):
                    second.send(signal.SIGSTOP)
                    noticed.freeze.append(await until(lambda: lost(client)))
                    second.send(signal.SIGCONT)
                    noticed.thaw.append(await until(lambda: answered(client)))
                    second.kill()
                    noticed.death.append(await until(lambda: lost(client)))
                    noticed.bare_death.append(await trio.to_thread.run_sync(bare_death))
                    second.close()
                    await second.launch("up")
                    await until(lambda: answered(client))
        finally:
            second.close()
            first.close()
    return noticed


def bare_death() -> float:
    """How long a bare TCP connection takes to end when its other end's process is killed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-c", BARE_PEER, str(listener.getsockname()[1])]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            connection, _ = listener.accept()
            with connection:
                began = time.perf_counter()
                process.kill()
                connection.recv(1)
                return time.perf_counter() - began


def why_no_namespaces() -> str:
    """Why a partition cannot be made here; "" where it can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "needs iproute2"
    name = f"cvb{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces here ({made.stderr.strip()})"
    ip("netns", "del", name)
    return ""


def ip(*arguments: str) -> None:
    """`ip`, which has to work."""
    subprocess.run(["ip", *arguments], check=True)


@contextmanager
def two_namespaces() -> Generator[tuple[str, str], None, None]:
    """With a cable between them, and the addresses 10.91.0.1 and 10.91.0.2."""
    names = [f"cvb{secrets.token_hex(3)}{end}" for end in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "e0", "netns", names[0], "type", "veth", "peer", "name", "e0", "netns", names[1])
        for number, name in enumerate(names, 1):
            ip("-n", name, "address", "add", f"10.91.0.{number}/24", "dev", "e0")
            for device in ("lo", "e0"):
                ip("-n", name, "link", "set", device, "up")
        yield names[0], names[1]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


@contextmanager
def bare_dialer(near: Machine, far: Machine) -> Generator[Callable[[], float], None, None]:
    """A process that dials until it gets through; when that was, on the system's monotonic clock."""
    command = near.inside(sys.executable, "-c", BARE_DIALER, far.address, str(CLUSTER_PORT))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout
        try:
            yield lambda: float(said.readline())
        finally:
            process.kill()


async def healing(rounds: int) -> tuple[list[float], list[float]]:
    """From the end of a partition to the next answer, and to a bare TCP connection that is tried all the time."""
    back: list[float] = []
    bare: list[float] = []
    with place() as folder, two_namespaces() as (near, far):
        first = Machine(folder, "first", roles='"auth", "gateway"', namespace=near, address="10.91.0.1")
        second = Machine(folder, "second", namespace=far, address="10.91.0.2")
        routes = ((near, second.address), (far, first.address))
        try:
            await first.launch("up")
            await second.launch("join", await first.invite())
            async with first.client() as client:
                await until(lambda: answered(client))
                for _ in range(rounds):
                    for namespace, address in routes:
                        ip("-n", namespace, "route", "add", "blackhole", f"{address}/32")
                    await until(lambda: lost(client))
                    with bare_dialer(first, second) as connected_at:
                        await trio.sleep(2 * DEAD_SECONDS)  # for both to have given up, and to dial in vain
                        for namespace, address in routes:
                            ip("-n", namespace, "route", "del", "blackhole", f"{address}/32")
                        healed = time.monotonic()
                        back.append(await until(lambda: answered(client)))
                        bare.append(connected_at() - healed)
        finally:
            second.close()
            first.close()
    return back, bare


def run(seconds: float) -> Iterable[Figure]:
    """Measure each a few times; the median counts."""
    rounds = max(3, round(seconds))
    middle = statistics.median
    joined, again = trio.run(joining, rounds)
    yield Figure("invite to the new machine's first answer", middle(joined), "s", middle(again), "the same, a member",
                 goal_max=3)  # fmt: skip
    noticed = trio.run(dying_and_freezing, rounds)
    yield Figure("kill -9 of a peer, to its being noticed", middle(noticed.death), "s", middle(noticed.bare_death),
                 "bare TCP", goal_max=NOTICE_SECONDS_MAX)  # fmt: skip
    # The bound runs from the last byte, which may have come with the freeze: a death's tenth is for seeing it here.
    yield Figure("SIGSTOP of a peer, to its being noticed", middle(noticed.freeze), "s", DEAD_SECONDS, "dead_seconds",
                 goal_max=DEAD_SECONDS + NOTICE_SECONDS_MAX)  # fmt: skip
    yield Figure("SIGCONT to the next answer", middle(noticed.thaw), "s", goal_max=2)
    if reason := why_no_namespaces():
        print(f"  a partition that heals: left out, {reason}")
        return
    back, bare = trio.run(healing, rounds)
    yield Figure("a partition's end to the next answer", middle(back), "s", middle(bare), "bare TCP", goal_max=2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="so many rounds, at least three")
    show("faults", run(parser.parse_args().seconds))
