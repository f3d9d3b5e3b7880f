"""Logging in and out, and changing one's own password."""

import secrets
from collections.abc import Sequence

import msgspec
import trio

from covey.bus.caller import Caller
from covey.contracts.auth import PASSWORD_CHARS_MAX, Account, ChangePassword, LogIn, LogOut, SessionGrant, WhoAmI
from covey.contracts.feeds import Op, PasswordSet, SessionEnd, SessionStart
from covey.contracts.keys import digest_of
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.roles.auth import people
from covey.roles.auth.credentials import judge_session, session_id
from covey.roles.auth.realm import Realm
from covey.roles.auth.session_index import SessionIndex
from covey.roles.auth.strength import check_password
from covey.store.news import FeedNews
from covey.store.rows import AccountRow, SessionRow
from covey.store.view import View
from covey.store.writer import Store

TOKEN_BYTES = 32
ADDRESS_CHARS_MAX = 64
"""As much of an address as is remembered; no IPv6 address with its zone is longer."""


async def learn_sessions(index: SessionIndex, store: Store) -> None:
    """Keep an index up with the sessions that begin at other auth nodes; until cancelled."""
    news = FeedNews(store, "secret")
    while True:
        for sealed in await news.next():
            for op in sealed.entry.ops:
                if isinstance(op, SessionStart):
                    index.learn(op)


def wrong_password() -> CallError:
    """The one answer for every log-in that fails."""
    return CallError(
        "unauthenticated",
        "This name and password are not those of an active account; check both, or ask an administrator.",
        reason="log_in",
    )


class NewSession(msgspec.Struct, frozen=True):
    """A session that is about to begin: its token, and what to append for it."""

    token: str
    start: SessionStart
    ends: tuple[SessionEnd, ...]

    @property
    def ops(self) -> list[Op]:
        """What begins it, and ends the account's oldest beyond the most that it may have."""
        return [self.start, *self.ends]


