"""Between stores: what is voided, said again, frozen, or waits for its time; without a network.

Mutations that these tests catch: `is_denial` that forgets an operation, `say_again` left out, a password that comes
back with its author's removal, a proof that is believed without its signatures.
"""

import pytest
from msgspec.structs import replace
from replicating import ALICE, BOB, CAROL, DAN, KINDS, NOW, Node, key, network

from covey.contracts.feeds import (
    AccountCreate,
    Admit,
    InvitationUse,
    KeyRevoke,
    Kind,
    Op,
    OwnerStanding,
    PasswordSet,
    Remove,
    Rename,
    SessionEnd,
)
from covey.errors import CallError
from covey.store.checking import check_reader
from covey.store.entries import SIGNATURE_BYTES, Entry, EntryError, FeedId, Head, seal, unseal
from covey.store.feed_log import (
    GENESIS_KEY,
    INCARNATION_KEY,
    VERDICT_KEY,
    Proof,
    derive_view,
    encode_head,
    head_key,
    is_future,
    keep_proof,
    proof_key,
    read_entries,
    read_head,
    read_heads,
    read_proofs,
    read_verdict,
    release,
)
from covey.store.feeds import AHEAD_ENTRIES_MAX, Author, upgraded_view
from covey.store.genesis import found, parse_recovery_key
from covey.store.hybrid_clock import farthest
from covey.store.identity import Identity
from covey.store.ingest import VOID_ENTRIES_MAX, batches_after, checked_proof, next_batch
from covey.store.quarantine import BYTES_MAX, Quarantine
from covey.store.reissue import reissued
from covey.store.rows import AccountRow, InvitationRow, KeyRow, MemberRow, SessionRow, StandingRow
from covey.store.sync import has_applied
from covey.store.tails import position
from covey.store.view import VIEW_KEY, View
from covey.store.writer import Overlay

DENIALS: list[tuple[Op, Op]] = [
    (key(), KeyRevoke("k", "x")),
    (OwnerStanding("o", 1, True, "x"), OwnerStanding("o", 2, False, "x")),
    (PasswordSet("a", 1, "old", "x"), PasswordSet("a", 2, "new", "x")),
    (AccountCreate("b", "bob", "user", False, 1, "x"), SessionEnd(b"s")),
    (AccountCreate("b", "bob", "user", False, 1, "x"), InvitationUse("i", "b")),
]


def stands(view: View, denial: Op) -> bool:
    match denial:
        case KeyRevoke(id=name):
            row = view.get(KeyRow, name)
            return row is not None and row.revoked
        case OwnerStanding(owner=owner):
            standing = view.get(StandingRow, owner)
            return standing is not None and not standing.active
        case PasswordSet(id=name, epoch=epoch):
            account = view.get(AccountRow, name)
            return account is not None and account.password_epoch >= epoch
        case SessionEnd(digest=digest):
            session = view.get(SessionRow, digest.hex())
            return session is not None and session.ended
        case InvitationUse(id=name):
            invitation = view.get(InvitationRow, name)
            return invitation is not None and bool(invitation.used_by)
        case _:
            raise AssertionError(denial)


@pytest.mark.parametrize(("before", "denial"), DENIALS)
def test_a_removed_author_s_denials_are_said_again_and_nothing_else(before: Op, denial: Op) -> None:
    alice, bob, carol = network(ALICE, BOB, CAROL)
    alice.say(before)
    for node in (bob, carol):
        node.hear(alice)
    cutoffs = {bob.own(kind): read_head(alice.kv, bob.own(kind)).seq for kind in KINDS}
    bob.say(denial, Rename(CAROL.peer_id, "by-bob", "x"))
    carol.hear(bob)
    assert stands(carol.view, denial)
    alice.say(Remove(BOB.peer_id, cutoffs, "x"))
    carol.hear(alice)
    assert stands(carol.view, denial)
    alice.hear(carol)
    for kind in KINDS:
        assert alice.view.hash(kind) == carol.view.hash(kind)
    assert stands(alice.view, denial)
    row = alice.view.get(MemberRow, CAROL.peer_id)
    assert row is not None
    assert row.name == "n2"
    assert check_reader(alice.kv).problems == ()
    assert check_reader(alice.kv).void == 2


