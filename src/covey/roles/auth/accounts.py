"""Accounts as administrators see them: adding, listing, enabling and disabling, renaming, limits, a new password."""

import secrets
from collections.abc import Sequence

import trio
from msgspec.structs import replace

from covey.bus.caller import Caller
from covey.contracts.auth import (
    LIST_MAX,
    Account,
    AccountRole,
    AddUser,
    LimitName,
    LimitUser,
    ListUsers,
    RenameUser,
    ResetPassword,
    SetStanding,
)
from covey.contracts.auth import Accounts as AccountList
from covey.contracts.feeds import (
    AccountApprove,
    AccountCreate,
    AccountRename,
    Op,
    OwnerLimits,
    OwnerStanding,
    PasswordSet,
)
from covey.contracts.keys import base62
from covey.errors import CallError
from covey.roles.auth import people
from covey.roles.auth.credentials import Person, administrator, who
from covey.roles.auth.key_rules import check_limits
from covey.roles.auth.realm import Realm, taking_turns
from covey.roles.auth.strength import check_password
from covey.store.feeds import Receipt
from covey.store.key_check import standing
from covey.store.rows import AccountRow
from covey.store.view import View

COUNT_SECONDS = 5.0
"""How old the number of accounts may be: anybody may ask for it."""


def new_account(
    name: str, password_hash: str, *, role: AccountRole, pending: bool, created_at: int, by: str
) -> tuple[str, list[Op]]:
    """A new account's id and what makes it; `by` "" is the account itself. A pending one has no standing yet."""
    account_id = "U" + base62(secrets.randbits(128), people.ACCOUNT_ID_CHARS - 1)
    author = by or account_id
    ops: list[Op] = [
        AccountCreate(id=account_id, name=name, role=role, pending=pending, created_at=created_at, by=author),
        PasswordSet(id=account_id, epoch=1, hash=password_hash, by=author),
    ]
    if not pending:
        ops.append(OwnerStanding(owner=account_id, epoch=1, active=True, by=author))
    return account_id, ops


