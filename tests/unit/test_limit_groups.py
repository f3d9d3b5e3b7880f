"""The limits that a gateway remembers, over the end of a day and back."""

from covey.contracts.auth import Identity, KeyLimits
from covey.roles.gateway.limit_groups import Groups
from covey.transport.base import PeerId

DAY = 86_400.0
NOON = 20_000 * DAY + DAY / 2


def test_what_a_request_counts_against_is_always_reported() -> None:
    """A clock that goes back over midnight. Mutation: keep `parts` where a lease is forgotten: it is never lent to."""
    groups = Groups(10)
    identity = Identity("k", "ann", limits=KeyLimits(requests_per_minute=5, tokens_per_day=100))
    for unix_now in (NOON, NOON + DAY, NOON):
        parts = groups.parts(identity, 0.0, unix_now)
        assert parts == groups.parts(identity, 0.0, unix_now)
        assert all(lease in group.leases.values() for group, lease in parts)
    (group,) = groups.all()
    group.reported = tuple(group.leases.values())
    group.accepted(PeerId("auth"), 0.0)
    assert [lease.period for lease in group.leases.values()] == ["", "2024-10-05"]
    parts = groups.parts(identity, 0.0, NOON)
    assert [lease.period for _, lease in parts] == ["", "2024-10-04"]
    assert all(lease in group.leases.values() for _, lease in parts)


def test_a_changed_limit_is_taken_up() -> None:
    groups = Groups(10)
    for limit in (5, 7):
        ((_, lease),) = groups.parts(Identity("k", "ann", limits=KeyLimits(requests_per_minute=limit)), 0.0, NOON)
        assert lease.limit == limit
