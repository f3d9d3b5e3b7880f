"""What one operation changes in the merged view. Pure.

The view is a function of the *set* of entries: applied in any order, any number of times, they give byte-identical
rows. So every rule here is a join, one of:

- a denial only grows: revoked, ended, used, removed;
- the highest epoch wins, and on a tie the denying one;
- a name belongs to the lowest (clock, entry hash) that claims it;
- any other field belongs to its last writer by (clock, feed, seq);
- of two creations with one id, which no honest author makes, the one with the lesser bytes counts.

Skewed clocks can move names and other fields, and never a denial.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from covey.contracts.feeds import (
    AccountApprove,
    AccountCreate,
    Admit,
    InvitationCreate,
    InvitationUse,
    KeyCreate,
    KeyRevoke,
    Op,
    OwnerStanding,
    PasswordSet,
    Remove,
    Rename,
    SessionEnd,
    SessionStart,
)
from covey.store.rows import (
    AccountRow,
    InvitationRow,
    KeyRow,
    MemberRow,
    NameRow,
    Row,
    SessionRow,
    Stamp,
    StandingRow,
)

R = TypeVar("R", bound=msgspec.Struct)

SOMEBODY = "?"
"""Who used an invitation, where the use does not say."""


class Rows(Protocol):
    """What the rows are before the operation; `covey.store.view.View` is one."""

    def get(self, row: type[R], key: str) -> R | None:
        """The row of that type under its key."""
        ...


@dataclass(frozen=True, slots=True)
class EntryMeta:
    """Where an operation was said. `hash`: of its entry, 32 bytes."""

    clock: int
    feed: str
    seq: int
    hash: bytes

    @property
    def stamp(self) -> Stamp:
        """What the last writer is judged by."""
        return (self.clock, self.feed, self.seq)


def apply(rows: Rows, meta: EntryMeta, op: Op) -> tuple[Row, ...]:
    """The rows that the operation changes, as they are after it; those that it leaves alone are not among them."""
    return _RULES[type(op)](rows, meta, op)


def _admit(rows: Rows, meta: EntryMeta, op: Admit) -> tuple[Row, ...]:
    old = rows.get(MemberRow, op.peer)
    row = old or MemberRow(peer=op.peer)
    if meta.stamp >= row.roles_at:
        row = replace(row, roles=op.roles, roles_at=meta.stamp)
    if meta.stamp >= row.name_at:
        row = replace(row, name=op.name, name_at=meta.stamp)
    return _changed(old, row)


def _remove(rows: Rows, meta: EntryMeta, op: Remove) -> tuple[Row, ...]:
    old = rows.get(MemberRow, op.peer)
    row = old or MemberRow(peer=op.peer)
    cutoffs = op.cutoffs
    if row.removed:  # by two authors: what either cuts off is cut off
        cutoffs = {feed: min(row.cutoffs[feed], cutoffs[feed]) for feed in row.cutoffs.keys() & cutoffs.keys()}
    return _changed(old, replace(row, removed=True, cutoffs=cutoffs))


def _rename(rows: Rows, meta: EntryMeta, op: Rename) -> tuple[Row, ...]:
    old = rows.get(MemberRow, op.peer)
    row = old or MemberRow(peer=op.peer)
    if meta.stamp >= row.name_at:
        row = replace(row, name=op.name, name_at=meta.stamp)
    return _changed(old, row)


def _key_create(rows: Rows, meta: EntryMeta, op: KeyCreate) -> tuple[Row, ...]:
    old = rows.get(KeyRow, op.id)
    row = old or KeyRow(id=op.id)
    return _changed(old, replace(row, created=_lesser(row.created, op)))


def _key_revoke(rows: Rows, meta: EntryMeta, op: KeyRevoke) -> tuple[Row, ...]:
    old = rows.get(KeyRow, op.id)
    return _changed(old, replace(old or KeyRow(id=op.id), revoked=True))


def _owner_standing(rows: Rows, meta: EntryMeta, op: OwnerStanding) -> tuple[Row, ...]:
    old = rows.get(StandingRow, op.owner)
    new = StandingRow(owner=op.owner, epoch=op.epoch, active=op.active)
    if old is None or op.epoch > old.epoch:
        return _changed(old, new)
    if op.epoch == old.epoch and not op.active:
        return _changed(old, replace(old, active=False))
    return ()


def _account_create(rows: Rows, meta: EntryMeta, op: AccountCreate) -> tuple[Row, ...]:
    old = rows.get(AccountRow, op.id)
    row = old or AccountRow(id=op.id)
    account = _changed(old, replace(row, created=_lesser(row.created, op)))
    holder = rows.get(NameRow, op.name)
    claim = NameRow(name=op.name, account=op.id, clock=meta.clock, entry=meta.hash)
    if holder is not None and _claim_rank(holder) <= _claim_rank(claim):
        return account
    return (*account, claim)


def _claim_rank(claim: NameRow) -> tuple[int, bytes, str]:
    return (claim.clock, claim.entry, claim.account)


def _account_approve(rows: Rows, meta: EntryMeta, op: AccountApprove) -> tuple[Row, ...]:
    old = rows.get(AccountRow, op.id)
    return _changed(old, replace(old or AccountRow(id=op.id), approved=True))


def _password_set(rows: Rows, meta: EntryMeta, op: PasswordSet) -> tuple[Row, ...]:
    old = rows.get(AccountRow, op.id)
    row = old or AccountRow(id=op.id)
    if (op.epoch, meta.stamp) >= (row.password_epoch, row.password_at):
        row = replace(row, password_epoch=op.epoch, password_hash=op.hash, password_at=meta.stamp)
    return _changed(old, row)


def _session_start(rows: Rows, meta: EntryMeta, op: SessionStart) -> tuple[Row, ...]:
    old = rows.get(SessionRow, op.digest.hex())
    row = old or SessionRow(id=op.digest.hex())
    return _changed(old, replace(row, started=_lesser(row.started, op)))


def _session_end(rows: Rows, meta: EntryMeta, op: SessionEnd) -> tuple[Row, ...]:
    old = rows.get(SessionRow, op.digest.hex())
    return _changed(old, replace(old or SessionRow(id=op.digest.hex()), ended=True))


def _invitation_create(rows: Rows, meta: EntryMeta, op: InvitationCreate) -> tuple[Row, ...]:
    old = rows.get(InvitationRow, op.id)
    row = old or InvitationRow(id=op.id)
    return _changed(old, replace(row, created=_lesser(row.created, op)))


def _invitation_use(rows: Rows, meta: EntryMeta, op: InvitationUse) -> tuple[Row, ...]:
    old = rows.get(InvitationRow, op.id)
    row = old or InvitationRow(id=op.id)
    user = op.account or SOMEBODY
    return _changed(old, replace(row, used_by=min(row.used_by or user, user)))


_RULES: dict[type[Any], Callable[[Rows, EntryMeta, Any], tuple[Row, ...]]] = {
    Admit: _admit,
    Remove: _remove,
    Rename: _rename,
    KeyCreate: _key_create,
    KeyRevoke: _key_revoke,
    OwnerStanding: _owner_standing,
    AccountCreate: _account_create,
    AccountApprove: _account_approve,
    PasswordSet: _password_set,
    SessionStart: _session_start,
    SessionEnd: _session_end,
    InvitationCreate: _invitation_create,
    InvitationUse: _invitation_use,
}


def _changed(old: Row | None, new: Row) -> tuple[Row, ...]:
    return () if old == new else (new,)


_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def _lesser(old: R | None, new: R) -> R:
    if old is None or old == new:
        return new
    return min(old, new, key=_encode)
