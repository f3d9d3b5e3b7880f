"""After a loss, what is said again brings back every denial and every creation that was known."""

from histories import Said, denied, histories, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.contracts.feeds import Op, Remove, Rename
from covey.store.memory import MemoryStore
from covey.store.merge import EntryMeta
from covey.store.rows import AccountRow, KeyRow, MemberRow, NameRow, StandingRow
from covey.store.salvage import again
from covey.store.view import TABLES, View, is_row
from covey.store.writer import Overlay


def view_of(said: list[Said]) -> View:
    overlay = Overlay(MemoryStore())
    overlay.put(list(rows(said).items()))
    return View(overlay)


def missing(known: View, left: View) -> tuple[Op, ...]:
    return tuple(
        op for table in TABLES for row in known.all(table) for op in again(row, left, {"keys/a/1": 4, "x/b/1": 2})
    )


@settings(max_examples=300, deadline=None)
@given(data=st.data(), said=histories())
def test_what_was_denied_stays_denied(data: st.DataObject, said: list[Said]) -> None:
    lost = data.draw(st.sets(st.integers(0, max(len(said) - 1, 0))))
    left = [entry for place, entry in enumerate(said) if place not in lost]
    known = view_of(said)
    ops = missing(known, view_of(left))
    mended = [*left, (EntryMeta(99, "keys/z/1", 1, b"z" * 32), ops)]
    after = view_of(mended)
    assert denied(rows(mended)) >= denied(rows(said))
    for row in known.all(StandingRow):
        standing = after.get(StandingRow, row.owner) or StandingRow(owner=row.owner)
        assert (standing.epoch, standing.active, standing.limits) == (row.epoch, row.active, row.limits)
    for member in known.all(MemberRow):
        mended_member = after.get(MemberRow, member.peer) or MemberRow(peer=member.peer)
        assert mended_member.labels == member.labels
    for account in known.all(AccountRow):
        now = after.get(AccountRow, account.id)
        assert now is not None
        assert now.password_epoch == account.password_epoch
        assert (now.created is None, now.approved) == (account.created is None, account.approved)
    for key in known.all(KeyRow):
        now_key = after.get(KeyRow, key.id)
        assert now_key is not None
        assert (now_key.created is None) == (key.created is None)
    assert missing(known, after) == ()


def test_a_removal_is_cut_off_where_the_feeds_now_end() -> None:
    known = MemberRow(peer="a", removed=True)
    assert list(again(known, view_of([]), {"keys/a/1": 4, "keys/b/1": 2})) == [Remove("a", {"keys/a/1": 4}, "repair")]


def test_names_come_back_with_their_accounts() -> None:
    assert list(again(NameRow(name="ann", claims=((1, b"", "1"),)), view_of([]), {})) == []


def test_only_rows_under_their_own_key_are_believed() -> None:
    said: list[Said] = [(EntryMeta(1, "members/p/1", 1, b"h" * 32), (Rename("p", "n", "x"),))]
    ((key, value),) = rows(said).items()
    assert value is not None
    assert is_row(key, value)
    assert not is_row(key + b"q", value)
    assert not is_row(key, value[:-1])
    assert not is_row(b"v/keys/other/p", value)
