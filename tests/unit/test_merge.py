"""The view is a function of the set of entries: any order, any duplication, byte-identical rows.

Mutations that these tests catch: `max` of epochs without the denying tie (`_owner_standing`), last-writer-wins for
`revoked`, a name that goes to the latest claim, a field that its last *applied* writer keeps.
"""

from collections.abc import Iterator
from itertools import permutations

from histories import FIELDS, Said, denied, histories, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.contracts.auth import KeyLimits
from covey.contracts.feeds import (
    AccountApprove,
    AccountCreate,
    AccountRename,
    Admit,
    BudgetSpent,
    InvitationCreate,
    InvitationUse,
    KeyCreate,
    KeyRevoke,
    Label,
    Op,
    OwnerLimits,
    OwnerStanding,
    PasswordSet,
    Remove,
    Rename,
    ScopedKeyCreate,
    SessionEnd,
    SessionStart,
)
from covey.store.entries import KINDS
from covey.store.feeds import OP_KINDS
from covey.store.memory import MemoryStore
from covey.store.merge import _RULES, EntryMeta, apply, is_denial, touched
from covey.store.rows import (
    AccountRow,
    BudgetRow,
    InvitationRow,
    KeyRow,
    MemberRow,
    NameRow,
    StandingRow,
)
from covey.store.view import View, encode_row, key_of, row_key
from covey.store.writer import Overlay


def view(*ops: Op, clock: int = 1) -> View:
    overlay = Overlay(MemoryStore())
    meta = EntryMeta(clock, "keys/p/1", 1, b"h" * 32)
    for op in ops:
        overlay.put([(row_key(row), encode_row(row)) for row in apply(View(overlay), meta, op)])
    return View(overlay)


def test_every_operation_has_a_rule_and_is_drawn_here() -> None:
    assert set(_RULES) == set(OP_KINDS) == set(FIELDS)
    assert {OP_KINDS[op] for op in _RULES} == set(KINDS)


@settings(max_examples=400, deadline=None)
@given(data=st.data(), said=histories())
def test_any_order_and_any_duplication_gives_the_same_bytes(data: st.DataObject, said: list[Said]) -> None:
    expected = rows(said)
    shuffled = data.draw(st.permutations(said))
    again = data.draw(st.lists(st.sampled_from(said), max_size=5)) if said else []
    assert rows([*shuffled, *again]) == expected


@settings(max_examples=200, deadline=None)
@given(data=st.data(), said=histories())
def test_denials_never_come_undone(data: st.DataObject, said: list[Said]) -> None:
    """Whatever comes later in the order of arrival, and however its clock is skewed."""
    cut = data.draw(st.integers(0, len(said)))
    shuffled = data.draw(st.permutations(said))
    before, after = denied(rows(shuffled[:cut])), denied(rows(shuffled))
    assert before <= after


def test_a_denial_may_come_before_what_it_denies() -> None:
    create = KeyCreate("k", "o", b"d", "p", "l", (), KeyLimits(), 1, None, "o")
    row = view(KeyRevoke("k", "x"), create).get(KeyRow, "k")
    assert row == KeyRow(id="k", created=create, revoked=True)


def test_the_highest_epoch_wins_and_the_denial_on_a_tie() -> None:
    ops = (OwnerStanding("o", 2, True, "x"), OwnerStanding("o", 2, False, "x"), OwnerStanding("o", 1, True, "x"))
    for order in permutations(ops):
        assert view(*order).get(StandingRow, "o") == StandingRow(owner="o", epoch=2, active=False)
    assert view(*ops, OwnerStanding("o", 3, True, "x")).get(StandingRow, "o") == StandingRow(
        owner="o", epoch=3, active=True
    )


def said_at(clock: int, *ops: Op) -> Said:
    return EntryMeta(clock, "keys/p/1", clock, bytes([clock]) * 32), ops


def in_every_order(*said: Said) -> Iterator[View]:
    for order in permutations(said):
        overlay = Overlay(MemoryStore())
        overlay.put(list(rows(list(order)).items()))
        yield View(overlay)


def test_of_each_limit_the_last_writer_wins() -> None:
    """Mutation: write all limits of an operation at once, or without a stamp for each."""
    first = said_at(1, OwnerLimits("o", {"concurrency": 2, "tokens_per_day": 100}, "x"))
    second = said_at(2, OwnerLimits("o", {"concurrency": None, "requests_per_minute": 9}, "y"))
    stands = said_at(3, OwnerStanding("o", 1, True, "x"))
    for seen in in_every_order(first, second, stands):
        row = seen.get(StandingRow, "o")
        assert row is not None
        assert row.limits == KeyLimits(requests_per_minute=9, tokens_per_day=100)
        assert (row.epoch, row.active) == (1, True)


def test_limits_alone_let_nobody_in() -> None:
    row = view(OwnerLimits("o", {"concurrency": 2}, "x")).get(StandingRow, "o")
    assert row is not None
    assert (row.epoch, row.active) == (0, False)


def test_of_each_label_the_last_writer_wins() -> None:
    first = said_at(1, Label("p", {"gpu": True, "trusted": True}, "x"))
    second = said_at(2, Label("p", {"trusted": False, "attic": True}, "y"))
    admitted = said_at(3, Admit("p", ("inference",), "n", "x"))
    for seen in in_every_order(first, second, admitted):
        row = seen.get(MemberRow, "p")
        assert row is not None
        assert (row.labels, row.roles, row.name) == (("attic", "gpu"), ("inference",), "n")