class Accounts:
    """Serves ADD_USER, LIST_USERS, SET_STANDING, RENAME_USER, LIMIT_USER and RESET_PASSWORD."""

    def __init__(self, realm: Realm) -> None:
        self._realm = realm
        self._count = 0
        self._counted_at = float("-inf")

    def _administrator(
        self, view: View, caller: Caller, request: AddUser | ListUsers | SetStanding | LimitUser | ResetPassword
    ) -> Person:
        return administrator(view, caller, request.actor, self._realm.clock.now())

    async def add_user(self, caller: Caller, request: AddUser) -> Account:
        """Serve ADD_USER."""
        realm = self._realm
        person = self._administrator(realm.view, caller, request)
        people.check_name(request.name)
        check_password(request.password, request.name)
        realm.check_new_name(realm.view, request.name)
        await self.check_room()
        hashed = await realm.passwords.hash(request.password)
        account_id, ops = new_account(
            request.name, hashed, role=request.role, pending=False, created_at=realm.now, by=person.by
        )

        def decide(view: View) -> Sequence[Op]:
            self._administrator(view, caller, request)
            realm.check_new_name(view, request.name)
            return ops

        receipt = await realm.feeds.append(decide)
        self.counted_anew()
        return self._changed(account_id, receipt)

    async def list_users(self, caller: Caller, request: ListUsers) -> AccountList:
        """Serve LIST_USERS."""
        view = self._realm.view
        self._administrator(view, caller, request)
        rows = await taking_turns(view.all(AccountRow))
        known = sorted((row for row in rows if row.created is not None), key=lambda row: (row.name, row.id))
        return AccountList(tuple(await taking_turns(people.shown(view, row) for row in known[:LIST_MAX])))

    async def set_standing(self, caller: Caller, request: SetStanding) -> Account:
        """Serve SET_STANDING."""
        realm = self._realm
        self._administrator(realm.view, caller, request)
        account_id = people.find(realm.view, request.user).id
        ends = [] if request.active else realm.sessions.ends(account_id, realm.now)

        def decide(view: View) -> Sequence[Op]:
            person = self._administrator(view, caller, request)
            row = people.find(view, account_id)
            change = _enabling(view, row, person.by) if request.active else _disabling(view, row, person.by)
            return [*change, *ends] if change else []

        receipt = await realm.feeds.append(decide)
        realm.sessions.forget(account_id, ends)
        changed = self._changed(account_id, receipt)
        if request.active:
            return changed
        spread = await realm.holders.everywhere(receipt.heads)
        return replace(changed, held_by=spread.held_by, not_held_by=spread.not_held_by)

    async def rename_user(self, caller: Caller, request: RenameUser) -> Account:
        """Serve RENAME_USER."""
        realm = self._realm
        people.check_name(request.name)
        account_id = self._to_rename(realm.view, caller, request).id

        def decide(view: View) -> Sequence[Op]:
            row = self._to_rename(view, caller, request)
            if row.name == request.name and not people.has_lost_name(view, row):
                return []
            realm.check_new_name(view, request.name)
            by = who(view, caller, request.actor, realm.clock.now()).by
            return [AccountRename(id=row.id, name=request.name, by=by)]

        return self._changed(account_id, await realm.feeds.append(decide))

    def _to_rename(self, view: View, caller: Caller, request: RenameUser) -> AccountRow:
        """Whose name it is: one's own, or as an administrator anybody's."""
        person = who(view, caller, request.actor, self._realm.clock.now())
        if not person.admin and (person.key is not None or request.user not in ("", person.account)):
            raise CallError("forbidden", "Only an administrator may rename somebody else.", param="user")
        return people.find(view, request.user or person.account)

    async def limit_user(self, caller: Caller, request: LimitUser) -> Account:
        """Serve LIMIT_USER."""
        realm = self._realm
        self._administrator(realm.view, caller, request)
        check_limits(request.limits)
        account_id = people.find(realm.view, request.user).id

        def decide(view: View) -> Sequence[Op]:
            person = self._administrator(view, caller, request)
            now = standing(view, account_id).limits
            changes: dict[LimitName, int | None] = {
                name: value for name, value in request.limits.items() if getattr(now, name) != value
            }
            return [OwnerLimits(owner=account_id, limits=changes, by=person.by)] if changes else []

        return self._changed(account_id, await realm.feeds.append(decide))

    async def reset_password(self, caller: Caller, request: ResetPassword) -> Account:
        """Serve RESET_PASSWORD."""
        realm = self._realm
        self._administrator(realm.view, caller, request)
        row = people.find(realm.view, request.user)
        check_password(request.password, row.name)
        hashed = await realm.passwords.hash(request.password)
        ends = realm.sessions.ends(row.id, realm.now)

        def decide(view: View) -> Sequence[Op]:
            person = self._administrator(view, caller, request)
            epoch = people.find(view, row.id).password_epoch + 1
            return [PasswordSet(id=row.id, epoch=epoch, hash=hashed, by=person.by), *ends]

        receipt = await realm.feeds.append(decide)
        realm.sessions.forget(row.id, ends)
        return self._changed(row.id, receipt)

    def _changed(self, account_id: str, receipt: Receipt[None]) -> Account:
        """The answer to a change of an account: what it is now, and who has it."""
        view = self._realm.view
        return replace(people.shown(view, people.find(view, account_id)), held_by=self._realm.holders.names(receipt))

    async def count(self) -> int:
        """How many accounts there are, as of a few seconds ago at most."""
        now = trio.current_time()
        if now - self._counted_at > COUNT_SECONDS:
            rows = await taking_turns(self._realm.view.all(AccountRow, limit=2 * LIST_MAX))
            self._count, self._counted_at = sum(row.created is not None for row in rows), now
        return self._count

    def counted_anew(self) -> None:
        """There is another account: the number is to be read again."""
        self._counted_at = float("-inf")

    async def check_room(self) -> None:
        """Raise `conflict` where there are as many accounts as there may be."""
        if await self.count() >= self._realm.config.accounts_max:
            raise CallError(
                "conflict",
                f"This network has its {self._realm.config.accounts_max} accounts: raise `[auth] accounts_max`.",
                reason="accounts_max",
            )


def _enabling(view: View, row: AccountRow, by: str) -> list[Op]:
    if people.state(view, row) == "active":
        return []
    epoch = standing(view, row.id).epoch + 1
    approval: list[Op] = [AccountApprove(id=row.id, by=by)] if row.pending else []
    return [*approval, OwnerStanding(owner=row.id, epoch=epoch, active=True, by=by)]


def _disabling(view: View, row: AccountRow, by: str) -> list[Op]:
    if people.state(view, row) == "disabled":
        return []
    if people.is_active_admin(view, row) and all(admin.id == row.id for admin in people.active_admins(view)):
        raise CallError(
            "conflict",
            f"{row.name} is the last active administrator: add or enable another one first.",
            reason="last_admin",
            param="user",
        )
    return [OwnerStanding(owner=row.id, epoch=standing(view, row.id).epoch + 1, active=False, by=by)]
