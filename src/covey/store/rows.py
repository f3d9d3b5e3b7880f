"""The rows of the view that feeds add up to (replication.md, Merge). Pure data; `covey.store.merge` makes them.

A denial may be applied before what it denies (another author's feed arrives later), so a row's creation may be `None`.
"""

import msgspec

from covey.contracts.auth import AccountRole, KeyLimits, LimitName
from covey.contracts.feeds import AccountCreate, InvitationCreate, KeyCreate, ScopedKeyCreate, SessionStart

Stamp = tuple[int, str, int]
"""When a field was last written, for "the last writer wins": (clock, feed, seq) of the entry."""
NEVER: Stamp = (0, "", 0)
Mark = tuple[int, str, int, bool]
"""Whether a machine has a label, behind the stamp of when that was last written."""
Claim = tuple[int, bytes, str]
"""An account's claim to a name: (clock, entry hash, account). The lowest is the first."""


class MemberRow(msgspec.Struct, frozen=True, kw_only=True):
    """A node that was admitted, with all the roles that it ever was. `name_at`: when its name was last written.

    `removed`: as `covey.store.verdict` has it. `marks`: every label that it ever had.
    """

    peer: str
    roles: tuple[str, ...] = ()
    name: str = ""
    removed: bool = False
    name_at: Stamp = NEVER
    marks: dict[str, Mark] = {}

    @property
    def labels(self) -> tuple[str, ...]:
        """Those that it has now, sorted."""
        return tuple(sorted(label for label, mark in self.marks.items() if mark[3]))


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """An API key; `revoked` is for ever."""

    id: str
    created: KeyCreate | ScopedKeyCreate | None = None
    revoked: bool = False


class StandingRow(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an account's keys and sessions count (the highest epoch, and on a tie the denial), and within which
    limits together. `limits_at`: when each limit was last written.
    """

    owner: str
    epoch: int = 0
    active: bool = False
    limits: KeyLimits = KeyLimits()
    limits_at: dict[LimitName, Stamp] = {}


class AccountRow(msgspec.Struct, frozen=True, kw_only=True):
    """A person. `role` is that of the creation until an op that changes it exists.

    The password of the highest epoch counts; of two with the same one, that written last (`password_at`).
    `renamed`: the name that was written last, since the creation; "" for none.
    """

    id: str
    created: AccountCreate | None = None
    renamed: str = ""
    renamed_at: Stamp = NEVER
    approved: bool = False
    password_epoch: int = 0
    password_hash: str = ""
    password_at: Stamp = NEVER

    @property
    def name(self) -> str:
        """The log-in name, which another account may have claimed before (`NameRow`)."""
        return self.renamed or (self.created.name if self.created else "")

    @property
    def role(self) -> AccountRole:
        """`user` until its creation is known."""
        return self.created.role if self.created else "user"

    @property
    def pending(self) -> bool:
        """Waits for an administrator."""
        return bool(self.created and self.created.pending and not self.approved)


class NameRow(msgspec.Struct, frozen=True, kw_only=True):
    """Every account that ever claimed a log-in name: (clock, entry hash, account), the first claim first."""

    name: str
    claims: tuple[Claim, ...] = ()


class SessionRow(msgspec.Struct, frozen=True, kw_only=True):
    """A session by the hex of its token's digest; `ended` is for ever."""

    id: str
    started: SessionStart | None = None
    ended: bool = False


class InvitationRow(msgspec.Struct, frozen=True, kw_only=True):
    """An invitation of a person, by its id; `used_by` "" while it is good."""

    id: str
    created: InvitationCreate | None = None
    used_by: str = ""


class BudgetRow(msgspec.Struct, frozen=True, kw_only=True):
    """What is used of a budget. `id`: `<whose>/day` or `<whose>/month`. `used`: by gateway, in the latest period."""

    id: str
    period: str = ""
    used: dict[str, int] = {}


def budget_key(limit_id: str, period: str) -> str:
    """The row of a budget: one for its days, one for its months."""
    return f"{limit_id}/{'month' if len(period) == len('2026-11') else 'day'}"


Row = MemberRow | KeyRow | StandingRow | AccountRow | NameRow | SessionRow | InvitationRow | BudgetRow
