"""One request on its way to a node that takes long to reach."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from covey.bus.bus import BusHandle
from covey.bus.replies import Replies
from covey.contracts.inference import CHAT, ChatDelta, ChatRequest
from covey.contracts.method import Streaming
from covey.errors import CallError
from covey.roles.gateway.live import Live
from covey.roles.gateway.patience import Patience
from covey.roles.gateway.placement import Fleet, Wanted
from covey.roles.gateway.stats import Tally
from covey.roles.gateway.way import Way
from covey.transport.base import PeerId

FAR = PeerId("far")


class OneNode:
    """A fleet of one, and the bus to it: a long request takes a while to get there."""

    def __init__(self, seconds: float, live: Live) -> None:
        self._seconds = seconds
        self._live = live
        self.denies = False
        self.opened = 0

    async def place(self, wanted: Wanted, tried: Any = ()) -> PeerId | None:
        return None if FAR in tried else FAR

    def started(self, peer: PeerId, model: str) -> None: ...

    def ended(self, peer: PeerId, model: str) -> None: ...

    @asynccontextmanager
    async def stream(
        self, method: Streaming[ChatRequest, ChatDelta], request: ChatRequest, **_: Any
    ) -> AsyncGenerator[Replies[ChatDelta], None]:
        self.opened += 1
        await trio.sleep(self._seconds)
        replies = Replies(method)
        if self.denies:
            self._live.end(CallError("unauthenticated", "The key was revoked."))
            yield replies
            return
        replies.put(ChatDelta("there", tokens=1))
        replies.end()
        yield replies


def way_to(node: OneNode, live: Live) -> Way[ChatRequest, ChatDelta]:
    return Way(
        cast("BusHandle", node), cast("Fleet", node), Tally(), CHAT, ChatRequest("m", ()), Wanted("m"),
        Patience(600.0, 360.0, 90.0), live, first=FAR,
    )  # fmt: skip


async def test_a_long_request_gets_there_however_often_a_ping_is_due(autojump_clock: MockClock) -> None:
    """Mutation: stop sending it when a ping is due. The node counts as tried then, and there is no other."""
    live = Live()
    node = OneNode(25.0, live)
    way = way_to(node, live)
    texts: list[str] = []
    while (deltas := await way.batch(trio.current_time() + 10.0)) != []:
        texts += [delta.text for delta in deltas or ()]
    await way.leave()
    assert texts == ["there"]
    assert node.opened == 1


async def test_a_key_that_is_revoked_as_the_last_of_its_request_goes_out(autojump_clock: MockClock) -> None:
    """Mutation: let `Live.follow` not look whether it has ended."""
    live = Live()
    node = OneNode(1.0, live)
    node.denies = True
    way = way_to(node, live)
    with pytest.raises(CallError, match="revoked"):
        await way.batch(trio.current_time() + 10.0)
    await way.leave()