class Sessions:
    """Serves LOG_IN, LOG_OUT, WHO_AM_I and CHANGE_PASSWORD."""

    def __init__(self, realm: Realm) -> None:
        self._realm = realm

    async def log_in(self, caller: Caller, request: LogIn) -> SessionGrant:
        """Serve LOG_IN."""
        outcome = "failed"
        try:
            grant = await self._log_in(request)
            outcome = "ok"
            return grant
        except CallError as error:
            outcome = "wrong" if error.code == "unauthenticated" else error.code
            raise
        finally:
            self._realm.metrics.log_ins.labels(outcome).inc()

    async def _log_in(self, request: LogIn) -> SessionGrant:
        realm, name, address = self._realm, request.name.lower(), request.address[:ADDRESS_CHARS_MAX]
        if len(request.password) > PASSWORD_CHARS_MAX or len(name) > PASSWORD_CHARS_MAX:
            raise CallError("invalid", f"A password has at most {PASSWORD_CHARS_MAX} characters.", param="password")
        realm.log_ins.admit(name, address, trio.current_time())
        try:
            account = await self._with_password(people.claimants(realm.view, name), request.password)
        except CallError:
            realm.log_ins.withdrawn(name, address)
            raise
        if account is None:
            raise wrong_password()
        realm.log_ins.succeeded(name, address)
        renewed = await self._renewed_hash(account, request.password)
        session = self.prepare(account.id, account.password_epoch)

        def decide(view: View) -> Sequence[Op]:
            now = people.account(view, account.id)
            if now is None or now.password_epoch != account.password_epoch or people.state(view, now) != "active":
                raise wrong_password()  # changed or disabled while the password was being checked
            return [*renewed, *session.ops]

        await realm.feeds.append(decide)
        return self.begun(session)

    async def _with_password(self, claimants: Sequence[AccountRow], password: str) -> AccountRow | None:
        """The first active account that has this password: of one name there are several where it was given away twice.

        Each is tried, whichever fits: how long it takes tells nothing but their number. Where there is none, one hash.
        """
        view, found = self._realm.view, None
        for account in claimants or (None,):
            matches = await self._realm.passwords.verify(account.password_hash if account else "", password)
            if matches and found is None and account is not None and people.state(view, account) == "active":
                found = account
        return found

    async def _renewed_hash(self, account: AccountRow, password: str) -> list[Op]:
        """The same password under today's parameters, where its hash has older ones. Its sessions go on."""
        if not self._realm.passwords.outdated(account.password_hash):
            return []
        renewed = await self._realm.passwords.hash(password)
        return [PasswordSet(id=account.id, epoch=account.password_epoch, hash=renewed, by=account.id)]

    def prepare(self, account: str, epoch: int) -> NewSession:
        """A new session with a new token, to be appended."""
        realm, token = self._realm, secrets.token_urlsafe(TOKEN_BYTES)
        start = SessionStart(
            digest=digest_of(token),
            account=account,
            epoch=epoch,
            created_at=realm.now,
            expires_at=realm.now + realm.config.session_seconds,
        )
        ends = realm.sessions.ends(account, realm.now, keep=realm.config.sessions_per_account_max - 1)
        return NewSession(token, start, tuple(ends))

    def begun(self, session: NewSession) -> SessionGrant:
        """The grant of a session that has been appended."""
        realm = self._realm
        realm.sessions.forget(session.start.account, session.ends)
        realm.sessions.learn(session.start)
        account = people.find(realm.view, session.start.account)
        return SessionGrant(session.token, people.shown(realm.view, account), session.start.expires_at)

    async def log_out(self, caller: Caller, request: LogOut) -> Nothing:
        """Serve LOG_OUT."""
        realm, row_id = self._realm, session_id(request.session)
        row = realm.view.get(SessionRow, row_id) if row_id else None
        if row is not None and row.started is not None and not row.ended:
            end = SessionEnd(row.started.digest)
            await realm.feeds.append(lambda _: [end])
            realm.sessions.forget(row.started.account, [end])
        return Nothing()

    async def who_am_i(self, caller: Caller, request: WhoAmI) -> Account:
        """Serve WHO_AM_I."""
        row, account = judge_session(self._realm.view, request.session, self._realm.clock.now())
        if row.started is not None:
            self._realm.sessions.learn(row.started)  # it may have begun at another node
        return people.shown(self._realm.view, account)

    async def change_password(self, caller: Caller, request: ChangePassword) -> SessionGrant:
        """Serve CHANGE_PASSWORD. Guessing the old one is held back like guessing at the log-in."""
        realm = self._realm
        _, account = judge_session(realm.view, request.session, realm.clock.now())
        check_password(request.new, account.name, param="new")
        if request.new == request.old:
            raise CallError("invalid", "The new password is the old one; choose another.", param="new")
        guarded = account.id  # apart from the log-ins under the name, which anybody may hammer
        realm.log_ins.admit(guarded, "", trio.current_time())
        try:
            matches = await realm.passwords.verify(account.password_hash, request.old[: PASSWORD_CHARS_MAX + 1])
            hashed = await realm.passwords.hash(request.new) if matches else ""
        except CallError:
            realm.log_ins.withdrawn(guarded, "")
            raise
        if not matches:
            raise CallError("forbidden", "The old password is wrong.", reason="old_password", param="old")
        realm.log_ins.succeeded(guarded, "")
        session = self.prepare(account.id, account.password_epoch + 1)
        ends = realm.sessions.ends(account.id, realm.now)

        def decide(view: View) -> Sequence[Op]:
            judge_session(view, request.session, realm.clock.now())  # over, if the password was changed meanwhile
            changed = PasswordSet(id=account.id, epoch=account.password_epoch + 1, hash=hashed, by=account.id)
            return [changed, session.start, *ends]

        await realm.feeds.append(decide)
        realm.sessions.forget(account.id, ends)
        return self.begun(session)
