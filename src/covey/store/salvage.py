"""What to say again after a disk lost entries: the operations that bring a view up to what was known before. Pure."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from covey.contracts.feeds import (
    AccountApprove,
    AccountRename,
    Admit,
    BudgetSpent,
    InvitationUse,
    KeyRevoke,
    Label,
    Op,
    OwnerLimits,
    OwnerStanding,
    PasswordSet,
    Remove,
    SessionEnd,
)
from covey.contracts.limit_words import named
from covey.store.merge import Rows
from covey.store.rows import (
    NEVER,
    AccountRow,
    BudgetRow,
    InvitationRow,
    KeyRow,
    MemberRow,
    Row,
    SessionRow,
    StandingRow,
)

BY = "repair"
"""Who did it, in the audit."""


def again(known: Row, rows: Rows, heads: Mapping[str, int]) -> Iterator[Op]:
    """The operations that `known` shows to have happened and `rows` does not.

    Args:
        known: a row as it was before.
        rows: the view that the remaining entries add up to.
        heads: the last sequence numbers of all feeds: the cutoffs for a removal.
    """
    rule = _RULES.get(type(known))
    return iter(()) if rule is None else rule(known, rows, heads)


def _member(known: MemberRow, rows: Rows, heads: Mapping[str, int]) -> Iterator[Op]:
    row = rows.get(MemberRow, known.peer)
    if set(known.roles) - set(row.roles if row else ()):
        yield Admit(peer=known.peer, roles=known.roles, name=known.name, by=BY)
    before = row.marks if row else {}
    marks = {label: mark for label, mark in known.marks.items() if before.get(label, NEVER)[:3] < mark[:3]}
    if marks:
        yield Label(peer=known.peer, labels={label: mark[3] for label, mark in marks.items()}, by=BY)
    if known.removed and not (row and row.removed):
        cutoffs = {feed: seq for feed, seq in heads.items() if feed.split("/")[1] == known.peer}
        yield Remove(peer=known.peer, cutoffs=cutoffs, by=BY)


def _key(known: KeyRow, rows: Rows, heads: Mapping[str, int]) -> Iterator[Op]:
    row = rows.get(KeyRow, known.id) or KeyRow(id=known.id)
    if known.created and not row.created:
        yield known.created
    if known.revoked and not row.revoked:
        yield KeyRevoke(id=known.id, by=BY)


def _standing(known: StandingRow, rows: Rows, heads: Mapping[str, int]) -> Iterator[Op]:
    row = rows.get(StandingRow, known.owner) or StandingRow(owner=known.owner)
    if (row.epoch, not row.active) < (known.epoch, not known.active):
        yield OwnerStanding(owner=known.owner, epoch=known.epoch, active=known.active, by=BY)
    newer = [name for name, at in known.limits_at.items() if row.limits_at.get(name, NEVER) < at]
    if newer:
        limits = named(known.limits)
        for name in limits.keys() - set(newer):
            del limits[name]
        yield OwnerLimits(owner=known.owner, limits=limits, by=BY)


def _account(known: AccountRow, rows: Rows, heads: Mapping[str, int]) -> Iterator[Op]:
    row = rows.get(AccountRow, known.id) or AccountRow(id=known.id)
    if known.created and not row.created:
        yield known.created
    if known.renamed and not row.renamed:
        yield AccountRename(id=known.id, name=known.renamed, by=BY)
    if known.approved and not row.approved:
        yield AccountApprove(id=known.id, by=BY)
    if known.password_hash and (known.password_epoch > row.password_epoch or not row.password_hash):
        yield PasswordSet(id=known.id, epoch=known.password_epoch, hash=known.password_hash, by=BY)


def _session(known: SessionRow, rows: Rows, heads: Mapping[str, int]) -> Iterator[Op]:
    row = rows.get(SessionRow, known.id) or SessionRow(id=known.id)
    if known.started and not row.started:
        yield known.started
    if known.ended and not row.ended:
        yield SessionEnd(digest=bytes.fromhex(known.id))


def _invitation(known: InvitationRow, rows: Rows, heads: Mapping[str, int]) -> Iterator[Op]:
    row = rows.get(InvitationRow, known.id) or InvitationRow(id=known.id)
    if known.created and not row.created:
        yield known.created
    if known.used_by and not row.used_by:
        yield InvitationUse(id=known.id, account=known.used_by)


def _budget(known: BudgetRow, rows: Rows, heads: Mapping[str, int]) -> Iterator[Op]:
    row = rows.get(BudgetRow, known.id) or BudgetRow(id=known.id)
    if row.period < known.period or (row.period == known.period and known.used.items() - row.used.items()):
        yield BudgetSpent(id=known.id.rpartition("/")[0], period=known.period, used=known.used)


_RULES: dict[type[Any], Callable[[Any, Rows, Mapping[str, int]], Iterator[Op]]] = {
    MemberRow: _member,
    KeyRow: _key,
    StandingRow: _standing,
    AccountRow: _account,
    SessionRow: _session,
    InvitationRow: _invitation,
    BudgetRow: _budget,
}
