"""What a session is worth, and on whose behalf a call is made. Pure: the view and the time are arguments."""

import re
from dataclasses import dataclass

from covey.bus.caller import Caller
from covey.contracts.auth import Actor
from covey.contracts.feeds import KeyCreate
from covey.contracts.keys import digest_of, parse
from covey.errors import CallError
from covey.roles.auth import people
from covey.store.key_check import KEY_AUTHOR, bad_key, judge_key
from covey.store.rows import AccountRow, KeyRow, SessionRow
from covey.store.view import View

TOKEN_CHARS = 43
"""32 random bytes in base64url, without padding."""

_TOKEN = re.compile(rf"[A-Za-z0-9_-]{{{TOKEN_CHARS}}}")


def bad_session() -> CallError:
    """The one answer for every session that does not count."""
    return CallError("unauthenticated", "Not logged in, or no longer: log in.", reason="session")


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
            return Person(created.owner, created.admin, created.owner)
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
