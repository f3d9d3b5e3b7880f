"""What a key or a session is worth, and on whose behalf a call is made. Pure: the view and the time are arguments."""

import hmac
import re
from dataclasses import dataclass
from typing import Literal

from covey.bus.caller import Caller
from covey.contracts.auth import Actor, Identity, KeyState
from covey.contracts.feeds import KeyCreate
from covey.contracts.keys import INVALID_KEY, digest_of, parse
from covey.errors import CallError
from covey.roles.auth import people
from covey.store.rows import AccountRow, KeyRow, SessionRow
from covey.store.view import View

KEY_AUTHOR = "key:"
"""How `by` begins where it was done with a key that is not an administrator's."""
TOKEN_CHARS = 43
"""32 random bytes in base64url, without padding."""

_TOKEN = re.compile(rf"[A-Za-z0-9_-]{{{TOKEN_CHARS}}}")
_NO_DIGEST = bytes(32)

KeyOutcome = Literal["ok", "unknown", "expired", "revoked", "owner_disabled"]
"""For the metrics alone; whoever asks hears the same for all but the first. A wrong secret is `unknown` too."""


def bad_key() -> CallError:
    """The one answer for every key that does not count."""
    return CallError("unauthenticated", INVALID_KEY, reason="invalid_api_key")


def bad_session() -> CallError:
    """The one answer for every session that does not count."""
    return CallError("unauthenticated", "Not logged in, or no longer: log in.", reason="session")


def judge_key(view: View, key_id: str, digest: bytes, now: float) -> tuple[KeyRow | None, KeyOutcome]:
    """Find a key by its id and the SHA-256 of its text, and say whether it counts; `None` unless it does.

    An unknown id is compared with a digest that nothing has, so that it goes the way of a wrong secret.
    """
    row = view.get(KeyRow, key_id)
    created = row.created if row is not None else None
    expected = created.digest if created is not None else _NO_DIGEST
    if not hmac.compare_digest(expected, digest) or row is None or created is None:
        return None, "unknown"
    state = key_state(view, row, created, now)
    return (row, "ok") if state == "active" else (None, state)


def key_state(view: View, row: KeyRow, created: KeyCreate, now: float) -> KeyState:
    """What has become of a key. One that was made with another lives no longer than that one."""
    if row.revoked:
        return "revoked"
    if created.by.startswith(KEY_AUTHOR):
        parent = view.get(KeyRow, created.by.removeprefix(KEY_AUTHOR))
        if parent is None or parent.created is None or parent.revoked:
            return "revoked"
    if not people.standing(view, created.owner).active:
        return "owner_disabled"
    return "expired" if created.expires_at is not None and now >= created.expires_at else "active"


def identity_of_key(view: View, row: KeyRow, created: KeyCreate) -> Identity:
    """Whom a key speaks for. Its role is what it may act as: only an administrator's `admin` key is one."""
    return Identity(
        key_id=row.id,
        owner=created.owner,
        role="admin" if _administers(view, created) else "user",
        models=created.models,
        limits=created.limits,
        expires_at=created.expires_at,
    )


def session_id(token: str) -> str | None:
    """The id of the row of a session's token, or `None` for what cannot be one."""
    return digest_of(token).hex() if _TOKEN.fullmatch(token) else None


def judge_session(view: View, token: str, now: float) -> tuple[SessionRow, AccountRow]:
    """The session of a token and whose it is; `unauthenticated` unless it counts."""
    row_id = session_id(token)
    row = view.get(SessionRow, row_id) if row_id else None
    started = row.started if row is not None else None
    if row is None or started is None or row.ended or now >= started.expires_at:
        raise bad_session()
    account = people.account(view, started.account)
    if account is None or started.epoch < account.password_epoch or people.state(view, account) != "active":
        raise bad_session()
    return row, account


@dataclass(frozen=True, slots=True)
class Person:
    """On whose behalf a call is made.

    Args:
        account: an account's id, or `people.OPERATOR`.
        admin: whether their word counts as an administrator's here and now.
        by: what the feeds record as the author.
        key: the key they act with, unless that is an `admin` one: it may do only what concerns itself.
    """

    account: str
    admin: bool
    by: str
    key: KeyRow | None = None


def who(view: View, caller: Caller, actor: Actor, now: float) -> Person:
    """The person behind a call.

    Raises:
        CallError: `unauthenticated` without a credential that counts; `invalid` with two.
    """
    if actor.session and actor.key:
        raise CallError("invalid", "Act with a session or with a key, not with both.", param="actor")
    if actor.session:
        _, account = judge_session(view, actor.session, now)
        return Person(account.id, account.role == "admin", account.id)
    if actor.key:
        row, created = read_key(view, actor.key, now)
        if created.admin:
            return Person(created.owner, _administers(view, created), created.owner)
        return Person(created.owner, admin=False, by=KEY_AUTHOR + row.id, key=row)
    if caller.stamp == "operator":
        return Person(people.OPERATOR, admin=True, by=people.OPERATOR)
    raise bad_session()


def administrator(view: View, caller: Caller, actor: Actor, now: float) -> Person:
    """The same, for what only administrators may do: `forbidden` to everybody else."""
    person = who(view, caller, actor, now)
    if not person.admin:
        what = "Only an administrator may do this"
        raise CallError("forbidden", f"{what}, and this key is not an administrator's." if person.key else f"{what}.")
    return person


def read_key(view: View, text: str, now: float) -> tuple[KeyRow, KeyCreate]:
    """The key with this text; `unauthenticated` unless it counts."""
    parsed = parse(text)
    row = judge_key(view, parsed.key_id, parsed.digest, now)[0] if parsed else None
    if row is None or row.created is None:
        raise bad_key()
    return row, row.created


def _administers(view: View, created: KeyCreate) -> bool:
    if not created.admin:
        return False
    return created.owner == people.OPERATOR or people.is_active_admin(view, view.get(AccountRow, created.owner))
