"""Waiting for replies: a stream that falls silent is given up, however its reader waits."""

import pytest
import trio

from covey.bus.replies import Replies
from covey.contracts.inference import CHAT, ChatDelta
from covey.errors import CallError


async def test_silence_is_measured_over_interrupted_waits(autojump_clock: trio.testing.MockClock) -> None:
    replies = Replies(CHAT)
    began = trio.current_time()

    async def until_it_ends() -> None:
        while True:
            with trio.move_on_after(10):
                await replies.batch()

    with pytest.raises(CallError) as caught:
        await until_it_ends()
    assert (caught.value.code, caught.value.reason) == ("deadline", "idle")
    assert trio.current_time() - began == pytest.approx(CHAT.idle_seconds)


async def test_each_reply_starts_the_wait_anew(autojump_clock: trio.testing.MockClock) -> None:
    replies = Replies(CHAT)
    for _ in range(5):
        with trio.move_on_after(CHAT.idle_seconds - 10):
            await replies.batch()
        replies.put(ChatDelta("x"))
        assert len(await replies.batch()) == 1
        await trio.sleep(CHAT.idle_seconds * 2)  # a slow reader is not a silent stream
