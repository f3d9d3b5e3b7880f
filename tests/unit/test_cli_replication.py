"""What `covey status` says of the feeds to somebody who is tired."""

from typing import Any

import pytest

from covey.cli.replication import agreement, copy, lines
from covey.contracts.feeds import Kind
from covey.contracts.replication import FeedStatus, KindStatus, LeaseStatus, Replications, ReplicationStatus

KINDS: tuple[Kind, ...] = ("members", "keys", "secret")


def node(name: str = "alice", roles: tuple[str, ...] = ("auth",), seed: str = "a", **more: Any) -> ReplicationStatus:
    kinds = tuple(KindStatus(kind, seed * 64, (), ()) for kind in KINDS if "auth" in roles or kind != "secret")
    fields = {"lease": LeaseStatus(needed=True, seconds_left=120.0), **more}
    return ReplicationStatus(name, f"peer of {name}", roles, kinds, **fields)


def test_a_node_without_a_network_or_all_alone_says_nothing() -> None:
    assert lines(Replications((node(roles=()),))) == []
    assert lines(Replications((node(lease=LeaseStatus(needed=True)),))) == []


def test_all_is_well() -> None:
    gina = node("gina", ("gateway",))
    shown = dict(lines(Replications((gina, node("alice"), node("bob")))))
    assert shown["auth nodes"] == "agree (alice, bob): members aaaaaaaa, keys aaaaaaaa, secret aaaaaaaa"
    assert shown["lease"] == "2 min left"
    assert shown["copy"] == "the same: members aaaaaaaa, keys aaaaaaaa"
    assert "trouble" not in shown


@pytest.mark.parametrize("other", [node("bob", seed="b"), node("bob", behind_entries=7, lag_seconds=40.0)])
def test_auth_nodes_that_differ_are_each_shown(other: ReplicationStatus) -> None:
    """Mutation: compare the first kind alone, or leave `behind_entries` out."""
    first, alice, bob = agreement([node("alice"), other], ["carol"]).splitlines()
    assert first == "DIFFER; NO ANSWER from carol"
    assert alice.startswith("alice: members aaaaaaaa")
    assert bob.startswith("bob: members ")
    assert ("7 entries behind for 40 s" in bob) == bool(other.behind_entries)


def test_one_kind_that_differs_is_enough() -> None:
    other = node("bob")
    secret = KindStatus("secret", "c" * 64, (), ())
    assert "DIFFER" in agreement(
        [node(), ReplicationStatus("bob", "b", ("auth",), (*other.kinds[:2], secret), other.lease)], ()
    )


def test_one_auth_node_needs_nobody_to_agree_with() -> None:
    assert agreement([node("alice")], ()) == "alice: members aaaaaaaa, keys aaaaaaaa, secret aaaaaaaa"
    assert agreement([node("alice")], ["bob"]).endswith("; NO ANSWER from bob")
    assert agreement([], ["alice", "bob"]) == "none answers; NO ANSWER from alice, bob"
    assert agreement([], []) == "none"


def test_a_copy_that_differs() -> None:
    gina = node("gina", ("gateway",), "b")
    assert copy(gina, [node()]) == "DIFFERS: members bbbbbbbb, keys bbbbbbbb"
    late = node("gina", ("gateway",), behind_entries=1, lag_seconds=3.0)
    assert copy(late, [node()]).startswith("DIFFERS")


def test_without_a_lease_it_says_why() -> None:
    gina = node(
        "gina", ("gateway",), lease=LeaseStatus(needed=True, seconds_left=0.0, why="No auth node. Bring one back.")
    )
    assert dict(lines(Replications((gina,), ("alice",))))["lease"] == "NONE: No auth node. Bring one back."
    ida = node("ida", ("inference",), lease=LeaseStatus(needed=False))
    assert "lease" not in dict(lines(Replications((ida, node()))))
    alone = node(lease=LeaseStatus(needed=True))
    assert dict(lines(Replications((alone,), ("bob",))))["lease"] == "needs nobody"


def test_trouble_is_told_even_by_a_node_alone() -> None:
    frozen = KindStatus("keys", "a" * 64, (FeedStatus("keys/b/1", "bob", 3, frozen=True),), ())
    own = ReplicationStatus(
        "alice", "a", ("auth",), (frozen,), LeaseStatus(needed=True), quarantined_entries=2,
        refused_entries={"bad_signature": 1}, blocked={"keys/b/1": "Upgrade Covey."}, ahead=("carol",),
    )  # fmt: skip
    trouble = dict(lines(Replications((own,))))["trouble"].splitlines()
    assert trouble[0] == "Upgrade Covey."
    assert [one.split()[0] for one in trouble[1:]] == ["bob's", "the", "1", "2"]
