"""How people come in: by invitation, openly, or with an administrator's approval."""

import hmac
import re
import secrets
from collections.abc import Sequence

import msgspec
import trio

from covey.bus.caller import Caller
from covey.contracts.auth import AccountRole, Invitation, InvitePerson, Register, Registered
from covey.contracts.feeds import InvitationCreate, InvitationUse, Op
from covey.contracts.keys import base62, digest_of
from covey.errors import CallError
from covey.roles.auth import people
from covey.roles.auth.accounts import Accounts, new_account
from covey.roles.auth.backoff import too_many
from covey.roles.auth.credentials import administrator
from covey.roles.auth.realm import Realm, taking_turns
from covey.roles.auth.sessions import ADDRESS_CHARS_MAX, Sessions
from covey.roles.auth.strength import check_password
from covey.store.rows import InvitationRow
from covey.store.view import View

INVITATION_ID_CHARS = 12
INVITATION_SECONDS_MIN = 60
_SECRET = re.compile(rf"([0-9A-Za-z]{{{INVITATION_ID_CHARS}}})_[A-Za-z0-9_-]{{43}}")
_NO_DIGEST = bytes(32)


class Entrance(msgspec.Struct, frozen=True):
    """On what terms somebody may register. `invitation`: the id of the one that is spent, "" without."""

    role: AccountRole
    pending: bool
    invitation: str = ""


class Registration:
    """Serves REGISTER and INVITE_PERSON."""

    def __init__(self, realm: Realm, accounts: Accounts, sessions: Sessions) -> None:
        self._realm = realm
        self._accounts = accounts
        self._sessions = sessions

    async def register(self, caller: Caller, request: Register) -> Registered:
        """Serve REGISTER. Nobody learns whether a name is taken without having a right to register."""
        realm = self._realm
        if not realm.admins.exists(realm.view):
            message = "This network is not set up yet: open the link that `covey up` printed."
            raise CallError("conflict", message, reason="needs_setup")
        self._pace(request.address[:ADDRESS_CHARS_MAX])
        entrance = self._entrance(realm.view, request.invitation)
        people.check_name(request.name)
        check_password(request.password, request.name)
        realm.check_new_name(realm.view, request.name)
        await self._accounts.check_room()
        hashed = await realm.passwords.hash(request.password)
        account_id, ops = new_account(
            request.name,
            hashed,
            role=entrance.role,
            pending=entrance.pending,
            created_at=realm.now,
            by=entrance.invitation,
        )
        if entrance.invitation:
            ops.append(InvitationUse(id=entrance.invitation, account=account_id))
        session = None if entrance.pending else self._sessions.prepare(account_id, epoch=1)
        if session is not None:
            ops.append(session.start)

        def decide(view: View) -> Sequence[Op]:
            self._entrance(view, request.invitation)
            realm.check_new_name(view, request.name)
            return ops

        await realm.feeds.append(decide)
        self._accounts.counted_anew()
        account = people.shown(realm.view, people.find(realm.view, account_id))
        return Registered(account, self._sessions.begun(session) if session is not None else None)

    def _pace(self, address: str) -> None:
        """Count an attempt of an address; one that is not known is not held back."""
        if not address:
            return
        paced, now = self._realm.registrations, trio.current_time()
        if (wait_seconds := paced.wait_seconds(address, now)) > 0:
            raise too_many(wait_seconds, "registrations")
        paced.charge(address, now)

    def _entrance(self, view: View, secret: str) -> Entrance:
        """What an invitation or the mode allows; `forbidden`, in the same words for every bad invitation."""
        mode = self._realm.config.registration
        if secret:
            row = judge_invitation(view, secret, self._realm.clock.now())
            return Entrance(role=row.role, pending=False, invitation=row.id)
        if mode == "invite":
            raise CallError(
                "forbidden",
                "Registering here takes an invitation: ask an administrator for a link.",
                reason="invitation_needed",
                param="invitation",
            )
        return Entrance(role="user", pending=mode == "approval")

    async def invite_person(self, caller: Caller, request: InvitePerson) -> Invitation:
        """Serve INVITE_PERSON."""
        realm, config = self._realm, self._realm.config
        administrator(realm.view, caller, request.actor, realm.clock.now())
        people.check_label(request.label)
        if not INVITATION_SECONDS_MIN <= request.expires_seconds <= config.invitation_seconds_max:
            raise CallError(
                "invalid",
                f"An invitation lasts {INVITATION_SECONDS_MIN} to {config.invitation_seconds_max} seconds.",
                param="expires_seconds",
            )
        rows = await taking_turns(realm.view.all(InvitationRow), lambda row: _open_until(row) > realm.now)
        if len(rows) >= config.invitations_open_max:
            message = f"There are {len(rows)} open invitations already: wait until some are used or expire."
            raise CallError("conflict", message, reason="invitations_open_max")
        invitation_id = base62(secrets.randbits(128), INVITATION_ID_CHARS)
        secret = f"{invitation_id}_{secrets.token_urlsafe(32)}"
        expires_at = realm.now + request.expires_seconds

        def decide(view: View) -> Sequence[Op]:
            person = administrator(view, caller, request.actor, realm.clock.now())
            return [
                InvitationCreate(
                    id=invitation_id,
                    digest=digest_of(secret),
                    role=request.role,
                    label=request.label,
                    created_at=realm.now,
                    expires_at=expires_at,
                    by=person.by,
                )
            ]

        await realm.feeds.append(decide)
        return Invitation(secret=secret, role=request.role, expires_at=expires_at)


def judge_invitation(view: View, secret: str, now: float) -> InvitationCreate:
    """The invitation with this secret; `forbidden`, always in the same words, unless it is good. Pure."""
    match = _SECRET.fullmatch(secret)
    row = view.get(InvitationRow, match[1]) if match else None
    created = row.created if row is not None else None
    expected = created.digest if created is not None else _NO_DIGEST
    matches = match is not None and hmac.compare_digest(expected, digest_of(secret))
    if not matches or row is None or created is None or now >= _open_until(row):
        raise CallError(
            "forbidden",
            "This invitation is not valid, or was used already, or has expired: ask for a new link.",
            reason="invitation_invalid",
            param="invitation",
        )
    return created


def _open_until(row: InvitationRow) -> float:
    return row.created.expires_at if row.created is not None and not row.used_by else float("-inf")
