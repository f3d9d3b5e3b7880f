"""What one operation changes in the merged view. Pure.

The view is a function of the *set* of entries: applied in any order, any number of times, they give byte-identical
rows. So every rule here is a join, one of:

- a denial only grows: revoked, ended, used;
- so does what a node may be: its roles;
- of a gateway's total the highest counts, in the latest day or month;
- the highest epoch wins, and on a tie the denying one;
- a name keeps all its claims, by (clock, entry hash);
- any other field belongs to its last writer by (clock, feed, seq);
- of two creations with one id, which no honest author makes, the one with the lesser bytes counts.

Skewed clocks can move names and other fields, and never a denial. Which entries count at all, where authors were
removed, is `covey.store.verdict`'s to say, and so is who is removed: `Remove` changes no row here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

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
from covey.store.rows import (
    NEVER,
    AccountRow,
    BudgetRow,
    Claim,
    InvitationRow,
    KeyRow,
    MemberRow,
    NameRow,
    Row,
    SessionRow,
    Stamp,
    StandingRow,
    budget_key,
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
    row = replace(row, roles=tuple(sorted({*row.roles, *op.roles})))
    if meta.stamp >= row.name_at:
        row = replace(row, name=op.name, name_at=meta.stamp)
    return _changed(old, row)


def _remove(rows: Rows, meta: EntryMeta, op: Remove) -> tuple[Row, ...]:
    return ()


def _rename(rows: Rows, meta: EntryMeta, op: Rename) -> tuple[Row, ...]:
    old = rows.get(MemberRow, op.peer)
    row = old or MemberRow(peer=op.peer)
    if meta.stamp >= row.name_at:
        row = replace(row, name=op.name, name_at=meta.stamp)
    return _changed(old, row)


def _label(rows: Rows, meta: EntryMeta, op: Label) -> tuple[Row, ...]:
    old = rows.get(MemberRow, op.peer)
    row = old or MemberRow(peer=op.peer)
    marks = {
        label: (*meta.stamp, has) for label, has in op.labels.items() if meta.stamp >= row.marks.get(label, NEVER)[:3]
    }
    return _changed(old, replace(row, marks={**row.marks, **marks})) if marks else ()


def _key_create(rows: Rows, meta: EntryMeta, op: KeyCreate) -> tuple[Row, ...]:
    old = rows.get(KeyRow, op.id)
    row = old or KeyRow(id=op.id)
    return _changed(old, replace(row, created=_lesser(row.created, op)))


def _key_revoke(rows: Rows, meta: EntryMeta, op: KeyRevoke) -> tuple[Row, ...]:
    old = rows.get(KeyRow, op.id)
    return _changed(old, replace(old or KeyRow(id=op.id), revoked=True))


def _owner_standing(rows: Rows, meta: EntryMeta, op: OwnerStanding) -> tuple[Row, ...]:
    old = rows.get(StandingRow, op.owner)
    row = old or StandingRow(owner=op.owner)
    if op.epoch > row.epoch:
        row = replace(row, epoch=op.epoch, active=op.active)
    elif op.epoch == row.epoch and not op.active:
        row = replace(row, active=False)
    return _changed(old, row)


def _owner_limits(rows: Rows, meta: EntryMeta, op: OwnerLimits) -> tuple[Row, ...]:
    old = rows.get(StandingRow, op.owner)
    row = old or StandingRow(owner=op.owner)
    newer: dict[Any, int | None] = {
        name: value for name, value in op.limits.items() if meta.stamp >= row.limits_at.get(name, NEVER)
    }
    if not newer:
        return ()
    written = {**row.limits_at, **dict.fromkeys(newer, meta.stamp)}
    return _changed(old, replace(row, limits=replace(row.limits, **newer), limits_at=written))


def _account_create(rows: Rows, meta: EntryMeta, op: AccountCreate) -> tuple[Row, ...]:
    old = rows.get(AccountRow, op.id)
    row = old or AccountRow(id=op.id)
    account = _changed(old, replace(row, created=_lesser(row.created, op)))
    return (*account, *_claim(rows, meta, op.name, op.id))


def _account_rename(rows: Rows, meta: EntryMeta, op: AccountRename) -> tuple[Row, ...]:
    old = rows.get(AccountRow, op.id)
    row = old or AccountRow(id=op.id)
    if meta.stamp >= row.renamed_at:
        row = replace(row, renamed=op.name, renamed_at=meta.stamp)
    return (*_changed(old, row), *_claim(rows, meta, op.name, op.id))


def _claim(rows: Rows, meta: EntryMeta, name: str, account: str) -> tuple[Row, ...]:
    """Of an account's own claims to one name the first counts."""
    old = rows.get(NameRow, name)
    claims = {claim[2]: claim for claim in old.claims} if old else {}
    mine: Claim = (meta.clock, meta.hash, account)
    claims[account] = min(mine, claims.get(account, mine))
    return _changed(old, NameRow(name=name, claims=tuple(sorted(claims.values()))))


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


