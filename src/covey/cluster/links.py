"""One session with every other member: dialled for ever, kept, and exactly one where both dial at once.

Two sessions with one peer (network.md): of one boot, the one that the lower peer id dialled stays. Of another boot,
the old one is asked: silent for a second, it is replaced (an honest restart, let in at once); answering, the newer is
refused and both are told (a copied identity).
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import msgspec
import trio

from covey.bus.background import open_background
from covey.bus.bus import Bus
from covey.bus.carrier import SessionLimits
from covey.bus.session import Session, open_session
from covey.cluster.address_book import AddressBook
from covey.cluster.membership import Membership
from covey.errors import CallError
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

COPIED = "copied_identity"
REMOVED = "removed"
PROBE_SECONDS = 1.0


class LinkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How links are kept. `redial_seconds_max` caps the back-off; hints end it at once."""

    dial_seconds_max: float = 5.0
    redial_seconds_min: float = 0.2
    redial_seconds_max: float = 30.0
    ping_seconds: float = 5.0
    dead_seconds: float = 15.0


class Host(Protocol):
    """What dials and proves identities: `covey.transport.libp2p`, or a network in memory."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where this node says it can be reached; () for one that only dials out."""
        ...

    async def dial(self, peer: PeerId, addresses: tuple[str, ...]) -> tuple[trio.abc.Stream, str]:
        """A stream to that very peer, and the address that worked. `CallError`: `unreachable`."""
        ...

    def close_peer(self, peer: PeerId) -> None:
        """Cut whatever connects to a peer, at once."""
        ...


@dataclass(slots=True)
class LinkInfo:
    """What is known of the link to one peer. `path` is `direct`, `relayed`, or "" while it is down."""

    peer: PeerId
    path: Literal["direct", "relayed", ""] = ""
    address: str = ""
    reconnects: int = 0
    failure: str = ""
    session: Session | None = None
    dialed_by: PeerId | None = None
    wake: trio.Event = field(default_factory=trio.Event)


