"""People, sessions and API keys, as the auth role serves them.

A call made for a person carries that person's credential (`Actor`), which the auth role checks itself: a compromised
web node is not an administrator. A call stamped `operator` needs none.
"""

from typing import Literal

import msgspec

from covey.contracts.method import Nothing, Party, Unary

AccountRole = Literal["admin", "user"]
AccountState = Literal["active", "pending", "disabled"]
RegistrationMode = Literal["invite", "open", "approval"]

PEOPLE: frozenset[Party] = frozenset({"web", "operator"})
"""Who speaks for people: the dashboard with their session, the operator in their own right."""

MEMBERS: frozenset[Party] = frozenset({"member"})

ADMINISTRATION: frozenset[Party] = PEOPLE | MEMBERS
"""Who may ask with a person's credential, which auth checks: the command line of a node without the auth role, too."""

NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,31}"
"""A log-in name: lower case, so that two people cannot differ by case alone."""
PASSWORD_CHARS_MIN = 10
PASSWORD_CHARS_MAX = 256
LABEL_CHARS_MAX = 64
KEY_MODELS_MAX = 64
KEY_NODE_LABELS_MAX = 16
KEY_ROUTES_MAX = 32
LIST_MAX = 10_000
"""The most rows that one listing returns."""


class Actor(msgspec.Struct, frozen=True, omit_defaults=True):
    """On whose behalf: a session's token or an API key. Empty for the operator."""

    session: str = ""
    key: str = ""


class KeyLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a key, or all keys and sessions of a person together, may use; `None` is no limit.

    Tokens are those of prompts and answers. A day and a month are UTC's.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None


LimitName = Literal["requests_per_minute", "tokens_per_minute", "concurrency", "tokens_per_day", "tokens_per_month"]
"""The fields of `KeyLimits`."""


class Account(msgspec.Struct, frozen=True, omit_defaults=True):
    """A person, without anything secret. `created_at` in Unix seconds.

    `name_lost`: somebody else claimed the name before, at a node that this one's did not see: choose another.
    `held_by`: as the answer to a change, the other nodes that had it by then, by name. `not_held_by`: as `KeyInfo`.
    `limits`: of all their keys and sessions together.
    """

    id: str
    name: str
    role: AccountRole
    state: AccountState
    created_at: int
    name_lost: bool = False
    held_by: tuple[str, ...] = ()
    not_held_by: tuple[str, ...] = ()
    limits: KeyLimits = KeyLimits()


class Accounts(msgspec.Struct, frozen=True):
    """Sorted by name."""

    accounts: tuple[Account, ...]


class SessionGrant(msgspec.Struct, frozen=True):
    """A session that has just begun. `token` is the only copy: the store keeps its hash. `expires_at`: Unix seconds."""

    token: str
    account: Account
    expires_at: int


class VerifyKey(msgspec.Struct, frozen=True):
    """A key's id and the SHA-256 of its whole text: the key itself never travels."""

    key_id: str
    digest: bytes


