"""Serves VERIFY and DENIALS from this node's own view of the keys feeds: the auth role's, or a gateway's copy.

Callers do not know which. A node vouches for keys only under a lease (`covey.cluster.lease`): without one it could not
tell what was revoked meanwhile.
"""

from collections.abc import Callable, Iterable

import trio

from covey.bus.bus import BusHandle
from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.contracts.auth import VERIFY, Identity, VerifyKey
from covey.contracts.feeds import KeyRevoke, Op, OwnerStanding, Remove
from covey.contracts.leases import DENIALS, Denied
from covey.contracts.method import Nothing
from covey.store.feeds import Clock
from covey.store.key_check import asked_id, bad_key, identity_of_key, judge_key
from covey.store.merge import Rows
from covey.store.news import FeedNews
from covey.store.writer import Store
from covey.telemetry.metrics import Metrics

SIGN_OF_LIFE_SECONDS = 10.0


class Replica:
    """The handlers.

    Args:
        store: of a member that reads the keys feeds.
        rows: its view: an auth node's plain one, another node's with what it keeps denied (`covey.store.denied`).
        clock: wall time, for keys that expire.
        check_lease: raises `no_lease` unless this node may vouch for keys now.
        metrics: where checks are counted.
    """

    def __init__(
        self, store: Store, rows: Rows, clock: Clock, check_lease: Callable[[], None], metrics: Metrics
    ) -> None:
        self._store = store
        self._rows = rows
        self._clock = clock
        self._check_lease = check_lease
        self._metrics = metrics

    def serve(self, bus: BusHandle) -> None:
        """From now on."""
        bus.serve_at_once(VERIFY, self.verify)
        bus.serve_stream(DENIALS, self.denials)

    def verify(self, caller: Caller, request: VerifyKey) -> Identity:
        """Serve VERIFY. Runs for every request of the API: a few reads, no waiting."""
        self._check_lease()
        row, outcome, stands = judge_key(self._rows, asked_id(request), request.digest, self._clock.now())
        self._metrics.key_check(outcome)
        if row is None or row.created is None or stands is None:
            raise bad_key()
        return identity_of_key(row, row.created, stands)

    async def denials(self, caller: Caller, request: Nothing, emit: Emit[Denied]) -> None:
        """Serve DENIALS; runs until cancelled."""
        news = FeedNews(self._store, "members", "keys")
        await emit(Denied())
        while True:
            ops: list[Op] = []
            with trio.move_on_after(SIGN_OF_LIFE_SECONDS) as patience:
                ops = [op for sealed in await news.next() for op in sealed.entry.ops]
            denied = denied_by(ops)
            if patience.cancelled_caught or denied != Denied():
                await emit(denied)


def denied_by(ops: Iterable[Op]) -> Denied:
    """What these deny."""
    said = list(ops)
    return Denied(
        tuple(op.id for op in said if isinstance(op, KeyRevoke)),
        tuple(op.owner for op in said if isinstance(op, OwnerStanding) and not op.active),
        authors=any(isinstance(op, Remove) for op in said),
    )
