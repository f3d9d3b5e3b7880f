"""The operations that signed feeds are made of (replication.md). Every change of auth state is one `append` of these.

Ops are versioned by their tag: a node that meets a tag it does not know stops at that entry, for an unknown op may be
a denial. A tag's fields never change; a new need gets a new tag (`key.create/2`).

Denials are monotone. Anything that can be taken away and given back carries an `epoch`: the highest wins, and on a tie
the denying one, so that merging in any order never resurrects. `by` is who did it: an account id, `key:<id>`,
`operator`, `setup`, or the invitation's id: the audit reads it.
"""

from typing import Literal

import msgspec

from covey.contracts.auth import AccountRole, KeyLimits, LimitName

Kind = Literal["members", "keys", "secret"]


class Admit(msgspec.Struct, frozen=True, tag="member.admit/1"):
    """A node becomes a member with these roles."""

    peer: str
    roles: tuple[str, ...]
    name: str
    by: str


class Remove(msgspec.Struct, frozen=True, tag="member.remove/1"):
    """A node is a member no longer, ever: a machine that comes back does so with a new identity.

    `cutoffs`: per feed of the removed author, the last sequence number that still counts; of a feed that is not among
    them, none. `covey.store.verdict` says what becomes of authors that remove each other.
    """

    peer: str
    cutoffs: dict[str, int]
    by: str


class Rename(msgspec.Struct, frozen=True, tag="member.rename/1"):
    """The last writer wins."""

    peer: str
    name: str
    by: str


class Label(msgspec.Struct, frozen=True, tag="member.label/1"):
    """Labels that a machine has from now on (`True`), or has no more. Of each label the last writer wins."""

    peer: str
    labels: dict[str, bool]
    by: str


class KeyCreate(msgspec.Struct, frozen=True, omit_defaults=True, tag="key.create/1"):
    """`digest`: SHA-256 of the whole key text. Times in Unix seconds. `admin`: may act for an administrator as such.

    `by` is `key:<id>` for a key made with a key that is not `admin`: it is revoked along with that one.
    """

    id: str
    owner: str
    digest: bytes
    prefix: str
    label: str
    models: tuple[str, ...]
    limits: KeyLimits
    created_at: int
    expires_at: int | None
    by: str
    admin: bool = False


class ScopedKeyCreate(KeyCreate, frozen=True, omit_defaults=True, tag="key.create/2"):
    """A key with restrictions that the first version of the tag cannot say: on nodes, on routes, or limits other than
    that of requests a minute. A node that knew only the first version would let more pass, so it stops here instead.

    `node_labels` and `routes` as in `covey.contracts.auth.Identity`.
    """

    node_labels: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()


class KeyRevoke(msgspec.Struct, frozen=True, tag="key.revoke/1"):
    """For ever."""

    id: str
    by: str


class OwnerStanding(msgspec.Struct, frozen=True, tag="owner.standing/1"):
    """Whether an account's keys and sessions count. In the keys feed, because gateways read that one alone."""

    owner: str
    epoch: int
    active: bool
    by: str


class OwnerLimits(msgspec.Struct, frozen=True, tag="owner.limits/1"):
    """Limits of an account's keys and sessions together; `None` takes one away. Of each the last writer wins."""

    owner: str
    limits: dict[LimitName, int | None]
    by: str


class AccountCreate(msgspec.Struct, frozen=True, tag="account.create/1"):
    """A person. Its standing comes with an `OwnerStanding` in the keys feed, its password with a `PasswordSet`."""

    id: str
    name: str
    role: AccountRole
    pending: bool
    created_at: int
    by: str


class AccountRename(msgspec.Struct, frozen=True, tag="account.rename/1"):
    """A person is called otherwise from now on. Of two with one name the one who claimed it first has it."""

    id: str
    name: str
    by: str


class AccountApprove(msgspec.Struct, frozen=True, tag="account.approve/1"):
    """A pending account is pending no longer."""

    id: str
    by: str


class PasswordSet(msgspec.Struct, frozen=True, tag="password.set/1"):
    """`hash` is argon2id's own encoded form. Sessions of a lower epoch are over.

    `hash` "": the password of a voided entry (`covey.store.reissue`): nobody logs in until an administrator sets one.
    """

    id: str
    epoch: int
    hash: str
    by: str


class SessionStart(msgspec.Struct, frozen=True, tag="session.start/1"):
    """`digest`: SHA-256 of the session's token. `epoch`: that of the password it began with."""

    digest: bytes
    account: str
    epoch: int
    created_at: int
    expires_at: int


class SessionEnd(msgspec.Struct, frozen=True, tag="session.end/1"):
    """For ever."""

    digest: bytes


class InvitationCreate(msgspec.Struct, frozen=True, tag="invitation.create/1"):
    """A one-time link for a person. `digest`: SHA-256 of its secret."""

    id: str
    digest: bytes
    role: AccountRole
    label: str
    created_at: int
    expires_at: int
    by: str


class InvitationUse(msgspec.Struct, frozen=True, tag="invitation.use/1"):
    """Spent: by whom."""

    id: str
    account: str


class BudgetSpent(msgspec.Struct, frozen=True, tag="budget.spent/1"):
    """What each gateway has used, by its peer id, of a budget's day (`2026-11-25`) or month (`2026-11`): totals.

    `id`: `key:<key id>` or `owner:<account id>`. Of two totals the higher counts, of two periods the later.
    """

    id: str
    period: str
    used: dict[str, int]


MembersOp = Admit | Remove | Rename | Label
KeysOp = KeyCreate | ScopedKeyCreate | KeyRevoke | OwnerStanding | OwnerLimits
SecretOp = (
    AccountCreate
    | AccountRename
    | AccountApprove
    | PasswordSet
    | SessionStart
    | SessionEnd
    | InvitationCreate
    | InvitationUse
    | BudgetSpent
)
Op = MembersOp | KeysOp | SecretOp
OPS: dict[Kind, object] = {"members": MembersOp, "keys": KeysOp, "secret": SecretOp}
"""What each kind of feed may hold: an op in another kind's feed makes its entry invalid."""
