"""One session with every other member: dialled for ever, kept, and exactly one where both dial at once."""

import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from covey.bus.background import open_background
from covey.bus.bus import Bus
from covey.bus.carrier import SessionLimits
from covey.bus.session import Session, open_session
from covey.cluster.address_book import AddressBook
from covey.cluster.choosing import (
    COPIED,
    DUPLICATE,
    GIVE_WAY_SECONDS_MAX,
    PROBE_SECONDS,
    REPLACED,
    SILENT,
    crossed,
    give_way,
    replaced,
    verdict,
)
from covey.cluster.link import STEADY_SECONDS, UNREACHABLE_TRIES, Farewell, Link, LinkConfig
from covey.cluster.membership import Membership
from covey.cluster.relaying import Neighbour
from covey.contracts.cluster import NOTICE, Notice
from covey.errors import CallError
from covey.store.pulse import Pulse
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

REMOVED = "removed"
LATELY_SECONDS = 600.0
LATE_REDIAL_SECONDS_MAX = 1.0
"""The longest wait between two dials of a member that was linked within `LATELY_SECONDS`."""
DOUBLINGS_MAX = 16


class Host(Protocol):
    """What dials and proves identities: `covey.transport.libp2p`, or a network in memory."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where this node says it can be reached; () for one that only dials out."""
        ...

    async def dial(self, peer: PeerId, addresses: tuple[str, ...]) -> tuple[trio.abc.Stream, str]:
        """A stream to that very peer, and the address that worked.

        Raises:
            CallError: `unreachable`; `forbidden` where the peer does not count this node as a member.
        """
        ...

    def came_from(self, peer: PeerId) -> str:
        """The address of the newest inbound connection of a peer; "" where there is none."""
        ...

    def close_peer(self, peer: PeerId) -> None:
        """Cut whatever connects to a peer, at once."""
        ...


