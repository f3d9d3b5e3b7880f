"""Who may call, who may serve and whose entries count: the rules alone."""

import pytest

from covey.bus.caller import EVERY_PARTY, check, may_serve, permits
from covey.errors import CallError
from covey.store.entries import FeedId
from covey.store.membership import DEPENDS_ON, READERS, counts, is_member, may_author
from covey.store.rows import MemberRow

INFERENCE = frozenset({"inference", "member"})
FEED = FeedId("keys", "peer", "0" * 16)


def member(*roles: str, removed: bool = False, **cutoffs: int) -> MemberRow:
    return MemberRow(peer="peer", roles=roles, removed=removed, cutoffs={str(FEED): at for at in cutoffs.values()})


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


def test_only_auth_nodes_write_and_a_founder_until_its_row_is_there() -> None:
    assert may_author("peer", None, "peer")
    assert not may_author("peer", None, "other")
    assert may_author("peer", member("auth"), "other")
    assert not may_author("peer", member("web"), "peer")
    assert not may_author("peer", member("auth", removed=True), "peer")


def test_a_removed_author_s_entries_count_up_to_the_cutoff() -> None:
    row = member("auth", removed=True, here=3)
    assert [counts(FEED, seq, row, "other") for seq in (1, 3, 4)] == [True, True, False]
    assert not counts(FEED, 1, member("auth", removed=True), "other")
    assert not counts(FEED, 1, member("web", removed=True, here=3), "other")
    assert counts(FEED, 9, member("auth"), "other")


def test_whoever_reads_a_kind_reads_what_it_depends_on() -> None:
    for kind, others in DEPENDS_ON.items():
        for other in others:
            assert READERS[kind] <= READERS[other] or "member" in READERS[other]
