"""Clocks that were far ahead and are right again: every node ends up with the same view, and nothing is lost.

Mutations that these tests catch: entries of others, or of earlier feeds of the node itself, that go on counting; words
said in another one's stead after that one has said them again; denials that come undone with a postponed admission.
"""

import pytest
from replicating import ALICE, BOB, CAROL, KINDS, NOW, Node, key, network

from covey.contracts.feeds import Admit, KeyRevoke, OwnerLimits, Remove, Rename
from covey.store import feeds
from covey.store.ahead import counting_ahead
from covey.store.checking import check_reader
from covey.store.feed_log import GENESIS_KEY, read_verdict
from covey.store.rows import KeyRow, MemberRow, StandingRow
from covey.store.writer import Overlay

YEAR_SECONDS = 365 * 24 * 3600.0


def hear_all(nodes: list[Node]) -> None:
    for _ in range(3):
        for node in nodes:
            for other in nodes:
                if other is not node:
                    node.hear(other)


def agree(nodes: list[Node]) -> None:
    hear_all(nodes)
    for node in nodes:
        assert [node.view.hash(kind) for kind in KINDS] == [nodes[0].view.hash(kind) for kind in KINDS]
        assert check_reader(node.kv).problems == ()
        assert counting_ahead(node.kv, node.now, most=99) == []


def set_clocks(nodes: list[Node], now: float) -> None:
    for node in nodes:
        node.now = now
        node.keep_time()


def fast(*nodes: Node) -> None:
    for node in nodes:
        node.now = NOW + YEAR_SECONDS


def test_two_whose_clocks_were_ahead_together_agree_with_everybody_else() -> None:
    alice, bob, carol = nodes = network(ALICE, BOB, CAROL)
    fast(bob, carol)
    bob.say(key(), Rename(BOB.peer_id, "later", "x"), KeyRevoke("k0", "x"))
    bob.say(KeyRevoke("k1", "x"))
    carol.hear(bob)
    assert carol.view.get(KeyRow, "k") is not None
    set_clocks(nodes, NOW + 60)
    agree(nodes)
    assert alice.view.get(KeyRow, "k") is not None
    assert (alice.view.get(MemberRow, BOB.peer_id) or MemberRow(peer="")).name == "later"


@pytest.mark.parametrize("is_removed", [False, True])
def test_somebody_says_it_in_the_stead_of_an_author_who_will_not(is_removed: bool) -> None:
    alice, bob, carol = network(ALICE, BOB, CAROL)
    fast(bob, carol)
    bob.say(key())
    carol.hear(bob)
    alice.hear(bob)
    if is_removed:
        alice.say(Remove(BOB.peer_id, {bob.own("keys"): 1}, "x"))
    set_clocks([alice, carol], NOW + 60)
    agree([alice, carol])  # Bob is gone
    assert alice.view.get(KeyRow, "k") is not None


def test_what_its_author_said_again_is_not_said_after_it_once_more() -> None:
    alice, bob, carol = nodes = network(ALICE, BOB, CAROL)
    fast(bob, carol)
    bob.say(OwnerLimits("o", {"concurrency": 1}, "x"), OwnerLimits("o", {"tokens_per_day": 1}, "x"))
    carol.hear(bob)
    set_clocks([bob], NOW + 60)
    bob.now += 60
    bob.say(OwnerLimits("o", {"concurrency": 2}, "x"))
    carol.hear(bob)
    set_clocks([carol, alice], NOW + 600)
    agree(nodes)
    limits = (alice.view.get(StandingRow, "o") or StandingRow(owner="")).limits
    assert (limits.concurrency, limits.tokens_per_day) == (2, 1)


def test_a_clock_that_is_behind_the_founding_makes_nobody_else_s_word_wait() -> None:
    alice, bob = network(ALICE, BOB)
    alice.say(key())
    bob.hear(alice)
    bob.now = 0.0
    bob.keep_time()
    assert bob.view.get(KeyRow, "k") is not None
    assert read_verdict(bob.kv).may_write(BOB.peer_id)