def test_of_what_is_voided_the_denials_that_still_stand_are_not_said_again() -> None:
    alice, bob = network(ALICE, BOB)
    standing = OwnerStanding("o", 2, False, "x")
    alice.say(KeyRevoke("k", "x"), standing, SessionEnd(b"s"), InvitationUse("i", "b"), PasswordSet("a", 2, "h", "x"))
    voided: list[Op] = [
        KeyRevoke("k", "y"),
        standing,
        SessionEnd(b"s"),
        InvitationUse("i", "b"),
        PasswordSet("a", 1, "h", "y"),
        Rename(BOB.peer_id, "no denial", "y"),
        PasswordSet("b", 3, "h", "y"),
        PasswordSet("b", 2, "h", "y"),
    ]
    assert reissued(voided, alice.view) == [PasswordSet("b", 3, "", "y")]
    assert bob.view.get(KeyRow, "k") is None


def test_a_denial_stands_again_where_the_enabling_after_it_is_voided_too() -> None:
    alice, bob, carol = network(ALICE, BOB, CAROL)
    alice.say(OwnerStanding("o", 1, True, "x"))
    bob.hear(alice)
    bob.say(OwnerStanding("o", 2, False, "x"))
    carol.hear(alice)
    carol.hear(bob)
    carol.say(OwnerStanding("o", 3, True, "x"))
    alice.hear(bob)
    alice.hear(carol)
    alice.say(Remove(BOB.peer_id, {}, "x"))
    assert alice.view.get(StandingRow, "o") == StandingRow(owner="o", epoch=3, active=True)
    alice.say(Remove(CAROL.peer_id, {}, "x"))
    assert alice.view.get(StandingRow, "o") == StandingRow(owner="o", epoch=2, active=False)


def test_an_entry_that_waits_and_is_lost_is_waited_for_no_more() -> None:
    """Its disk was repaired meanwhile."""
    alice, bob = network(ALICE, BOB)
    bob.now += 7200
    bob.say(key())
    alice.hear(bob)
    alice.kv.write([(name, None) for name, _ in alice.kv.scan(b"e/keys/")])
    overlay = Overlay(alice.kv)
    assert release(overlay, farthest(bob.now)) == []
    assert [value for name, value in overlay.changes.items() if name.startswith(b"f/")] == [None]


def test_what_is_no_feed_s_name_is_nobody_s_entry() -> None:
    alice, _ = network(ALICE, BOB)
    rows = {name: value for name, value in derive_view(alice.kv).changes.items() if name.startswith(b"v/")}
    ends = {feed: head.seq for feed, head in read_heads(alice.kv).items()}
    assert {
        name: value
        for name, value in derive_view(alice.kv, {**ends, "keys/nonsense": 3}).changes.items()
        if name.startswith(b"v/")
    } == rows


def test_a_voided_password_lets_nobody_in_neither_the_old_nor_the_new() -> None:
    alice, bob, carol = network(ALICE, BOB, CAROL)
    alice.say(PasswordSet("a", 1, "old", "x"))
    for node in (bob, carol):
        node.hear(alice)
    bob.say(PasswordSet("a", 2, "thief's", "x"))
    bob.say(PasswordSet("a", 3, "thief's", "x"))
    carol.hear(bob)
    alice.say(Remove(BOB.peer_id, {}, "x"))
    carol.hear(alice)
    row = carol.view.get(AccountRow, "a")
    assert row is not None
    assert (row.password_epoch, row.password_hash) == (3, "")


