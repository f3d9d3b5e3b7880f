"""How long a lost link waits between two dials."""

from typing import Any

import trio.testing

from covey.cluster.link import Link, LinkConfig
from covey.cluster.links import LATE_REDIAL_SECONDS_MAX, LATELY_SECONDS, Links
from covey.transport.base import PeerId


async def test_a_member_lately_here_is_dialled_often_and_one_long_gone_seldom(
    autojump_clock: trio.testing.MockClock,
) -> None:
    anything: Any = None
    config = LinkConfig(redial_seconds_min=0.2, redial_seconds_max=30.0)
    links = Links(anything, anything, anything, anything, config, doubted=anything, seed=1)
    link = Link(PeerId("a"), tries=50)
    pauses = [links._pause_seconds(link) for _ in range(200)]
    assert max(pauses) <= LATE_REDIAL_SECONDS_MAX * 1.5
    assert min(pauses) >= LATE_REDIAL_SECONDS_MAX * 0.5
    await trio.sleep(LATELY_SECONDS + 1)
    assert min(links._pause_seconds(link) for _ in range(200)) >= 15.0