def test_whoever_was_let_in_by_a_word_that_has_to_wait_is_not_out_again() -> None:
    (alice,) = network(ALICE)
    bob = Node(BOB, alice.kv.get(GENESIS_KEY) or b"")
    fast(alice, bob)
    alice.say(Admit(BOB.peer_id, ("auth",), "bob", "x"))
    bob.hear(alice)
    bob.say(key())
    own = bob.own("keys")
    bob.now = NOW + 60
    bob.keep_time()
    assert read_verdict(bob.kv).may_write(BOB.peer_id)
    assert bob.own("keys") != own  # its own words it has said again
    set_clocks([alice], NOW + 60)
    hear_all([alice, bob])
    set_clocks([bob], NOW + 60)  # now that the admission is said again, the old one can wait
    agree([alice, bob])
    assert alice.view.get(KeyRow, "k") is not None


def test_denials_of_one_whose_admission_has_to_wait_stay() -> None:
    alice, bob = network(ALICE, BOB)
    carol = Node(CAROL, alice.kv.get(GENESIS_KEY) or b"")
    fast(alice, bob, carol)
    alice.say(key(), Admit(CAROL.peer_id, ("auth",), "carol", "x"))
    carol.hear(alice)
    carol.say(KeyRevoke("k", "x"))
    bob.hear(carol)
    set_clocks([bob], NOW + 60)
    for node in (bob, alice):
        row = node.view.get(KeyRow, "k")
        assert row is not None
        assert row.revoked is (node is bob)
    set_clocks([alice, carol], NOW + 60)
    hear_all([alice, bob, carol])
    set_clocks([carol], NOW + 60)  # who has heard now that somebody lets her in who is right
    agree([alice, bob, carol])
    row = alice.view.get(KeyRow, "k")
    assert row is not None
    assert row.revoked


def test_what_does_not_count_is_not_said_again() -> None:
    alice, bob = network(ALICE, BOB)
    fast(bob)
    bob.say(key("counts"))
    cutoff = {bob.own("keys"): 1, bob.own("members"): 1}
    bob.say(key("void"))
    alice.hear(bob)
    alice.say(Remove(BOB.peer_id, cutoff, "x"))
    bob.hear(alice)
    assert [sealed.entry.seq for sealed in counting_ahead(bob.kv, NOW, most=99)] == [1]
    before = dict(bob.kv.scan(b""))
    set_clocks([bob], NOW + 60)
    assert dict(bob.kv.scan(b"")) == before  # removed: it writes no more


@pytest.mark.parametrize("is_own", [False, True])
def test_more_than_a_while_s_worth_is_left_as_it_is(is_own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "AHEAD_ENTRIES_MAX", 1)
    alice, bob = network(ALICE, BOB)
    fast(alice, bob)
    for name in ("k1", "k2"):
        (bob if is_own else alice).say(key(name))
    bob.hear(alice)
    bob.now = NOW + 60
    overlay = Overlay(bob.kv)
    bob.author.set_clock_right(overlay, bob.now)
    assert not overlay.changes


def test_one_clock_out_of_all_reason_keeps_nobody_from_following_the_others() -> None:
    """Whoever has seen a word writes after it, also where some other feed claims to be of next year."""
    alice, bob, carol = network(ALICE, BOB, CAROL)
    fast(carol)
    carol.say(Rename(CAROL.peer_id, "far", "x"))
    bob.now = NOW + 1800  # not far enough to be disbelieved
    bob.say(Rename(BOB.peer_id, "first", "x"))
    alice.hear(bob)
    alice.hear(carol)
    alice.say(Rename(BOB.peer_id, "second", "x"))
    assert (alice.view.get(MemberRow, BOB.peer_id) or MemberRow(peer="")).name == "second"
