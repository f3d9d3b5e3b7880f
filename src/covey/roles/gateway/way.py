"""The way of one request to a node that can do it, and to another one while nothing was delivered."""

import logging
import math
from contextlib import AbstractAsyncContextManager
from typing import Generic, TypeVar

import msgspec
import trio

from covey.bus.bus import BusHandle
from covey.bus.replies import Replies
from covey.contracts.method import Streaming
from covey.errors import CallError, Code
from covey.roles.gateway.live import Live
from covey.roles.gateway.patience import Patience
from covey.roles.gateway.placement import Fleet, Wanted
from covey.roles.gateway.stats import Tally
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

RETRIES_MAX = 2
RETRY_SHARE = 0.2
"""Of the requests in flight, beyond the first few: a cluster that fails all over is not asked everything thrice."""
RETRYABLE: frozenset[Code] = frozenset({"unreachable", "peer_lost", "draining", "no_capacity", "loading", "upstream"})
"""What another node may do better. Only before the first token: what was delivered cannot be taken back."""


Request = TypeVar("Request", bound=msgspec.Struct)
Reply = TypeVar("Reply", bound=msgspec.Struct)


class Way(Generic[Request, Reply]):
    """One request on its way. Whoever makes one leaves it (`leave`), whatever happens.

    Args:
        method: what the node is asked.
        request: for it.
        wanted: what the node must have, and be.
        patience: how long to wait.
        live: ends it where the key it was let in with counts no more.
        first: the node to try first, as placed.
    """

    def __init__(
        self,
        bus: BusHandle,
        fleet: Fleet,
        tally: Tally,
        method: Streaming[Request, Reply],
        request: Request,
        wanted: Wanted,
        patience: Patience,
        live: Live,
        *,
        first: PeerId | None,
    ) -> None:
        self._bus = bus
        self._fleet = fleet
        self._tally = tally
        self._method = method
        self._request = request
        self._wanted = wanted
        self._patience = patience
        self.live = live
        now = trio.current_time()
        self._deadline = now + patience.total_seconds
        self._silent_at = now + patience.first_seconds
        self._first = first
        self._tried: set[PeerId] = set()
        self._failure: CallError | None = None
        self._peer: PeerId | None = None
        self._replies: Replies[Reply] | None = None
        self._stream: AbstractAsyncContextManager[Replies[Reply]] | None = None
        self._delivered = False
        self.node: PeerId | None = None
        """Who worked on it last."""

    def begin(self) -> None:
        """From now on it waits for its first token: until now it waited for its turn here."""
        self._silent_at = trio.current_time() + self._patience.first_seconds

    async def batch(self, until: float = math.inf) -> list[Reply] | None:
        """The next replies, all that wait; [] at the end; `None` where none has come `until` then, on trio's clock, or
        where a node was reached no sooner.

        Raises:
            CallError: the last node's, where no other is left to try; `deadline` where patience is at its end;
                `unauthenticated` where what the request was let in with counts no more.
        """
        while True:
            if self._replies is None:
                # Bounded by itself, and not by `until`: a long request that is cut off on its way would begin anew.
                await self._reach()
                continue
            try:
                replies = await self._replies.batch(min(until, self._silent_at))
            except CallError as error:
                if self._delivered or error.code not in RETRYABLE or len(self._tried) > RETRIES_MAX:
                    raise
                self._failure = error
                await self.leave()
                continue
            if replies is None:
                self._check_patience(until)
                return None
            self._delivered = self._delivered or bool(replies)
            self._silent_at = trio.current_time() + self._patience.idle_seconds
            return replies

    def _check_patience(self, until: float) -> None:
        """Nothing has come `until` then, or for longer than there is patience: then raise."""
        if until < self._silent_at:
            return
        model, patience = self._wanted.model, self._patience
        said = (
            f"The model {model!r} fell silent for {patience.idle_seconds:g} s in the middle of its answer."
            if self._delivered
            else f"The model {model!r} sent no token within {patience.first_seconds:g} s."
        )
        raise CallError("deadline", said, reason="timeout")

    async def _reach(self) -> None:
        peer, self._first = self._first, None
        if peer is None:
            peer = await self._fleet.place(self._wanted, self._tried)
        if self._failure is not None:
            if peer is None or not self._tally.may_retry(RETRY_SHARE):
                raise self._failure
            log.info("Trying another node: %s", self._failure.message)
        if peer is None:
            raise CallError("no_capacity", "No node can take the request now.", retry_after_seconds=1.0)
        opening = self.live.opening()
        self._tried.add(peer)
        seconds = max(self._deadline - trio.current_time(), 0)
        try:
            stream = self._bus.stream(self._method, self._request, to=peer, timeout_seconds=seconds, opening=opening)
            replies = await stream.__aenter__()  # `leave` leaves it
        except CallError as error:
            self.live.check()
            if error.code not in RETRYABLE or len(self._tried) > RETRIES_MAX:
                raise
            self._failure = error
            return
        finally:
            self.live.opened(opening)
        self._fleet.started(peer, self._wanted.model)
        self._peer, self._stream, self._replies = peer, stream, replies
        self.node = peer
        self.live.follow(replies)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("%s for the model %s runs on %s.", self._method.name, self._wanted.model, self._bus.name_of(peer))

    async def leave(self) -> None:
        """Stop the node that works on it, if one does."""
        if self._peer is not None:
            self._fleet.ended(self._peer, self._wanted.model)
        if self._replies is not None:
            self.live.leave(self._replies)
        stream, self._stream = self._stream, None
        self._peer = self._replies = None
        if stream is not None:
            await stream.__aexit__(None, None, None)
