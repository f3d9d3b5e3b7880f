"""The requests under way, and what they were let in with: each is ended where that counts no more.

A denial reaches this node as an entry of the feeds; DENIALS tells of it at once. Whoever streams with a key that was
revoked gets an error, and never the end of an answer; the engine stops.
"""

import logging
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import trio

from covey.bus.bus import BusHandle
from covey.bus.replies import Replies
from covey.contracts.auth import VERIFY, VerifyKey
from covey.contracts.leases import DENIALS, Denied
from covey.contracts.method import Nothing
from covey.errors import CallError

log = logging.getLogger(__name__)

FOLLOW_AGAIN_SECONDS = 0.2


class Live:
    """One request. Made by `LiveRequests.watch`.

    `key`: what it was let in with; `None` for a session, which goes by its owner, and for the operator.
    """

    def __init__(self, key: VerifyKey | None = None) -> None:
        self.key = key
        self._replies: set[Replies[Any]] = set()
        self._opening: set[trio.CancelScope] = set()
        self._owner: str | None = None
        self._denied: set[str] = set()
        self._refusal: CallError | None = None

    def belongs_to(self, owner: str) -> None:
        """Whose session it is; that may have been denied while this was asked."""
        self._owner = owner
        if owner in self._denied:
            self.end(_disabled())

    def owners_denied(self, owners: tuple[str, ...]) -> None:
        """Some accounts were disabled."""
        if self.key is not None:
            return
        if self._owner is None:
            self._denied.update(owners)
        elif self._owner in owners:
            self.end(_disabled())

    @property
    def has_ended(self) -> bool:
        """Whether it counts no more."""
        return self._refusal is not None

    def opening(self) -> trio.CancelScope:
        """A node is about to be given the request: in this scope, which is cancelled where that counts no more.

        Say when it has it, or will not (`opened`). Raises as `check`.
        """
        self.check()
        scope = trio.CancelScope()
        self._opening.add(scope)
        return scope

    def opened(self, scope: trio.CancelScope) -> None:
        """It has it, or will not."""
        self._opening.discard(scope)

    def follow(self, replies: Replies[Any]) -> None:
        """Work for it has begun, of which these are the results: they end with it, and whoever waits for them learns
        why. A scope around each wait would cost a token as much as the rest of its way; and what is being written to
        the client is not cut in the middle.
        """
        self._replies.add(replies)
        if self._refusal is not None:  # it came as the last of the request went out
            replies.end(CallError.of(self._refusal.problem))

    def leave(self, replies: Replies[Any]) -> None:
        """That work is over."""
        self._replies.discard(replies)

    def end(self, refusal: CallError) -> None:
        """It counts no more."""
        self._refusal = refusal
        for scope in self._opening:
            scope.cancel()
        for replies in self._replies:
            replies.end(CallError.of(refusal.problem))

    def check(self) -> None:
        """Raise why it counts no more, where that is so."""
        if self._refusal is not None:
            raise CallError.of(self._refusal.problem)


class Watch(AbstractContextManager[Live]):
    """Made by `LiveRequests.watch`. No generator: those cost a request more than all of this."""

    def __init__(self, watched: set[Live], live: Live) -> None:
        self._watched = watched
        self._live = live

    def __enter__(self) -> Live:
        self._watched.add(self._live)
        return self._live

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watched.discard(self._live)


class LiveRequests:
    """All of one gateway. `follow` is the task that ends them."""

    def __init__(self, bus: BusHandle) -> None:
        self._bus = bus
        self._live: set[Live] = set()

    def watch(self, key: VerifyKey | None) -> "Watch":
        """Watch one request while the block runs. Enter it *before* its credential is checked, so that no denial falls
        between the check and the watch.
        """
        return Watch(self._live, Live(key))

    async def follow(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with self._bus.stream(DENIALS, Nothing()) as news:
                    begun = False
                    async for denied in news:
                        if not begun or denied != Denied():  # at the beginning: what was missed before
                            await self._heed(denied)
                        begun = True
            except CallError as error:
                log.debug("No news of denials now: %s", error)
            await trio.sleep(FOLLOW_AGAIN_SECONDS)

    async def _heed(self, denied: Denied) -> None:
        refusals: dict[VerifyKey, CallError | None] = {}
        for live in list(self._live):
            live.owners_denied(denied.owners)
            if live.key is None:
                continue
            if live.key not in refusals:
                refusals[live.key] = await self._refusal(live.key)
            if (refusal := refusals[live.key]) is not None:
                live.end(refusal)

    async def _refusal(self, key: VerifyKey) -> CallError | None:
        """Why a key counts no more; `None` where it does, or where nobody can say."""
        try:
            await self._bus.call(VERIFY, key)
        except CallError as error:
            return error if error.code == "unauthenticated" else None
        return None


def _disabled() -> CallError:
    return CallError("unauthenticated", "The account was disabled while the answer was under way.", reason="session")
