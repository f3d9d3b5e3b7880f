"""The conformance suite with the far side in a process of its own, which is killed and stopped for real."""

import signal
import sys
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

import pytest
import trio

from covey.bus.bus import Bus
from covey.bus.carrier import SessionLimits
from covey.bus.session import open_session
from covey.contracts.method import Nothing
from covey.telemetry.metrics import Metrics
from covey.testing.callee import HANG, serve_near
from covey.testing.conformance import BusConformance, reaches, refused
from covey.testing.ends import FAR, GRANTED, NEAR, Ends
from covey.testing.link_conformance import LinkConformance
from covey.transport.unix import dial_unix

FAR_PROCESS = """
import os, sys, trio
from functools import partial
from pathlib import Path
from covey.bus.bus import Bus
from covey.bus.session import acceptor
from covey.telemetry.metrics import Metrics
from covey.testing.callee import serve_far
from covey.testing.ends import FAR, GRANTED
from covey.transport.unix import serve_unix

async def main():
    async with Bus(FAR, Metrics(), name="far").open() as bus, trio.open_nursery() as nursery:
        serve_far(bus.stamped("gateway"))
        await nursery.start(partial(serve_unix, Path(sys.argv[1]), acceptor(bus, lambda _: GRANTED)))
        os.write(1, b"!")

trio.run(main)
"""
BRIEF = SessionLimits(ping_seconds=0.3, dead_seconds=2.0)
"""For the test in which the far side falls silent; in the others a busy machine may keep it waiting."""


class TestTwoProcesses(BusConformance, LinkConformance):
    @pytest.fixture
    async def process(self, tmp_path: Path) -> AsyncGenerator[trio.Process, None]:
        command = [sys.executable, "-c", FAR_PROCESS, str(tmp_path / "far.sock")]
        process = await trio.lowlevel.open_process(command, stdout=-1)
        assert process.stdout is not None
        try:
            async with process.stdout:
                with trio.fail_after(30):
                    assert await process.stdout.receive_some() == b"!"
                yield process
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    @pytest.fixture
    def limits(self) -> SessionLimits:
        return SessionLimits()

    @pytest.fixture
    async def ends(self, process: trio.Process, tmp_path: Path, limits: SessionLimits) -> AsyncGenerator[Ends, None]:
        path = tmp_path / "far.sock"
        near = Bus(NEAR, Metrics(), name="near")
        serve_near(near.stamped("gateway"))
        stream = await dial_unix(path)
        async with (
            near.open(),
            open_session(near, stream, peer=FAR, granted=GRANTED, dialer=True, limits=limits) as session,
        ):
            yield Ends(near, FAR, session, partial(dial_unix, path), process.kill)

    @pytest.mark.parametrize("limits", [BRIEF], ids=["brief"])
    async def test_a_stopped_process_is_lost(self, ends: Ends, process: trio.Process) -> None:
        assert ends.session is not None
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with refused("peer_lost") as caught:
                    await ends.bus.call(HANG, Nothing(), timeout_seconds=60)
                assert "silent" in caught[0].message

            nursery.start_soon(call)
            await reaches(ends.bus, "running", 1)
            process.send_signal(signal.SIGSTOP)
        with trio.fail_after(10):
            await ends.session.closed.wait()
