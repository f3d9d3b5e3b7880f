"""The very first things: the first administrator, by a one-time secret, and the recovery key."""

import hmac
import secrets
from collections.abc import Sequence

from covey.bus.caller import Caller
from covey.contracts.auth import AuthState, RecoveryKey, SessionGrant, SetUp, SetUpSecret
from covey.contracts.feeds import Op
from covey.contracts.keys import digest_of
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.roles.auth import people
from covey.roles.auth.accounts import Accounts, new_account
from covey.roles.auth.realm import Realm
from covey.roles.auth.sessions import Sessions
from covey.roles.auth.strength import check_password
from covey.store.view import View

SECRET_BYTES = 24
AUTHOR = "setup"


class Setup:
    """Serves AUTH_STATE, SET_UP, SET_UP_SECRET and TAKE_RECOVERY_KEY.

    The secret lives in this process's memory only, and only while there is no active administrator: a restart makes
    another. Whoever registers first is nobody special.
    """

    def __init__(self, realm: Realm, accounts: Accounts, sessions: Sessions) -> None:
        self._realm = realm
        self._accounts = accounts
        self._sessions = sessions
        self._secret = ""
        self._recovery_key = realm.feeds.recovery_key or ""

    async def state(self, caller: Caller, request: Nothing) -> AuthState:
        """Serve AUTH_STATE."""
        realm = self._realm
        return AuthState(
            needs_setup=not realm.admins.exists(realm.view),
            registration=realm.config.registration,
            network_id=realm.feeds.network_id,
            accounts=await self._accounts.count(),
        )

    async def set_up_secret(self, caller: Caller, request: Nothing) -> SetUpSecret:
        """Serve SET_UP_SECRET."""
        return SetUpSecret(self.secret())

    def secret(self) -> str:
        """The one-time secret, or "" once there is an administrator."""
        if self._realm.admins.exists(self._realm.view):
            self._secret = ""
        elif not self._secret:
            self._secret = secrets.token_urlsafe(SECRET_BYTES)
        return self._secret

    async def take_recovery_key(self, caller: Caller, request: Nothing) -> RecoveryKey:
        """Serve TAKE_RECOVERY_KEY."""
        taken, self._recovery_key = self._recovery_key, ""
        if taken:
            await self._realm.feeds.recovery_key_shown()
        return RecoveryKey(taken)

    async def set_up(self, caller: Caller, request: SetUp) -> SessionGrant:
        """Serve SET_UP: `conflict` once it is done, `unauthenticated` for a wrong secret."""
        realm, secret = self._realm, self.secret()
        if not secret:
            raise _done()
        if not hmac.compare_digest(digest_of(secret), digest_of(request.secret)):
            raise CallError(
                "unauthenticated",
                "The set-up secret is wrong: open the link that `covey up` printed last.",
                reason="set_up_secret",
            )
        people.check_name(request.name)
        check_password(request.password, request.name)
        realm.check_new_name(realm.view, request.name)
        hashed = await realm.passwords.hash(request.password)
        account_id, ops = new_account(
            request.name, hashed, role="admin", pending=False, created_at=realm.now, by=AUTHOR
        )
        session = self._sessions.prepare(account_id, epoch=1)

        def decide(view: View) -> Sequence[Op]:
            if next(people.active_admins(view), None) is not None:
                raise _done()
            realm.check_new_name(view, request.name)
            return [*ops, session.start]

        await realm.feeds.append(decide)
        self._accounts.counted_anew()
        return self._sessions.begun(session)


def _done() -> CallError:
    return CallError("conflict", "The set-up is done: there is an administrator. Log in.", reason="set_up_done")