class Identity(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whom a key speaks for. `models` empty: every model. `expires_at` in Unix seconds, `None`: never.

    `limits` are the key's, `owner_limits` the person's over all their keys: both hold. `node_labels`: only nodes with
    one of these labels may run what the key asks for; none: all. `routes`: the API paths that it may use, one by one or
    with a `*` at the end; none: all.
    """

    key_id: str
    owner: str
    role: AccountRole = "user"
    models: tuple[str, ...] = ()
    limits: KeyLimits = KeyLimits()
    expires_at: int | None = None
    owner_limits: KeyLimits = KeyLimits()
    node_labels: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()


VERIFY = Unary("auth.verify", VerifyKey, Identity, access=frozenset({"gateway"}), timeout_seconds=2, idempotent=True)
"""`unauthenticated`, in one and the same words, for an unknown, wrong, revoked, expired or disabled owner's key."""


class AuthorizeActor(msgspec.Struct, frozen=True):
    """Ask who an actor is: a gateway for the dashboard's chat, any node for whoever reads its metrics."""

    actor: Actor


AUTHORIZE = Unary(
    "auth.authorize",
    AuthorizeActor,
    Identity,
    access=frozenset({"gateway", "member"}),
    timeout_seconds=2,
    idempotent=True,
)
"""The identity behind a session (its `key_id` is `session:<account id>`) or a key."""


class AuthState(msgspec.Struct, frozen=True):
    """What the log-in page needs to know. `needs_setup`: there is no administrator yet."""

    needs_setup: bool
    registration: RegistrationMode
    network_id: str
    accounts: int


AUTH_STATE = Unary("auth.state", Nothing, AuthState, access=PEOPLE | MEMBERS, timeout_seconds=2, idempotent=True)


class SetUp(msgspec.Struct, frozen=True):
    """Make the first administrator with the one-time secret that `covey up` printed."""

    secret: str
    name: str
    password: str


SET_UP = Unary("auth.set_up", SetUp, SessionGrant, access=frozenset({"web"}))


class SetUpSecret(msgspec.Struct, frozen=True):
    """The one-time secret, or "" where the set-up is done."""

    secret: str


SET_UP_SECRET = Unary("auth.set_up_secret", Nothing, SetUpSecret, access=frozenset({"operator"}))


class RecoveryKey(msgspec.Struct, frozen=True):
    """The network's recovery key, or "" where it was taken already or this node did not found the network."""

    recovery_key: str


TAKE_RECOVERY_KEY = Unary("auth.take_recovery_key", Nothing, RecoveryKey, access=frozenset({"operator"}))
"""Hands over the recovery key that founding the network made, once, and forgets it: nothing else ever holds it."""


class LogIn(msgspec.Struct, frozen=True):
    """`address` is the client's, for the back-off."""

    name: str
    password: str
    address: str = ""


LOG_IN = Unary("auth.log_in", LogIn, SessionGrant, access=frozenset({"web"}))
"""`unauthenticated` in the same words and time for an unknown name, a wrong password, a pending and a disabled account;
`rate_limited` with `retry_after_seconds` after too many failures."""


class LogOut(msgspec.Struct, frozen=True):
    """Ends the session on every node; one that has already ended is no error."""

    session: str


LOG_OUT = Unary("auth.log_out", LogOut, Nothing, access=frozenset({"web"}))


class WhoAmI(msgspec.Struct, frozen=True):
    """Whose session is this?"""

    session: str


WHO_AM_I = Unary("auth.who_am_i", WhoAmI, Account, access=frozenset({"web"}), timeout_seconds=2, idempotent=True)


class Register(msgspec.Struct, frozen=True):
    """A person registers; `invitation` is the secret of an invitation link, needed where the mode is `invite`."""

    name: str
    password: str
    invitation: str = ""
    address: str = ""


class Registered(msgspec.Struct, frozen=True):
    """`grant` is `None` while the account waits for approval."""

    account: Account
    grant: SessionGrant | None


REGISTER = Unary("auth.register", Register, Registered, access=frozenset({"web"}))


class ChangePassword(msgspec.Struct, frozen=True):
    """A person changes their own password: every session of theirs ends, and a new one begins."""

    session: str
    old: str
    new: str


CHANGE_PASSWORD = Unary("auth.change_password", ChangePassword, SessionGrant, access=frozenset({"web"}))


class AddUser(msgspec.Struct, frozen=True):
    """An administrator makes an account."""

    actor: Actor
    name: str
    password: str
    role: AccountRole = "user"


ADD_USER = Unary("auth.add_user", AddUser, Account, access=ADMINISTRATION)


class ListUsers(msgspec.Struct, frozen=True):
    """Administrators only."""

    actor: Actor


LIST_USERS = Unary("auth.list_users", ListUsers, Accounts, access=ADMINISTRATION, idempotent=True)


class SetStanding(msgspec.Struct, frozen=True):
    """Approve (`active` for a pending account), disable, enable. `user` is a name or an account id.

    Disabling ends the person's sessions and silences their keys. The last active administrator cannot be disabled.
    """

    actor: Actor
    user: str
    active: bool


SET_STANDING = Unary("auth.set_standing", SetStanding, Account, access=ADMINISTRATION)


class RenameUser(msgspec.Struct, frozen=True):
    """Give somebody another log-in name. `user` is a name or an account id; "": oneself.

    One's own, or anybody's as an administrator. Sessions and keys go on.
    """

    actor: Actor
    name: str
    user: str = ""


RENAME_USER = Unary("auth.rename_user", RenameUser, Account, access=ADMINISTRATION)
"""`conflict`: the name is taken, or (`no_majority`) too few auth nodes see each other to know."""


class ResetPassword(msgspec.Struct, frozen=True):
    """An administrator sets somebody's password: every session of theirs ends."""

    actor: Actor
    user: str
    password: str


RESET_PASSWORD = Unary("auth.reset_password", ResetPassword, Account, access=ADMINISTRATION)


class LimitUser(msgspec.Struct, frozen=True):
    """An administrator sets limits for all keys and sessions of a person together. `user`: a name or an account id.

    The limits that are named change, `None` takes one away; the others stay as they are.
    """

    actor: Actor
    user: str
    limits: dict[LimitName, int | None]


LIMIT_USER = Unary("auth.limit_user", LimitUser, Account, access=ADMINISTRATION)


class InvitePerson(msgspec.Struct, frozen=True):
    """An administrator makes a one-time registration link."""

    actor: Actor
    role: AccountRole = "user"
    label: str = ""
    expires_seconds: int = 7 * 24 * 3600


class Invitation(msgspec.Struct, frozen=True):
    """`secret` goes into the link's fragment (`/register#<secret>`), so that no server ever logs it."""

    secret: str
    role: AccountRole
    expires_at: int


INVITE_PERSON = Unary("auth.invite_person", InvitePerson, Invitation, access=ADMINISTRATION)


class CreateKey(msgspec.Struct, frozen=True):
    """Make an API key for oneself, or, as an administrator, for `user` (name or account id; "": oneself).

    `models`, `node_labels` and `routes` as in `Identity`. `expires_seconds` from now, `None`: never. Only with `admin`
    may the key do what its owner may as an administrator: a key that leaks out of some program must not be worth the
    whole network. Any other key sees and revokes itself and the keys made with it, makes none that may more than
    itself, and takes them along when it is revoked.
    """

    actor: Actor
    user: str = ""
    label: str = ""
    models: tuple[str, ...] = ()
    expires_seconds: int | None = None
    limits: KeyLimits = KeyLimits()
    admin: bool = False
    node_labels: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()


class NewKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """`key` is shown this once. `held_by`: the other nodes that had it by then, by name."""

    id: str
    key: str
    held_by: tuple[str, ...] = ()


CREATE_KEY = Unary("auth.create_key", CreateKey, NewKey, access=ADMINISTRATION)
"""Answers once the key is on this node's disk."""

KeyState = Literal["active", "expired", "revoked", "owner_disabled"]


class KeyInfo(msgspec.Struct, frozen=True):
    """A key without its secret. `prefix` is for recognising it; times in Unix seconds.

    As the answer to a revocation, `held_by`: the other nodes that have it by now, by name; `not_held_by`: those that
    check keys and have not said so. Both are empty in a listing.
    """

    id: str
    prefix: str
    owner: str
    owner_name: str
    label: str
    models: tuple[str, ...]
    limits: KeyLimits
    state: KeyState
    created_at: int
    expires_at: int | None
    last_used_at: int | None
    admin: bool = False
    held_by: tuple[str, ...] = ()
    not_held_by: tuple[str, ...] = ()
    node_labels: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()


class Keys(msgspec.Struct, frozen=True):
    """Newest first."""

    keys: tuple[KeyInfo, ...]


class ListKeys(msgspec.Struct, frozen=True):
    """One's own keys, or with `everyone`, as an administrator, all of them. The operator sees all."""

    actor: Actor
    everyone: bool = False


LIST_KEYS = Unary("auth.list_keys", ListKeys, Keys, access=ADMINISTRATION, idempotent=True)


class RevokeKey(msgspec.Struct, frozen=True):
    """One's own key, or anybody's as an administrator. Revoking twice is no error; there is no way back."""

    actor: Actor
    id: str


REVOKE_KEY = Unary("auth.revoke_key", RevokeKey, KeyInfo, access=ADMINISTRATION)


class KeyUsed(msgspec.Struct, frozen=True):
    """Key ids with the Unix second of their latest use, reported by gateways now and then."""

    used_at: dict[str, int]


KEY_USED = Unary("auth.key_used", KeyUsed, Nothing, access=frozenset({"gateway"}), idempotent=True)
