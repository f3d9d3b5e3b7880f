"""What is known of the link to one member, and how links are kept."""

import logging
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import trio

from covey.bus.session import Session
from covey.contracts.cluster import LinkStatus
from covey.contracts.method import Party
from covey.errors import CallError
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

STEADY_SECONDS = 5.0
"""A session that lives as long was no accident: the back-off begins anew, and what went wrong before is forgotten."""
NUDGE_SECONDS = 2.0
UNREACHABLE_TRIES = 3
"""Fruitless dials before people are told: a node that restarts is back before."""


class LinkConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How links are kept. `redial_seconds_max` caps the back-off; hints end it at once."""

    dial_seconds_max: float = 5.0
    redial_seconds_min: float = 0.2
    redial_seconds_max: float = 30.0
    ping_seconds: float = 5.0
    dead_seconds: float = 15.0


class Farewell(CallError):
    """Why this side ended a session. The other side's words arrive as a plain `CallError`, and so differ."""


@dataclass(slots=True, eq=False)
class Link:
    """The link to one member, up or down. Changed by `Links` alone."""

    peer: PeerId
    session: Session | None = None
    dialed_by: PeerId | None = None
    granted: frozenset[Party] = frozenset()
    """What the peer may act as in the present session."""
    path: Literal["direct", "relayed", ""] = ""
    """"" while it is down."""
    address: str = ""
    """Where the peer was reached, or came from, the last time."""
    failure: str = ""
    """Why it is down, or why the last try came to nothing."""
    crossed: bool = False
    """Whether the present session took over from one that was dialled at the same time: no news for people."""
    ups: int = 0
    up_at: float = 0.0
    down_at: float = field(default_factory=trio.current_time)
    tries: int = 0
    """To bring it up, in vain, since it was last up for a while."""
    tried_at: float = float("-inf")
    """When the last try began."""
    wake: trio.Event = field(default_factory=trio.Event)
    """Set where there may be something to do: a hint, a session that came up or ended, a removal."""
    _told: set[str] = field(default_factory=set[str])
    _received_bytes: int = 0
    _sent_bytes: int = 0

    def came_up(self, session: Session, *, dialed_by: PeerId, granted: frozenset[Party]) -> None:
        """A session is the link from now on."""
        self.session, self.dialed_by, self.granted = session, dialed_by, granted
        self.ups += 1
        self.up_at = trio.current_time()
        self.wake.set()

    def went_down(self, session: Session) -> None:
        """A session that was the link has ended, or made way."""
        if self.session is session:
            self._received_bytes += session.received_bytes
            self._sent_bytes += session.sent_bytes
            if trio.current_time() - self.up_at >= STEADY_SECONDS:
                self.tries = 0
            self.session, self.dialed_by, self.path = None, None, ""
            self.down_at = trio.current_time()
            self.wake.set()

    def hint(self) -> None:
        """Somebody may know more than the back-off does: try now."""
        self.tries = 0
        self.wake.set()

    def nudge(self) -> None:
        """Another link came back: what was in the way may be gone for this one, too. Tries now, though not often."""
        if self.session is None and trio.current_time() - self.tried_at >= NUDGE_SECONDS:
            self.wake.set()

    def is_troubled(self) -> bool:
        """Whether people were told that something is wrong with it, and nothing else since."""
        return bool(self._told)

    def is_news(self, message: str) -> bool:
        """Whether people have not been told this since the link was last well; they are now."""
        if message in self._told:
            return False
        if len(self._told) >= 16:  # texts that differ every time
            return False
        self._told.add(message)
        return True

    def is_well(self) -> None:
        """The link has been up for a while."""
        self._told.clear()
        self.failure = ""

    def status(self, name: str, roles: tuple[str, ...], labels: tuple[str, ...] = ()) -> LinkStatus:
        """For people and metrics. `name`, `roles` and `labels`: as the membership says."""
        session = self.session
        made, served = (0, 0) if session is None else session.calls_in_flight
        return LinkStatus(
            peer=self.peer,
            name=name,
            roles=roles,
            path=self.path or "down",
            rtt_seconds=None if session is None else session.round_trip_seconds,
            reconnects=max(0, self.ups - 1),
            address=self.address,
            failure="" if session else self.failure,
            received_bytes=self._received_bytes + (session.received_bytes if session else 0),
            sent_bytes=self._sent_bytes + (session.sent_bytes if session else 0),
            calls_made=made,
            calls_served=served,
            labels=labels,
        )