def test_a_remover_says_again_itself_what_it_undoes() -> None:
    alice, bob = network(ALICE, BOB)
    alice.say(key())
    bob.hear(alice)
    cutoff = read_head(alice.kv, bob.own("keys")).seq
    bob.say(KeyRevoke("k", "x"))
    alice.hear(bob)
    alice.say(Remove(BOB.peer_id, {bob.own("keys"): cutoff}, "x"))
    row = alice.view.get(KeyRow, "k")
    assert row is not None
    assert row.revoked
    bob.hear(alice)
    with pytest.raises(CallError) as refusal:
        bob.say(key("k2"))
    assert refusal.value.code == "forbidden"


def test_two_that_remove_each_other_until_the_recovery_key_speaks() -> None:
    genesis, text = found(ALICE.peer_id, NOW)
    alice, bob, carol = (Node(one, genesis) for one in (ALICE, BOB, CAROL))
    alice.say(*(Admit(one.peer_id, ("auth",), "n", "x") for one in (ALICE, BOB, CAROL)))
    for node in (bob, carol):
        node.hear(alice)
    alice.say(Remove(BOB.peer_id, {}, "x"))
    bob.say(Remove(ALICE.peer_id, {alice.own("members"): 1}, "x"))
    carol.hear(alice)
    carol.hear(bob)
    assert set(read_verdict(carol.kv).removed) == {ALICE.peer_id, BOB.peer_id}
    recovery = Author(Identity(bytes(parse_recovery_key(text))), genesis, "e" * 16)
    changes, _ = recovery.plan(carol.kv, lambda _: [Remove(BOB.peer_id, {}, "recovery")], NOW)
    carol.kv.write(changes)
    assert read_verdict(carol.kv).removed == (BOB.peer_id,)
    alice.hear(carol)
    alice.say(Rename(CAROL.peer_id, "back", "x"))  # it may write again
    carol.hear(alice)
    assert alice.view.hash("members") == carol.view.hash("members")
    # Of anything but members it may not speak.
    entry = recovery.plan(carol.kv, lambda _: [KeyRevoke("k", "x")], NOW)[0]
    stored = next(value for name, value in entry if name.startswith(b"e/keys/") and value)
    taken = alice.take([unseal(stored)])
    assert [error.reason for error in taken.refused] == ["wrong_kind"]


@pytest.mark.parametrize(("before", "denial"), DENIALS)
def test_what_is_voided_while_a_node_is_removed_is_denied_again_once_it_is_back(before: Op, denial: Op) -> None:
    """Bob alone heard Carol deny it. It is voided while he may not write; then Dan's word against him comes undone."""
    alice, bob, carol, dan = network(ALICE, BOB, CAROL, DAN)
    alice.say(before)
    for node in (bob, carol, dan):
        node.hear(alice)
    cutoff = {feed: head.seq for feed, head in read_heads(dan.kv).items()}
    carol.say(denial)
    bob.hear(carol)
    dan.say(Remove(BOB.peer_id, cutoff, "x"))
    bob.hear(dan)
    alice.say(Remove(CAROL.peer_id, cutoff, "x"))
    bob.hear(alice)
    assert not read_verdict(bob.kv).may_write(BOB.peer_id)
    assert not stands(bob.view, denial)
    alice.say(Remove(DAN.peer_id, cutoff, "x"))
    bob.hear(alice)
    assert read_verdict(bob.kv).may_write(BOB.peer_id)
    assert stands(bob.view, denial)
    assert not list(bob.kv.scan(b"l/denied/"))
    alice.hear(bob)
    assert stands(alice.view, denial)


def test_a_node_that_has_no_feeds_yet_keeps_what_was_denied() -> None:
    """It was just made an auth node, and the role has not begun."""
    alice, bob, carol = network(ALICE, BOB, CAROL)
    alice.say(key())
    carol.hear(alice)
    carol.say(KeyRevoke("k", "x"))
    bob.hear(carol)
    bob.kv.write([(INCARNATION_KEY, None)])
    alice.say(Remove(CAROL.peer_id, {}, "x"))
    assert not bob.hear(alice).refused
    assert [key for key, _ in bob.kv.scan(b"l/denied/")] == [b"l/denied/key/k"]