class Links:
    """Keeps the sessions. `run` owns every task; `changes` beats whenever a link comes up or goes down.

    Args:
        doubted: told where a peer says, or acts as if, this machine were no member.
        seed: of the jitter.
    """

    def __init__(
        self,
        bus: Bus,
        host: Host,
        membership: Membership,
        book: AddressBook,
        config: LinkConfig,
        *,
        doubted: Callable[[PeerId, CallError], Awaitable[None]],
        seed: int | None = None,
    ) -> None:
        self.changes = Pulse()
        self._bus = bus
        self._host = host
        self._membership = membership
        self._book = book
        self._config = config
        self._doubted = doubted
        self._random = random.Random(seed)  # noqa: S311 - spreads redials; nothing secret
        self._limits = SessionLimits(ping_seconds=config.ping_seconds, dead_seconds=config.dead_seconds)
        self._links: dict[PeerId, Link] = {}
        self._choosing: dict[PeerId, trio.Lock] = {}
        self._nursery: trio.Nursery | None = None

    def all(self) -> tuple[Link, ...]:
        """Every link that is kept, up or down."""
        return tuple(self._links.values())

    def neighbours(self) -> tuple[Neighbour, ...]:
        """The other members, as a choice of relays needs to see them."""
        now = trio.current_time()
        return tuple(
            Neighbour(
                link.peer,
                away_seconds=0.0 if link.session is not None else now - link.down_at,
                reachable=link.dialed_by == self._bus.me and link.path == "direct",
            )
            for link in self.all()
        )

    async def run(self) -> None:
        """Keep a link to every other member until cancelled."""
        async with open_background() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._spread_hints)
            seen = -1
            while True:
                seen = await self._membership.changes.after(seen)
                self._reconcile(nursery)

    async def accept(self, peer: PeerId, stream: trio.abc.Stream) -> None:
        """Take over an inbound stream of a member until its session ends."""
        await self._hold(peer, stream, dialed_by=peer, address=self._host.came_from(peer))

    async def check(self) -> None:
        """The way may have changed under the links: ask each for a sign of life, and dial those that are down."""

        async def ask(link: Link, session: Session) -> None:
            if not await session.answers(PROBE_SECONDS):
                session.refuse(Farewell("peer_lost", "It does not answer any more.", reason=SILENT))

        async with trio.open_nursery() as nursery:
            for link in self.all():
                if link.session is None:
                    link.hint()
                else:
                    nursery.start_soon(ask, link, link.session)

    # Who there is

    def _reconcile(self, nursery: trio.Nursery) -> None:
        members = {peer for peer in self._membership.rows() if self._membership.is_member(peer)}
        members.discard(self._bus.me)
        for peer in sorted(members - set(self._links)):
            link = self._links[peer] = Link(peer)
            nursery.start_soon(self._keep, link, name=f"keep the link to {peer}")
        for peer in set(self._links) - members:
            self._choosing.pop(peer, None)
            nursery.start_soon(self._cut, self._links.pop(peer), name=f"cut the link to {peer}")
        for link in self.all():
            if link.session is not None and link.granted != self._membership.granted(link.peer):
                link.session.refuse(Farewell("conflict", "The node has other roles now: link anew.", reason=REPLACED))

    async def _cut(self, link: Link) -> None:
        """A member was removed: its link ends now, and it is told why."""
        name = self._membership.name(link.peer)
        link.wake.set()
        if link.session is not None:
            link.session.refuse(Farewell("forbidden", "This machine was removed from the network.", reason=REMOVED))
            with trio.move_on_after(1.0):
                await link.session.closed.wait()
        self._host.close_peer(link.peer)
        log.info("The node %s was removed; its link is cut.", name)

    async def _spread_hints(self) -> None:
        """Dial at once whom somebody has told another address of."""
        seen, known = self._book.hints.count, self._book.all()
        while True:
            seen = await self._book.hints.after(seen)
            before, known = known, self._book.all()
            for link in self.all():
                if set(known.get(link.peer, ())) - set(before.get(link.peer, ())):
                    link.hint()

    # Dialling

    async def _keep(self, link: Link) -> None:
        """Dial a member whenever there is no link to it, until it is removed."""
        await self._dial(link)
        while self._links.get(link.peer) is link:
            link.wake = trio.Event()
            if link.session is not None:
                await link.wake.wait()
                continue
            with trio.move_on_after(self._pause_seconds(link)):
                await link.wake.wait()
            if link.session is None and self._links.get(link.peer) is link:
                link.tries += 1
                link.tried_at = trio.current_time()
                await self._dial(link)

    def _pause_seconds(self, link: Link) -> float:
        seconds: float = self._config.redial_seconds_min * 2.0 ** min(link.tries, DOUBLINGS_MAX)
        # No hint comes when a partition heals: who was here a moment ago is missed more than who is long gone.
        lately = trio.current_time() - link.down_at < LATELY_SECONDS
        longest = min(self._config.redial_seconds_max, LATE_REDIAL_SECONDS_MAX if lately else math.inf)
        return min(seconds, longest) * self._random.uniform(0.5, 1.5)

    async def _dial(self, link: Link) -> None:
        """Try once; where a session comes up, until it has ended."""
        addresses = self._book.get(link.peer)
        if not addresses:
            link.failure = link.failure or "nobody has said where it is"
            return
        try:
            with trio.fail_after(self._config.dial_seconds_max):
                stream, address = await self._host.dial(link.peer, addresses)
        except trio.TooSlowError:
            self._unreachable(link, f"It did not answer within {self._config.dial_seconds_max:g} s.")
        except CallError as error:
            self._unreachable(link, error.message)
            if error.code == "forbidden":
                await self._doubted(link.peer, error)
        else:
            await self._hold(link.peer, stream, dialed_by=self._bus.me, address=address)

    def _unreachable(self, link: Link, why: str) -> None:
        link.failure = why
        if link.session is None and link.tries >= UNREACHABLE_TRIES and link.is_news("unreachable"):
            name = self._membership.name(link.peer)
            log.warning("The node %s cannot be reached, and is tried again and again: %s", name, why)

    # Sessions

    async def _hold(self, peer: PeerId, stream: trio.abc.Stream, *, dialed_by: PeerId, address: str) -> None:
        """Have a session over a stream until it ends."""
        granted = self._membership.granted(peer)
        link = self._links.get(peer)
        if not granted or link is None:
            await trio.aclose_forcefully(stream)
            return
        try:
            async with open_session(
                self._bus,
                stream,
                peer=peer,
                granted=granted,
                dialer=dialed_by == self._bus.me,
                limits=self._limits,
                join=False,
            ) as session:
                if not await self._choose(link, session, dialed_by):
                    with trio.move_on_after(GIVE_WAY_SECONDS_MAX + PROBE_SECONDS):
                        await session.closed.wait()
                    return
                try:
                    await self._serve(link, session, address)
                finally:
                    was_link = link.session is session
                    link.went_down(session)
                    self.changes.beat()
                await self._ended(link, session, was_link=was_link)
        except CallError as error:
            await self._not_opened(link, error)

    async def _not_opened(self, link: Link, error: CallError) -> None:
        """The peer was reached, and there is no session with it."""
        if error.code in ("peer_lost", "deadline", "unreachable") or error.reason == DUPLICATE:
            self._unreachable(link, error.message)
            return
        link.failure = error.message
        if link.is_news(error.message):
            log.warning("There is no link with the node %s: %s", self._membership.name(link.peer), error.message)
        if error.reason == REMOVED:
            await self._doubted(link.peer, error)

    async def _choose(self, link: Link, session: Session, dialed_by: PeerId) -> bool:
        """Whether a new session becomes the link; where it does, an old one is closed."""
        async with self._choosing.setdefault(link.peer, trio.Lock()):
            name = self._membership.name(link.peer)
            refusal = await verdict(link, session, dialed_by=dialed_by, me=self._bus.me, name=name)
            if refusal is not None:
                self._dismiss(session, refusal, gently=crossed(link, session, dialed_by=dialed_by))
                if refusal.reason == COPIED:
                    await self._tell_of_copy(link, refusal)
                return False
            if self._links.get(link.peer) is not link:
                session.refuse(Farewell("forbidden", "This machine was removed from the network.", reason=REMOVED))
                return False
            link.crossed = crossed(link, session, dialed_by=dialed_by)
            if link.session is not None:
                old = link.session
                link.ups -= link.crossed  # nothing went wrong
                link.went_down(old)
                self._dismiss(old, replaced(), gently=link.crossed)
            link.came_up(session, dialed_by=dialed_by, granted=self._membership.granted(link.peer))
            session.join()
            self.changes.beat()
            for other in self.all():
                other.nudge()
            return True

    def _dismiss(self, session: Session, why: Farewell, *, gently: bool) -> None:
        """End a session that is not, or no longer, the link. `gently`: what was called over it may end before."""
        if gently and self._nursery is not None:
            self._nursery.start_soon(give_way, session, why)
        else:
            session.refuse(why)

    async def _tell_of_copy(self, link: Link, refusal: Farewell) -> None:
        """Here and to the one that stays; the one that is refused reads it in the refusal."""
        if not link.is_news(refusal.message):
            return
        log.error("%s", refusal.message)
        try:
            notice = Notice(COPIED, refusal.message)
            await self._bus.stamped("member").call(NOTICE, notice, to=link.peer, timeout_seconds=PROBE_SECONDS)
        except CallError as error:
            log.debug("%s was not told of its copy: %s", link.peer, error)

    async def _serve(self, link: Link, session: Session, address: str) -> None:
        """From the moment a session is the link, until it has ended."""
        link.address = address or link.address
        link.path, link.failure = "relayed" if "/p2p-circuit" in address else "direct", ""
        if (was_well := not link.is_troubled()) and not link.crossed:
            log.info("Linked with the node %s.", session.name)
        if session.hello is not None and link.dialed_by == self._bus.me:
            await self._book.learn({link.peer: [address]}, first=True)
        with trio.move_on_after(STEADY_SECONDS):
            await session.closed.wait()
        if not session.closed.is_set():
            if not was_well:
                log.info("Linked with the node %s again.", session.name)
            link.is_well()
            await session.closed.wait()

    async def _ended(self, link: Link, session: Session, *, was_link: bool) -> None:
        lost = session.lost
        if lost is None or isinstance(lost, Farewell):
            log.debug("This node ended a session with %s: %s", link.peer, lost)
            return
        if lost.reason in (DUPLICATE, REPLACED):
            log.debug("A session with %s made way: %s", link.peer, lost)
            link.ups -= was_link  # nothing went wrong
            return
        link.failure = lost.message
        if lost.reason == COPIED:
            if link.is_news(lost.message):
                log.error("%s", lost.message)
        elif lost.reason == REMOVED:
            await self._doubted(link.peer, lost)
        elif not link.is_troubled():
            log.info("The link to the node %s is down: %s", session.name, lost.message)
