"""The rows of the view that feeds add up to (replication.md, Merge). Pure data; `covey.store.merge` makes them.

A denial may be applied before what it denies (another author's feed arrives later), so a row's creation may be `None`.
"""

import msgspec

from covey.contracts.auth import AccountRole
from covey.contracts.feeds import AccountCreate, InvitationCreate, KeyCreate, SessionStart

Stamp = tuple[int, str, int]
"""When a field was last written, for "the last writer wins": (clock, feed, seq) of the entry."""
NEVER: Stamp = (0, "", 0)


class MemberRow(msgspec.Struct, frozen=True, kw_only=True):
    """A node that was admitted; `removed` is for ever. `roles_at` and `name_at`: when they were last written.

    `cutoffs`: per feed of a removed author, the last entry that still counts; of a feed that is not among them, none.
    """

    peer: str
    roles: tuple[str, ...] = ()
    name: str = ""
    removed: bool = False
    cutoffs: dict[str, int] = {}
    roles_at: Stamp = NEVER
    name_at: Stamp = NEVER


class KeyRow(msgspec.Struct, frozen=True, kw_only=True):
    """An API key; `revoked` is for ever."""

    id: str
    created: KeyCreate | None = None
    revoked: bool = False


class StandingRow(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an account's keys and sessions count: the highest epoch, and on a tie the denial."""

    owner: str
    epoch: int = 0
    active: bool = False


class AccountRow(msgspec.Struct, frozen=True, kw_only=True):
    """A person. `role` is that of the creation until an op that changes it exists.

    The password of the highest epoch counts; of two with the same one, that written last (`password_at`).
    """

    id: str
    created: AccountCreate | None = None
    approved: bool = False
    password_epoch: int = 0
    password_hash: str = ""
    password_at: Stamp = NEVER

    @property
    def name(self) -> str:
        """The log-in name."""
        return self.created.name if self.created else ""

    @property
    def role(self) -> AccountRole:
        """`user` until its creation is known."""
        return self.created.role if self.created else "user"

    @property
    def pending(self) -> bool:
        """Waits for an administrator."""
        return bool(self.created and self.created.pending and not self.approved)


class NameRow(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a log-in name: the claim with the lowest (clock, entry hash)."""

    name: str
    account: str
    clock: int
    entry: bytes


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


Row = MemberRow | KeyRow | StandingRow | AccountRow | NameRow | SessionRow | InvitationRow
