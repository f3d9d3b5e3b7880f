"""Telling members who is a member: the members feeds, as they grow."""

import trio

from covey.bus.background import open_background
from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.contracts.membership import FeedEntries, TailMembers
from covey.errors import CallError
from covey.roles.auth.nodes import removed
from covey.store.ingest import next_batch, vector
from covey.store.rows import MemberRow
from covey.store.view import View
from covey.store.writer import Store

HEARTBEAT_SECONDS = 10.0
LOOK_SECONDS_MIN = 0.05
"""How long after one look at the store the next one is: a busy writer of other things costs its readers nothing."""


class MembersTail:
    """Serves TAIL_MEMBERS.

    Args:
        store: holds the feeds.
        stop: set when the node stops: its readers then turn to another auth node, and do not hold it up.
    """

    def __init__(self, store: Store, stop: trio.Event) -> None:
        self._store = store
        self._stop = stop

    async def tail(self, caller: Caller, request: TailMembers, emit: Emit[FeedEntries]) -> None:
        """Serve TAIL_MEMBERS."""
        with trio.CancelScope() as scope:

            async def end() -> None:
                await self._stop.wait()
                scope.cancel()

            async with open_background() as nursery:
                nursery.start_soon(end)
                await self._tail(caller, request, emit)
        raise CallError("draining", "This node is stopping.")

    async def _tail(self, caller: Caller, request: TailMembers, emit: Emit[FeedEntries]) -> None:
        """What the reader lacks, a heartbeat once it has all, then live. Runs until cancelled.

        A reader that is ahead of this node is sent what others write next; one that was removed gets to know that, and
        no more.
        """
        reader, commits = self._store.reader, self._store.commits
        have, heartbeat_at = request.vector, trio.current_time()
        while True:
            seen, looked_at = commits.count, trio.current_time()
            while batch := next_batch(reader, "members", have):
                await emit(FeedEntries(batch.entries, vector(reader, "members")))
                have, heartbeat_at = batch.vector, trio.current_time() + HEARTBEAT_SECONDS
            row = View(reader).get(MemberRow, caller.peer)
            if row is not None and row.removed:
                raise removed(row)
            if trio.current_time() >= heartbeat_at:
                await emit(FeedEntries((), vector(reader, "members")))
                heartbeat_at = trio.current_time() + HEARTBEAT_SECONDS
            with trio.move_on_at(heartbeat_at):
                await commits.after(seen)
                await trio.sleep_until(looked_at + LOOK_SECONDS_MIN)
