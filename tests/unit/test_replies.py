"""Waiting for replies: a stream that falls silent is given up, however its reader waits."""

import pytest
import trio

from covey.bus.bus import BusHandle
from covey.bus.caller import Caller
from covey.bus.credit import STREAM_ITEMS_MAX
from covey.bus.replies import CANCEL_SECONDS_MAX, Emit, Replies
from covey.contracts.inference import CHAT, ChatDelta, ChatRequest
from covey.errors import CallError
from covey.testing import alice_and_bob


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


async def test_a_reader_may_wait_until_a_moment(autojump_clock: trio.testing.MockClock) -> None:
    replies = Replies(CHAT, 60)
    assert await replies.batch(trio.current_time() + 5) is None
    assert trio.current_time() == pytest.approx(5)
    replies.put(ChatDelta("x"))
    assert await replies.batch(trio.current_time()) == [ChatDelta("x")]
    with pytest.raises(CallError) as caught:
        await replies.batch(trio.current_time() + 100)  # the stream's own end comes first
    assert (caught.value.code, caught.value.reason) == ("deadline", "")
    assert trio.current_time() == pytest.approx(60)


async def test_replies_come_before_the_failure_and_only_the_first_end_counts() -> None:
    replies = Replies(CHAT)
    replies.put(ChatDelta("x"))
    replies.end(CallError("upstream", "It broke."))
    replies.end()
    assert await replies.batch() == [ChatDelta("x")]
    with pytest.raises(CallError, match="It broke"):
        await replies.batch()
    with pytest.raises(CallError, match="It broke"):
        await anext(replies)


async def test_who_emits_waits_for_the_reader(autojump_clock: trio.testing.MockClock) -> None:
    replies = Replies(CHAT)
    put = 0

    async def emit() -> None:
        nonlocal put
        while True:
            await replies.put_when_room(ChatDelta("x"))
            put += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(emit)
        nursery.start_soon(emit)
        await trio.testing.wait_all_tasks_blocked()
        assert put == STREAM_ITEMS_MAX
        await anext(replies)
        await trio.testing.wait_all_tasks_blocked()
        assert put == STREAM_ITEMS_MAX + 1
        assert len(await replies.batch() or []) == STREAM_ITEMS_MAX
        await trio.testing.wait_all_tasks_blocked()
        assert put == 2 * STREAM_ITEMS_MAX + 1
        nursery.cancel_scope.cancel()
    assert len(await replies.batch() or []) == STREAM_ITEMS_MAX  # whoever was cancelled handed over nothing


@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
async def test_who_emits_long_after_its_reader_has_left_is_cancelled_and_no_bug(
    far: bool, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Mutation: leave the checkpoint out of `put_when_room`."""
    ended: list[type[BaseException]] = []

    async def chat(caller: Caller, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await emit(ChatDelta("x"))
        with trio.CancelScope(shield=True):  # as a thread that cannot be abandoned
            await trio.sleep(CANCEL_SECONDS_MAX + 1)
        try:
            await emit(ChatDelta("x"))
        except BaseException as error:
            ended.append(type(error))
            raise

    def serve(bus: BusHandle) -> None:
        bus.serve_stream(CHAT, chat)

    async with alice_and_bob(**{"bob" if far else "alice": serve}) as (alice, _):
        async with alice.stamped("gateway").stream(CHAT, ChatRequest("m", ())) as replies:
            await replies.batch()
        await trio.sleep(2 * CANCEL_SECONDS_MAX)
    assert ended == [trio.Cancelled]
    assert not [one for one in caplog.records if "failed" in one.getMessage()]


async def test_a_cancelled_emit_hands_over_nothing() -> None:
    """And is cancelled where it first has to wait, if not before."""
    replies = Replies(CHAT)
    with trio.CancelScope() as scope:
        scope.cancel()
        while True:
            await replies.put_when_room(ChatDelta("x"))
    assert scope.cancelled_caught
    replies.end()
    assert len(await replies.batch() or []) == STREAM_ITEMS_MAX
    assert await replies.batch() == []


@pytest.mark.parametrize("full", [True, False])
async def test_nothing_is_emitted_to_a_reader_who_has_left(*, full: bool) -> None:
    replies = Replies(CHAT)
    for _ in range(STREAM_ITEMS_MAX if full else 0):
        replies.put(ChatDelta("x"))
    if not full:
        replies.leave()

    async def emit() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await replies.put_when_room(ChatDelta("y"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(emit)
        await trio.testing.wait_all_tasks_blocked()
        replies.leave()