class Links:
    """Keeps the sessions. `run` owns every task."""

    def __init__(
        self,
        bus: Bus,
        host: Host,
        membership: Membership,
        book: AddressBook,
        config: LinkConfig,
        *,
        refused: Callable[[PeerId, CallError], None],
        seed: int | None = None,
    ) -> None:
        self._bus = bus
        self._host = host
        self._membership = membership
        self._book = book
        self._config = config
        self._refused = refused
        self._random = random.Random(seed)  # noqa: S311 - spreads redials; nothing secret
        self._limits = SessionLimits(ping_seconds=config.ping_seconds, dead_seconds=config.dead_seconds)
        self._links: dict[PeerId, LinkInfo] = {}
        self._choosing: dict[PeerId, trio.Lock] = {}
        self._nursery: trio.Nursery | None = None

    def info(self) -> tuple[LinkInfo, ...]:
        """Every link that is kept, up or down."""
        return tuple(self._links.values())

    async def run(self) -> None:
        """Keep a link to every other member until cancelled."""
        async with open_background() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._spread_hints)
            seen = -1
            while True:
                seen = await self._membership.changes.after(seen)
                await self._reconcile(nursery)

    async def accept(self, peer: PeerId, stream: trio.abc.Stream) -> None:
        """Take over an inbound stream of a member until its session ends."""
        await self._hold(peer, stream, dialed_by=peer, address="")

    async def _reconcile(self, nursery: trio.Nursery) -> None:
        members = {peer for peer in self._membership.rows() if self._membership.is_member(peer)}
        members.discard(self._bus.me)
        for peer in members - set(self._links):
            self._links[peer] = LinkInfo(peer)
            nursery.start_soon(self._keep, peer, name=f"keep the link to {peer}")
        for peer in set(self._links) - members:
            await self._cut(self._links.pop(peer))

    async def _cut(self, link: LinkInfo) -> None:
        """A member was removed: its link ends now, and it is told why."""
        link.wake.set()
        if link.session is not None:
            link.session.refuse(CallError("forbidden", "This machine was removed from the network.", reason=REMOVED))
            with trio.move_on_after(1.0):
                await link.session.closed.wait()
        self._host.close_peer(link.peer)

    async def _spread_hints(self) -> None:
        seen = self._book.hints.count
        while True:
            seen = await self._book.hints.after(seen)
            for link in self._links.values():
                link.wake.set()

    async def _keep(self, peer: PeerId) -> None:
        """Dial a member until it is removed."""
        wait_seconds = self._config.redial_seconds_min
        while (link := self._links.get(peer)) is not None:
            link.wake = trio.Event()
            if link.session is not None:
                await link.session.closed.wait()
                wait_seconds = self._config.redial_seconds_min
            if link.session is None and await self._dial(link):
                wait_seconds = self._config.redial_seconds_min
                continue
            with trio.move_on_after(wait_seconds * self._random.uniform(0.5, 1.5)):
                await link.wake.wait()
                wait_seconds = self._config.redial_seconds_min
            wait_seconds = min(wait_seconds * 2, self._config.redial_seconds_max)

    async def _dial(self, link: LinkInfo) -> bool:
        """Try once; `True` where a session came up, which has ended again by now or goes on elsewhere."""
        addresses = self._book.get(link.peer)
        if not addresses:
            link.failure = "nobody has said where it is"
            return False
        try:
            with trio.fail_after(self._config.dial_seconds_max):
                stream, address = await self._host.dial(link.peer, addresses)
        except trio.TooSlowError:
            link.failure = f"no answer within {self._config.dial_seconds_max:g} s"
            return False
        except CallError as error:
            link.failure = error.message
            return False
        return await self._hold(link.peer, stream, dialed_by=self._bus.me, address=address)

    async def _hold(self, peer: PeerId, stream: trio.abc.Stream, *, dialed_by: PeerId, address: str) -> bool:
        """Have a session over a stream until it ends. `True` where it was chosen as the link."""
        granted = self._membership.granted(peer)
        link = self._links.get(peer)
        if not granted or link is None:
            await trio.aclose_forcefully(stream)
            return False
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
                    with trio.move_on_after(PROBE_SECONDS):
                        await session.closed.wait()
                    return False
                await self._serve(link, session, address)
                return True
        except CallError as error:
            link.failure = error.message
            self._refused(peer, error)
            return False

    async def _serve(self, link: LinkInfo, session: Session, address: str) -> None:
        link.address, link.failure = address, ""
        link.path = "relayed" if "/p2p-circuit" in address else "direct"
        log.info("Linked with the node %s.", session.name)
        try:
            if address:
                await self._book.learn({link.peer: [address]}, worked=True)
            await session.closed.wait()
        finally:
            if link.session is session:
                link.session, link.dialed_by, link.path = None, None, ""
                link.reconnects += 1
        if session.lost is not None:
            link.failure = session.lost.message
            log.info("The link to the node %s is down: %s", session.name, session.lost.message)
            self._refused(link.peer, session.lost)

    async def _choose(self, link: LinkInfo, session: Session, dialed_by: PeerId) -> bool:
        """Whether a new session becomes the link; where it does, an old one is closed."""
        lock = self._choosing.setdefault(link.peer, trio.Lock())
        async with lock:
            old = link.session
            if old is not None and old.lost is None:
                if not await self._yields(link, old, session, dialed_by):
                    return False
                old.refuse(
                    CallError("conflict", "Another link between the same two nodes took over.", reason="replaced")
                )
            link.session, link.dialed_by = session, dialed_by
            session.join()
            return True

    async def _yields(self, link: LinkInfo, old: Session, new: Session, dialed_by: PeerId) -> bool:
        """Whether the old session makes way; where it does not, the new one is told why."""
        same_boot = old.hello is not None and new.hello is not None and old.hello.boot_id == new.hello.boot_id
        if same_boot and link.dialed_by != dialed_by:
            if dialed_by == min(link.peer, self._bus.me):
                return True
            new.refuse(CallError("conflict", "The nodes dialled each other; the other link stays.", reason="duplicate"))
            return False
        if not await old.answers(PROBE_SECONDS):
            return True
        if same_boot:
            # The same side dialled again although its link lives: it will notice.
            new.refuse(CallError("conflict", "There is a link already, and it answers.", reason="duplicate"))
            return False
        message = (
            f"Two machines run with the identity of {self._membership.name(link.peer)}: the one that came later is"
            " refused. Stop one of them; a copied data folder must become a node of its own (covey join --replace)."
        )
        log.error("%s", message)
        problem = CallError("conflict", message, reason=COPIED)
        new.refuse(problem)
        return False