def _budget_spent(rows: Rows, meta: EntryMeta, op: BudgetSpent) -> tuple[Row, ...]:
    """Totals: the highest of each gateway, in the latest period."""
    key = budget_key(op.id, op.period)
    old = rows.get(BudgetRow, key)
    if old is not None and old.period > op.period:
        return ()
    known = old.used if old is not None and old.period == op.period else {}
    used = {gateway: max(op.used.get(gateway, 0), known.get(gateway, 0)) for gateway in sorted({*known, *op.used})}
    return _changed(old, BudgetRow(id=key, period=op.period, used=used))


_RULES: dict[type[Any], Callable[[Rows, EntryMeta, Any], tuple[Row, ...]]] = {
    Admit: _admit,
    Remove: _remove,
    Rename: _rename,
    Label: _label,
    KeyCreate: _key_create,
    ScopedKeyCreate: _key_create,
    KeyRevoke: _key_revoke,
    OwnerStanding: _owner_standing,
    OwnerLimits: _owner_limits,
    AccountCreate: _account_create,
    AccountRename: _account_rename,
    AccountApprove: _account_approve,
    PasswordSet: _password_set,
    SessionStart: _session_start,
    SessionEnd: _session_end,
    InvitationCreate: _invitation_create,
    InvitationUse: _invitation_use,
    BudgetSpent: _budget_spent,
}


def is_denial(op: Op) -> bool:
    """Whether an operation takes something away: it then counts at once, however far ahead its entry's clock is."""
    return isinstance(op, _DENIALS) or (isinstance(op, OwnerStanding) and not op.active)


_DENIALS = (Remove, KeyRevoke, PasswordSet, SessionEnd, InvitationUse)


def touched(op: Op) -> tuple[tuple[type[Any], str], ...]:
    """The rows that an operation may change: their types and keys."""
    match op:
        case Admit(peer=peer) | Rename(peer=peer) | Label(peer=peer):
            return ((MemberRow, peer),)
        case KeyCreate(id=key) | KeyRevoke(id=key):
            return ((KeyRow, key),)
        case OwnerStanding(owner=owner) | OwnerLimits(owner=owner):
            return ((StandingRow, owner),)
        case AccountCreate(id=account, name=name) | AccountRename(id=account, name=name):
            return ((AccountRow, account), (NameRow, name))
        case AccountApprove(id=account) | PasswordSet(id=account):
            return ((AccountRow, account),)
        case SessionStart(digest=digest) | SessionEnd(digest=digest):
            return ((SessionRow, digest.hex()),)
        case InvitationCreate(id=invitation) | InvitationUse(id=invitation):
            return ((InvitationRow, invitation),)
        case BudgetSpent(id=budget, period=period):
            return ((BudgetRow, budget_key(budget, period)),)
        case _:
            return ()  # a removal's are the verdict's


def _changed(old: Row | None, new: Row) -> tuple[Row, ...]:
    return () if old == new else (new,)


_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def _lesser(old: R | None, new: R) -> R:
    if old is None or old == new:
        return new
    return min(old, new, key=_encode)
