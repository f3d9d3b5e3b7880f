"""One suite over every way a call can travel."""

import logging
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from trio.testing import MockClock

from covey.contracts.method import Nothing
from covey.testing.callee import BUG
from covey.testing.conformance import BusConformance, refused
from covey.testing.ends import Ends, local_ends, memory_ends, unix_ends
from covey.testing.link_conformance import LinkConformance
from covey.transport.memory import LinkQuality, MemoryNetwork


class LoggedHere:
    """The callee runs in this process, so that its log can be read."""

    async def test_a_bug_is_logged_where_it_happened(self, ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.ERROR), refused("internal"):
            await ends.bus.call(BUG, Nothing())
        (record,) = caplog.records
        assert record.getMessage() == "The handler of conformance.bug failed."
        assert record.exc_info is not None
        assert record.exc_info[0] is ZeroDivisionError


class TestLocal(BusConformance, LoggedHere):
    @pytest.fixture
    async def ends(self, autojump_clock: MockClock) -> AsyncGenerator[Ends, None]:
        async with local_ends() as ends:
            yield ends


class TestMemory(BusConformance, LinkConformance, LoggedHere):
    @pytest.fixture
    async def ends(self, autojump_clock: MockClock) -> AsyncGenerator[Ends, None]:
        async with memory_ends() as ends:
            yield ends


class TestMemoryFarAway(BusConformance, LinkConformance):
    """Ten to twenty milliseconds there and back: nothing arrives in the tick in which it was sent."""

    @pytest.fixture
    async def ends(self, autojump_clock: MockClock) -> AsyncGenerator[Ends, None]:
        quality = LinkQuality(delay_seconds=0.005, jitter_seconds=0.005)
        async with memory_ends(MemoryNetwork(7, quality)) as ends:
            yield ends


class TestUnixSocket(BusConformance, LinkConformance, LoggedHere):
    @pytest.fixture
    async def ends(self, tmp_path: Path) -> AsyncGenerator[Ends, None]:
        async with unix_ends(tmp_path) as ends:
            yield ends
