"""Whether an auth node sees enough of the others to give away what there is only once: log-in names."""

from covey.bus.bus import BusHandle
from covey.cluster.lease import LeasePolicy, quorum
from covey.contracts.cluster import NOTICE
from covey.errors import CallError
from covey.store.membership import AUTHOR_ROLE, is_member
from covey.store.rows import MemberRow
from covey.store.view import View


class Sight:
    """Which auth members this auth node sees: itself, and those with a live link.

    Args:
        bus: knows who is live.
        policy: as for leases.
    """

    def __init__(self, bus: BusHandle, policy: LeasePolicy) -> None:
        self._bus = bus
        self._policy: LeasePolicy = policy

    def check(self, view: View) -> None:
        """Raise `conflict` (`no_majority`) where somebody else may give the same name away, unseen."""
        members = {row.peer for row in view.all(MemberRow) if is_member(row) and AUTHOR_ROLE in row.roles}
        seen, needed = members & {self._bus.me, *self._bus.serving(NOTICE)}, quorum(len(members), self._policy)
        if len(seen) < needed:
            raise CallError(
                "conflict",
                f"This node sees {len(seen)} of the network's {len(members)} auth nodes, and gives away no names until"
                f" it sees {needed}: link them again, or do this on one that sees more.",
                reason="no_majority",
            )