def test_the_lowest_clock_keeps_a_name() -> None:
    def claim(account: str, clock: int, entry: bytes) -> Said:
        create = AccountCreate(account, "ann", "user", False, 1, "x")
        return EntryMeta(clock, f"secret/{account}/1", 1, entry), (create,)

    first, second, third = claim("1", 5, b"b"), claim("2", 5, b"a"), claim("3", 6, b"0")
    for order in permutations([first, second, third]):
        overlay = Overlay(MemoryStore())
        overlay.put(list(rows(list(order)).items()))
        assert View(overlay).get(NameRow, "ann") == NameRow(
            name="ann", claims=((5, b"a", "2"), (5, b"b", "1"), (6, b"0", "3"))
        )
        assert [row.name for row in View(overlay).all(AccountRow)] == ["ann"] * 3  # the losers keep their accounts


def test_of_an_account_s_own_claims_to_a_name_the_first_counts_and_the_last_name_is_the_one_it_has() -> None:
    first = (EntryMeta(1, "secret/p/1", 1, b"a"), (AccountCreate("1", "ann", "user", False, 1, "x"),))
    second = (EntryMeta(2, "secret/p/1", 2, b"b"), (AccountRename("1", "bob", "x"),))
    third = (EntryMeta(3, "secret/p/1", 3, b"c"), (AccountRename("1", "ann", "x"),))
    for order in permutations([first, second, third]):
        overlay = Overlay(MemoryStore())
        overlay.put(list(rows(list(order)).items()))
        row = View(overlay).get(NameRow, "ann")
        account = View(overlay).get(AccountRow, "1")
        assert row is not None
        assert account is not None
        assert row.claims == ((1, b"a", "1"),)
        assert account.name == "ann"


def test_what_an_operation_touches_is_what_it_changes() -> None:
    for op in example_ops():
        changed = {row_key(row) for row in apply(View(Overlay(MemoryStore())), EntryMeta(1, "f", 1, b""), op)}
        assert changed == {key_of(*row) for row in touched(op)}


def test_denials_are_what_takes_away() -> None:
    denials = {type(op) for op in example_ops() if is_denial(op)}
    assert denials == {Remove, KeyRevoke, PasswordSet, SessionEnd, InvitationUse, OwnerStanding}
    assert not is_denial(OwnerStanding("o", 2, True, "x"))


def example_ops() -> list[Op]:
    """One of each."""
    return [
        Admit("p", ("auth",), "n", "x"),
        Remove("p", {}, "x"),
        Rename("p", "n", "x"),
        Label("p", {"gpu": True}, "x"),
        KeyCreate("k", "o", b"d", "p", "l", (), KeyLimits(), 1, None, "o"),
        ScopedKeyCreate("k", "o", b"d", "p", "l", (), KeyLimits(concurrency=1), 1, None, "o", False, ("gpu",), ()),
        KeyRevoke("k", "x"),
        OwnerStanding("o", 1, False, "x"),
        OwnerLimits("o", {"concurrency": 1}, "x"),
        AccountCreate("1", "ann", "admin", True, 1, "x"),
        AccountRename("1", "bob", "x"),
        AccountApprove("1", "x"),
        PasswordSet("1", 1, "h", "x"),
        SessionStart(b"s", "1", 1, 1, 2),
        SessionEnd(b"s"),
        InvitationCreate("i", b"d", "user", "l", 1, 2, "x"),
        InvitationUse("i", "1"),
    ]


def test_an_older_rename_that_comes_late_changes_nothing() -> None:
    late = (EntryMeta(1, "members/p/1", 1, b""), (Rename("p", "old", "x"),))
    recent = (EntryMeta(2, "members/q/1", 1, b""), (Rename("p", "new", "x"),))
    for order in ([late, recent], [recent, late]):
        overlay = Overlay(MemoryStore())
        overlay.put(list(rows(order).items()))
        row = View(overlay).get(MemberRow, "p")
        assert row is not None
        assert row.name == "new"


def test_the_rows_tell_what_pages_need() -> None:
    create = AccountCreate("1", "ann", "admin", True, 1, "x")
    waiting = view(create).get(AccountRow, "1")
    assert waiting is not None
    assert (waiting.name, waiting.role, waiting.pending) == ("ann", "admin", True)
    approved = view(AccountApprove("1", "x"), create).get(AccountRow, "1")
    assert approved is not None
    assert not approved.pending
    unknown = AccountRow(id="2")
    assert (unknown.name, unknown.role, unknown.pending) == ("", "user", False)


def test_an_invitation_used_by_nobody_is_used_all_the_same() -> None:
    row = view(InvitationUse("i", "")).get(InvitationRow, "i")
    assert row is not None
    assert row.used_by


def test_the_view_reads_by_prefix_and_hashes_by_kind() -> None:
    seen = view(*(KeyRevoke(key, "x") for key in ("a1", "a2", "b1")))
    assert [row.id for row in seen.all(KeyRow, "a")] == ["a1", "a2"]
    assert [row.id for row in seen.all(KeyRow, start="a2", limit=1)] == ["a2"]
    assert seen.hash("keys") != seen.hash("members") == view().hash("members")


def test_a_budget_touches_its_own_row() -> None:
    op = BudgetSpent(id="key:k", period="2026-11-25", used={"n": 5})
    ((kind, key),) = touched(op)
    assert kind is BudgetRow
    assert view(op).get(BudgetRow, key)