def twin(node: Node, kind: Kind, *ops: Op) -> bytes:
    """Another entry for the last place of a node's feed."""
    feed = node.own(kind)
    head = read_head(node.kv, feed)
    before = next(read_entries(node.kv, feed, after=head.seq - 2), None) if head.seq > 1 else None
    entry = Entry(
        net=node.author.net,
        feed=feed,
        seq=head.seq,
        prev_hash=before.hash if before else bytes(32),
        clock=head.clock + 7,
        deps={},
        ops=ops,
    )
    return seal(node.identity, entry).stored


def forge_place(node: Node, seq: int) -> bytes:
    """A well-signed entry for some other place of its keys feed."""
    feed = node.own("keys")
    entry = Entry(net=node.author.net, feed=feed, seq=seq, prev_hash=b"h" * 32, clock=9, deps={}, ops=(key(),))
    return seal(node.identity, entry).stored


def test_two_entries_for_one_place_freeze_the_feed_and_the_proof_convinces_others() -> None:
    alice, bob, carol = network(ALICE, BOB, CAROL)
    bob.say(key("first"))
    bob.say(key("second"), KeyRevoke("first", "x"))
    alice.hear(bob)
    carol.take([unseal(stored) for stored in next(iter(batches_after(bob.kv, "keys", {})))[:1]])
    other = twin(bob, "keys", key("other"))
    taken = carol.take([unseal(other)])
    assert taken.applied == 1
    frozen = alice.take([unseal(other)])
    assert frozen.frozen == [bob.own("keys")]
    assert read_verdict(alice.kv).frozen == {bob.own("keys"): 1}
    row = alice.view.get(KeyRow, "first")
    assert row is not None
    assert row.revoked  # said again
    assert alice.view.get(KeyRow, "second") is None
    (proof,) = read_proofs(alice.kv).values()
    pair = checked_proof((proof.first, proof.second))
    assert pair is not None
    overlay = Overlay(carol.kv)
    assert keep_proof(overlay, *pair) == []
    carol.write(overlay)
    carol.hear(alice)
    assert carol.view.hash("keys") == alice.view.hash("keys")
    assert check_reader(carol.kv).proofs == 1
    assert keep_proof(Overlay(carol.kv), *pair) is None  # known
    # Nothing more is taken of it, nor sent; its author goes on in new feeds.
    assert position(carol.kv, "keys").vector[bob.own("keys")] == 1
    assert next_batch(carol.kv, "keys", {**position(carol.kv, "keys").vector}) is None
    bob.hear(alice)
    bob.take([unseal(other)])
    old = bob.own("keys")
    bob.say(key("third"))
    assert bob.own("keys") != old
    alice.hear(bob)
    assert alice.view.get(KeyRow, "third") is not None
    assert has_applied(alice.kv, {old: 2})
    assert alice.take([unseal(other)]).refused == []  # known, and proven
    after = forge_place(bob, seq=3)
    entry = unseal(after)
    entry = unseal(seal(BOB, replace(entry.entry, feed=old, seq=3)).stored)
    overlay = Overlay(alice.kv)
    overlay.put([(head_key(old), encode_head(Head(2, b"h" * 32, 1, {})))])
    alice.write(overlay)
    assert [error.reason for error in alice.take([entry]).refused] == ["equivocation"]


def test_of_two_proofs_the_one_of_the_earlier_place_counts_whichever_comes_first() -> None:
    """A copied key goes on in two ways; nobody has to have seen where they part."""
    alice, bob, carol = network(ALICE, BOB, CAROL)
    copy = Node(BOB, alice.kv.get(GENESIS_KEY) or b"")
    copy.kv.write(list(bob.kv.scan(b"")))
    for number in range(3):
        bob.say(key(f"mine{number}"))
        copy.now += 1
        copy.say(key(f"theirs{number}"))
    feed = bob.own("keys")
    pairs = [
        (next(read_entries(bob.kv, feed, after=seq - 1)), next(read_entries(copy.kv, feed, after=seq - 1)))
        for seq in (1, 2, 3)
    ]
    for node, order in ((alice, pairs), (carol, pairs[::-1])):
        node.hear(bob)
        for pair in order:
            overlay = Overlay(node.kv)
            keep_proof(overlay, *pair)
            node.write(overlay)
        assert read_verdict(node.kv).frozen == {feed: 0}
    assert alice.view.hash("keys") == carol.view.hash("keys")


