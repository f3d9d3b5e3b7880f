"""Which gateways share a limit, and which auth nodes there are to own it, as one auth node sees them."""

from collections.abc import Iterable

import trio

from covey.bus.bus import BusHandle
from covey.contracts.cluster import EXCHANGE_ADDRESSES
from covey.contracts.gateway import COMPLETE
from covey.contracts.limits import BEAT_SECONDS, LEASE_LIMITS, LEASE_SECONDS, SEES_MAX, ranked
from covey.store.membership import AUTHOR_ROLE, is_member
from covey.store.rows import MemberRow
from covey.store.view import View

GATEWAY_ROLE = "gateway"
LOOK_SECONDS = 0.25
NEVER = float("-inf")


class _Beat:
    """A gateway's signs of life: since when, the last one, and which auth nodes it saw then."""

    def __init__(self, now: float) -> None:
        self.since = self.last = now
        self.sees: tuple[str, ...] = ()
        self.first_of: dict[str, str] = {}
        """Whom it asks about a limit, remembered for as long as `sees` is the same."""


class LimitSight:
    """Made when the auth role opens; `look` now and then.

    Args:
        bus: stamped `auth`: knows who is live.
        view: knows who is a member.
        absent_seconds: for how long a gateway that shows no sign of life may still vouch for keys; after that its share
            is the others'.
        now: when this node began.
    """

    def __init__(self, bus: BusHandle, view: View, absent_seconds: float, now: float) -> None:
        self._bus = bus
        self._view = view
        self._absent_seconds = absent_seconds
        self._began_at = now
        self._beats: dict[str, _Beat] = {}
        self._nodes: frozenset[str] = frozenset()
        self._gone_at: dict[str, float] = {}
        self._gateways: frozenset[str] = frozenset()
        self._sharing: frozenset[str] = frozenset()
        self.look(now)

    @property
    def me(self) -> str:
        """This node."""
        return str(self._bus.me)

    def look(self, now: float) -> None:
        """Who is there now."""
        nodes = frozenset({self.me, *map(str, self._bus.serving(LEASE_LIMITS))})
        for gone in self._nodes - nodes:
            self._gone_at[gone] = now
        self._nodes = nodes
        rows = [row for row in self._view.all(MemberRow) if is_member(row)]
        self._gateways = frozenset(row.peer for row in rows if GATEWAY_ROLE in row.roles)
        authors = frozenset(row.peer for row in rows if AUTHOR_ROLE in row.roles)
        linked = frozenset(map(str, self._bus.serving(EXCHANGE_ADDRESSES)))
        serving = frozenset(map(str, self._bus.serving(COMPLETE)))
        has_majority = 2 * len(authors & nodes) > len(authors)
        self._sharing = frozenset(
            one for one in self._gateways
            if self.is_live(one, now) or not self._is_out(one, now, linked, serving, has_majority=has_majority)
        )  # fmt: skip
        self._gone_at = {node: at for node, at in self._gone_at.items() if node in authors}
        self._beats = {one: beat for one, beat in self._beats.items() if one in self._gateways or one == self.me}

    def _is_out(
        self, gateway: str, now: float, linked: frozenset[str], serving: frozenset[str], *, has_majority: bool
    ) -> bool:
        """Whether a gateway certainly lets nobody in: it runs without the role, or can vouch for no key any more."""
        if gateway in linked and gateway not in serving:
            return True
        beat = self._beats.get(gateway)
        return has_majority and now - (beat.last if beat else self._began_at) > self._absent_seconds

    def beat(self, gateway: str, sees: tuple[str, ...], now: float) -> None:
        """A gateway shows a sign of life."""
        beat = self._beats.get(gateway)
        if beat is None or now - beat.last > LEASE_SECONDS:
            if gateway not in self._gateways and gateway != self.me:
                return
            beat = self._beats[gateway] = _Beat(now)
        beat.last = now
        if sees != beat.sees:
            beat.sees, beat.first_of = sees[:SEES_MAX], {}

    def is_live(self, gateway: str, now: float) -> bool:
        """Whether it is linked and shows signs of life."""
        beat = self._beats.get(gateway)
        if beat is None:
            return False
        return gateway == self.me or (now - beat.last <= LEASE_SECONDS and gateway in self._links())

    def _links(self) -> Iterable[str]:
        return self._bus.serving(EXCHANGE_ADDRESSES)

    @property
    def gateways(self) -> int:
        """How many share each limit; at least one."""
        return max(len(self._sharing), 1)

    def owns(self, limit_id: str, now: float) -> bool:
        """Whether this node owns a limit: no auth node that it sees comes before it."""
        nodes = frozenset({self.me, *map(str, self._bus.serving(LEASE_LIMITS))})
        if nodes != self._nodes:
            self.look(now)
        return ranked(limit_id, nodes)[0] == self.me

    def owned_since(self, limit_id: str) -> float:
        """Since when nobody else can have owned it; for ever where this process is all there is."""
        before = ranked(limit_id, {self.me, *self._gone_at})
        gone = [self._gone_at[node] for node in before[: before.index(self.me)]]
        alone = self._sharing <= {self.me} and not self._gone_at and self._nodes == frozenset({self.me})
        return max([NEVER if alone else self._began_at, *gone])

    def share(self, limit_id: str, now: float) -> float:
        """The part of a limit that this owner may lend: that of the gateways which ask it for it, and no other."""
        asking = sum(self._asks_here(gateway, limit_id, now) for gateway in self._sharing)
        return asking / self.gateways if self._sharing else 1.0

    def _asks_here(self, gateway: str, limit_id: str, now: float) -> bool:
        if not self.is_live(gateway, now):
            return False
        if gateway == self.me:
            return True
        beat = self._beats[gateway]
        if now - beat.since < BEAT_SECONDS:  # it may not know yet that it reaches us, and live on its own share
            return False
        first = beat.first_of.get(limit_id)
        if first is None:
            if len(beat.first_of) > 10_000:
                beat.first_of.clear()
            first = beat.first_of[limit_id] = ranked(limit_id, beat.sees)[0] if beat.sees else ""
        return first == self.me

    async def keep_looking(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            self.look(trio.current_time())
