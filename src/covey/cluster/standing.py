"""Whether this machine still is a member: what it is told, whom it believes, and what it remembers."""

import logging

import trio

from covey.cluster.address_book import AddressBook
from covey.cluster.joining import JoinDialer, ask
from covey.cluster.membership import Membership
from covey.contracts.joining import JoinRequest
from covey.errors import CallError
from covey.store.pulse import Pulse
from covey.store.writer import Local
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

REMOVED = "removed"
ASK_SECONDS_MIN = 2.0
ASK_SECONDS_MAX = 60.0
MESSAGE = (
    "This machine was removed from its network, and is cut off from it. To come back it needs a new invite, and becomes"
    " a new machine: covey join --replace TOKEN"
)


class Standing:
    """Believes auth nodes alone, for they say who is a member: any other may only give reason to ask them.

    Args:
        membership: as this node knows it.
        book: where auth nodes are.
        local: where the verdict is kept: a removed machine stays so over restarts.
        me: this node.
    """

    def __init__(self, membership: Membership, book: AddressBook, local: Local, me: PeerId) -> None:
        self.over = trio.Event()
        """Set once this machine is known to be removed; another one, not set, once it is let back in."""
        self.back = Pulse()
        """Beats when it is."""
        self._membership = membership
        self._book = book
        self._local = local
        self._me = me
        self._next_ask = float("-inf")
        self._wait_seconds = ASK_SECONDS_MIN
        self._ending = False
        if local.get(b"removed"):
            self._ending = True
            self.over.set()

    @property
    def removed(self) -> str:
        """Why this machine is no member any more, and what to do; "" while it is one."""
        own = self._membership.get(self._me)
        return MESSAGE if self.over.is_set() or (own is not None and own.removed) else ""

    async def watch(self) -> None:
        """Heed this node's own copy of the membership; until cancelled.

        Whom it called removed, and does so no more, was let back in by the recovery key.
        """
        seen, was_removed = -1, False
        while True:
            seen = await self._membership.changes.after(seen)
            own = self._membership.get(self._me)
            is_removed = own is not None and own.removed
            if is_removed and not self.over.is_set():
                await self._end()
            elif was_removed and not is_removed:
                log.warning("This machine is a member of its network again.")
                await self.lift()
            was_removed = is_removed

    async def lift(self) -> None:
        """This machine is a member again: forget that it was not."""
        await self._local.delete(b"removed")
        self._ending = False
        if self.over.is_set():
            self.over = trio.Event()
        self.back.beat()

    async def doubt(self, dialer: JoinDialer, peer: PeerId, error: CallError) -> None:
        """A peer said, or acted as if, this machine were no member. Asks auth nodes, though seldom."""
        if self.over.is_set():
            return
        if error.reason == REMOVED and peer in self._judges():
            await self._end()
            return
        now = trio.current_time()
        if now < self._next_ask:
            return
        self._next_ask = now + self._wait_seconds
        self._wait_seconds = min(self._wait_seconds * 2, ASK_SECONDS_MAX)
        for judge in self._judges():
            if (verdict := await self._ask(dialer, judge)) == REMOVED:
                await self._end()
            if verdict:
                return

    def _judges(self) -> tuple[PeerId, ...]:
        rows = self._membership.rows().items()
        return tuple(peer for peer, row in rows if "auth" in row.roles and not row.removed and peer != self._me)

    async def _ask(self, dialer: JoinDialer, judge: PeerId) -> str:
        """What an auth node says we are, by the one door that non-members have; "" where it does not say."""
        request = JoinRequest(network_id=self._membership.network_id, secret=b"", name="", version="")
        try:
            answer, _ = await ask(dialer, judge, self._book.get(judge), request)
        except CallError as error:
            log.debug("No word from %s on our standing: %s", judge, error)
            return ""
        return answer.refusal.reason if answer.refusal is not None else ""

    async def _end(self) -> None:
        if self._ending:
            return
        self._ending = True
        log.error("%s", MESSAGE)
        await self._local.put(b"removed", b"1")
        self.over.set()