def test_what_does_not_prove_it_is_no_proof() -> None:
    _, bob, _ = network(ALICE, BOB, CAROL)
    bob.say(key("first"))
    mine = next(read_entries(bob.kv, bob.own("keys"))).stored
    other = twin(bob, "keys", key("other"))
    forged = bytes(SIGNATURE_BYTES) + other[SIGNATURE_BYTES:]
    assert checked_proof((mine, other)) is not None
    elsewhere = forge_place(bob, seq=2)
    for pair in ((mine, mine), (mine, forged), (b"", other), (mine, elsewhere)):
        assert checked_proof(pair) is None
    overlay = Overlay(bob.kv)
    overlay.put([(proof_key(bob.own("keys")), encode_head(Proof(1, mine, forged)))])
    (problem,) = [one for one in check_reader(overlay).problems if "does not prove it" in one]
    assert bob.own("keys") in problem


def test_a_clock_far_ahead_delays_what_is_given_and_not_what_is_taken() -> None:
    alice, bob = network(ALICE, BOB)
    alice.say(key("old"))
    bob.hear(alice)
    bob.now += 7200
    bob.say(key("new"), KeyRevoke("old", "x"))
    taken = alice.hear(bob)
    assert taken.ahead == {BOB.peer_id}
    row = alice.view.get(KeyRow, "old")
    assert row is not None
    assert row.revoked
    assert alice.view.get(KeyRow, "new") is None
    assert check_reader(alice.kv).ahead == 1
    assert check_reader(alice.kv).problems == ()
    overlay = Overlay(alice.kv)
    assert release(overlay, farthest(alice.now)) == []
    assert not overlay.changes
    assert release(overlay, farthest(alice.now + 7200)) == []
    alice.write(overlay)
    assert alice.view.get(KeyRow, "new") is not None
    assert alice.view.hash("keys") == bob.view.hash("keys")


def test_an_admission_from_the_future_lets_nobody_write_before_its_time() -> None:
    alice, bob = network(ALICE, BOB)
    bob.now += 7200
    bob.say(Admit(CAROL.peer_id, ("auth",), "carol", "x"))
    carol = Node(CAROL, alice.kv.get(GENESIS_KEY) or b"", 7200)
    carol.hear(bob)
    carol.say(KeyRevoke("k", "x"))
    alice.hear(bob)
    early = alice.take([unseal(stored) for batch in batches_after(carol.kv, "keys", {}) for stored in batch]).early
    assert [sealed.feed.author for sealed in early] == [CAROL.peer_id]
    overlay = Overlay(alice.kv)
    release(overlay, farthest(alice.now + 7200))
    alice.write(overlay)
    assert alice.take(list(early)).applied == 1


def test_a_node_whose_clock_was_wrong_says_again_what_it_said_then() -> None:
    alice, bob = network(ALICE, BOB)
    bob.now += 365 * 24 * 3600
    bob.say(key("k1"), Rename(BOB.peer_id, "later", "x"))
    bob.say(Admit(CAROL.peer_id, ("auth",), "carol", "x"))
    alice.hear(bob)
    assert alice.view.get(KeyRow, "k1") is None
    old = bob.own("keys")
    bob.now = NOW + 60
    overlay = Overlay(bob.kv)
    bob.author.set_clock_right(overlay, bob.now)
    bob.write(overlay)
    assert bob.own("keys") != old
    assert bob.view.get(KeyRow, "k1") is not None
    assert is_future(bob.kv, next(read_entries(bob.kv, old)))
    alice.hear(bob)
    for kind in KINDS:
        assert alice.view.hash(kind) == bob.view.hash(kind)
    assert alice.view.get(KeyRow, "k1") is not None
    assert CAROL.peer_id in read_verdict(alice.kv).authors
    for node in (alice, bob):
        assert check_reader(node.kv).problems == ()
    again = Overlay(bob.kv)
    bob.author.set_clock_right(again, bob.now)
    assert not again.changes
    assert AHEAD_ENTRIES_MAX > 0


