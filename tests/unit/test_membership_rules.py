"""Who may call, who may serve and who is a member: the rules alone."""

import pytest

from covey.bus.caller import EVERY_PARTY, check, may_serve, permits
from covey.errors import CallError
from covey.store.membership import DEPENDS_ON, READERS, is_member
from covey.store.rows import MemberRow

INFERENCE = frozenset({"inference", "member"})


def member(*roles: str, removed: bool = False) -> MemberRow:
    return MemberRow(peer="peer", roles=roles, removed=removed)


@pytest.mark.parametrize(
    ("stamp", "granted", "access", "allowed"),
    [
        ("gateway", {"gateway", "member"}, {"gateway"}, True),
        ("gateway", INFERENCE, {"gateway"}, False),  # says what it was not admitted as
        ("inference", INFERENCE, {"gateway"}, False),
        ("inference", INFERENCE, {"member"}, True),
        ("member", INFERENCE, {"member"}, True),
        ("operator", EVERY_PARTY, {"member"}, False),  # an operator is named
        ("operator", {"operator"}, {"operator"}, True),
        ("web", set(), {"web"}, False),
    ],
)
def test_access_needs_the_stamp_the_grant_and_the_contract(
    stamp: str, granted: set[str], access: set[str], *, allowed: bool
) -> None:
    assert permits(stamp, granted, frozenset(access)) is allowed
    if allowed:
        check("some.method", stamp, granted, frozenset(access))
    else:
        with pytest.raises(CallError, match="may not call") as refused:
            check("some.method", stamp, granted, frozenset(access))
        assert refused.value.code == "denied"


def test_a_role_s_methods_are_believed_of_that_role_alone() -> None:
    assert may_serve("inference.chat", INFERENCE)
    assert not may_serve("auth.verify", INFERENCE)
    assert may_serve("cluster.node_status", INFERENCE)
    assert not may_serve("cluster.node_status", frozenset({"operator"}))


def test_membership_begins_with_a_role_and_ends_with_a_removal() -> None:
    assert not is_member(None)
    assert not is_member(member())
    assert is_member(member("web"))
    assert not is_member(member("web", removed=True))


def test_whoever_reads_a_kind_reads_what_it_depends_on() -> None:
    for kind, others in DEPENDS_ON.items():
        for other in others:
            assert READERS[kind] <= READERS[other] or "member" in READERS[other]