def test_rows_of_an_older_version_are_no_damage_and_made_anew() -> None:
    """As `covey store check` sees a folder that the new version has not started on yet."""
    alice, _ = network(ALICE, BOB)
    alice.say(key())
    rows = [name for name, _ in alice.kv.scan(b"v/")]
    alice.kv.write([(VIEW_KEY, b"2"), *((name, None) for name in rows[1:]), (VERDICT_KEY, None)])
    assert check_reader(alice.kv).problems == ()
    alice.kv.write(upgraded_view(alice.kv))
    assert [name for name, _ in alice.kv.scan(b"v/")] == rows
    assert check_reader(alice.kv).problems == ()
    assert upgraded_view(alice.kv) == []


def test_a_removed_author_fills_no_disk() -> None:
    alice, bob = network(ALICE, BOB)
    alice.say(Remove(BOB.peer_id, {}, "x"))
    feed = str(FeedId("keys", BOB.peer_id, "9" * 16))
    entry = Entry(
        net=bob.author.net, feed=feed, seq=VOID_ENTRIES_MAX + 1, prev_hash=b"h" * 32, clock=1, deps={}, ops=(key(),)
    )
    overlay = Overlay(alice.kv)
    overlay.put([(head_key(feed), encode_head(Head(VOID_ENTRIES_MAX, b"h" * 32, 0, {})))])
    alice.write(overlay)
    (error,) = alice.take([seal(BOB, entry)]).refused
    assert error.reason == "removed"
    assert has_applied(alice.kv, {feed: VOID_ENTRIES_MAX + 9})  # as far as it ever will
    assert not has_applied(alice.kv, {alice.own("keys"): 9})


def test_what_waited_has_its_turn_whatever_comes_with_it() -> None:
    """A node hears the third entry of a feed while the first two wait for what they build on."""
    alice, bob, carol = network(ALICE, BOB, CAROL)
    carol.say(Rename(BOB.peer_id, "bob", "x"))
    bob.hear(carol)
    for number in range(3):
        bob.say(key(f"k{number}"))
    entries = [unseal(stored) for batch in batches_after(bob.kv, "keys", {}) for stored in batch]
    early = alice.take(list(entries[:2])).early
    assert len(early) == 2
    missing = [unseal(stored) for batch in batches_after(carol.kv, "members", {}) for stored in batch]
    alice.take(list(missing))
    taken = alice.take([entries[2], *early])
    assert (taken.applied, taken.early) == (3, [])


def test_an_error_among_entries_is_refused_in_its_place() -> None:
    alice, bob = network(ALICE, BOB)
    bob.say(key())
    good = [unseal(stored) for batch in batches_after(bob.kv, "keys", {}) for stored in batch]
    taken = alice.take([EntryError("malformed", "no entry"), *good])
    assert (taken.applied, len(taken.refused)) == (1, 1)


def test_the_quarantine_is_bounded_and_forgets_the_latest() -> None:
    _, bob = network(ALICE, BOB)
    for number in range(4):
        bob.say(key(f"k{number}"))
    entries = [unseal(stored) for batch in batches_after(bob.kv, "keys", {}) for stored in batch]
    waiting = Quarantine()
    waiting.put("keys", [*entries[2:], *entries[:2], *entries])
    assert len(waiting) == 4
    assert [sealed.entry.seq for sealed in waiting.take("keys")] == [1, 2, 3, 4]
    assert (len(waiting), waiting.forgotten) == (0, 0)
    waiting._bytes = BYTES_MAX
    waiting.put("keys", entries)
    assert (len(waiting), waiting.forgotten) == (0, 4)
