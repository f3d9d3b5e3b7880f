"""API keys: checking, making, listing and revoking them."""

import secrets
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from covey.bus.caller import Caller
from covey.contracts.auth import (
    LIST_MAX,
    AuthorizeActor,
    CreateKey,
    Identity,
    KeyInfo,
    KeyUsed,
    ListKeys,
    NewKey,
    RevokeKey,
)
from covey.contracts.auth import Keys as KeyList
from covey.contracts.feeds import KeyCreate, KeyRevoke, Op, OwnerStanding
from covey.contracts.keys import MINT_BYTES, mint
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.roles.auth import people
from covey.roles.auth.credentials import Person, bad_session, judge_session, read_key, who
from covey.roles.auth.key_rules import asked_scope, child_scope, creation
from covey.roles.auth.key_usage import KeyUsage
from covey.roles.auth.realm import Realm, taking_turns
from covey.store.key_check import KEY_AUTHOR, identity_of_key, key_state, restrictions, standing
from covey.store.rows import AccountRow, KeyRow
from covey.store.view import View

USED_KEYS_MAX = 10_000
"""In one report of a gateway."""


class Keys:
    """Serves AUTHORIZE, CREATE_KEY, LIST_KEYS, REVOKE_KEY and KEY_USED; VERIFY is `covey.store.replica`'s.

    Args:
        realm: what the parts of the role share.
        usage: when keys were last used.
        check_lease: raises `no_lease` unless this node may vouch for keys now.
    """

    def __init__(self, realm: Realm, usage: KeyUsage, check_lease: Callable[[], None]) -> None:
        self._realm = realm
        self._usage = usage
        self._check_lease = check_lease

    async def authorize(self, caller: Caller, request: AuthorizeActor) -> Identity:
        """Serve AUTHORIZE."""
        self._check_lease()
        view, now, actor = self._realm.view, self._realm.clock.now(), request.actor
        if actor.session and actor.key:
            raise CallError("invalid", "Act with a session or with a key, not with both.", param="actor")
        if actor.key:
            row, created = read_key(view, actor.key, now)
            return identity_of_key(row, created, standing(view, created.owner))
        session, account = judge_session(view, actor.session, now)
        if session.started is None:
            raise bad_session()
        return Identity(
            key_id=f"session:{account.id}",
            owner=account.id,
            role=account.role,
            expires_at=session.started.expires_at,
            owner_limits=standing(view, account.id).limits,
        )

    async def create_key(self, caller: Caller, request: CreateKey) -> NewKey:
        """Serve CREATE_KEY."""
        realm = self._realm
        person = who(realm.view, caller, request.actor, realm.clock.now())
        people.check_label(request.label)
        asked_scope(request, realm.now, realm.config.key_seconds_max)
        await self._check_room(_owner(realm.view, person, request))
        minted = mint(secrets.token_bytes(MINT_BYTES))

        def decide(view: View) -> Sequence[Op]:
            person = who(view, caller, request.actor, realm.clock.now())
            owner = _owner(view, person, request)
            scope = asked_scope(request, realm.now, realm.config.key_seconds_max)
            if person.key is not None and person.key.created is not None:
                scope = child_scope(person.key.created, scope)
            if scope.admin:
                _check_admin_key(view, person, owner)
            if view.get(KeyRow, minted.key_id) is not None:
                raise CallError("conflict", "This key's id exists already; try again.")  # once in 10**21
            created = KeyCreate(
                id=minted.key_id,
                owner=owner,
                digest=minted.digest,
                prefix=minted.prefix,
                label=request.label,
                models=scope.models,
                limits=scope.limits,
                created_at=realm.now,
                expires_at=scope.expires_at,
                by=person.by,
                admin=scope.admin,
            )
            return [*_operators_standing(view, owner), creation(scope, created)]

        receipt = await realm.feeds.append(decide)
        return NewKey(minted.key_id, minted.text, realm.holders.names(receipt))

    async def _check_room(self, owner: str) -> None:
        view, now, most = self._realm.view, self._realm.clock.now(), self._realm.config.keys_per_account_max

        def counts(row: KeyRow) -> bool:
            created = row.created
            return created is not None and created.owner == owner and key_state(view, row, created, now) == "active"

        if len(await taking_turns(view.all(KeyRow), counts)) >= most:
            raise CallError("conflict", f"There are {most} active keys already: revoke one first.", reason="keys_max")

    async def list_keys(self, caller: Caller, request: ListKeys) -> KeyList:
        """Serve LIST_KEYS."""
        view, now = self._realm.view, self._realm.clock.now()
        person = who(view, caller, request.actor, now)
        if request.everyone and not person.admin:
            raise CallError("forbidden", "Only an administrator may see everybody's keys.", param="everyone")
        everyone = request.everyone or (person.account == people.OPERATOR and person.admin)

        def visible(row: KeyRow) -> bool:
            return row.created is not None and (everyone or _concerns(person, row, row.created))

        rows = await taking_turns(view.all(KeyRow), visible)
        rows.sort(key=lambda row: (-row.created.created_at if row.created else 0, row.id))
        return KeyList(tuple(await taking_turns(self._info(view, row) for row in rows[:LIST_MAX])))

    async def revoke_key(self, caller: Caller, request: RevokeKey) -> KeyInfo:
        """Serve REVOKE_KEY: `not_found` for a key that is not there or is none of one's business."""
        realm = self._realm

        def decide(view: View) -> Sequence[Op]:
            person = who(view, caller, request.actor, realm.clock.now())
            row = view.get(KeyRow, request.id) if request.id.isascii() else None
            if row is None or row.created is None or not (person.admin or _concerns(person, row, row.created)):
                message = f"There is no key {request.id[:64]!r}; `covey keys list` shows which there are."
                raise CallError("not_found", message, param="id")
            return [] if row.revoked else [KeyRevoke(id=row.id, by=person.by)]

        receipt = await realm.feeds.append(decide)
        spread = await realm.holders.everywhere(receipt.heads)
        row = realm.view.get(KeyRow, request.id)
        if row is None:
            raise AssertionError(request.id)
        return replace(self._info(realm.view, row), held_by=spread.held_by, not_held_by=spread.not_held_by)

    async def key_used(self, caller: Caller, request: KeyUsed) -> Nothing:
        """Serve KEY_USED."""
        if len(request.used_at) > USED_KEYS_MAX:
            raise CallError("too_large", f"Report at most {USED_KEYS_MAX} keys at once.", param="used_at")
        self._usage.record(self._realm.view, request.used_at, self._realm.now)
        return Nothing()

    def _info(self, view: View, row: KeyRow) -> KeyInfo:
        created = row.created
        if created is None:
            raise AssertionError(row.id)
        owner = view.get(AccountRow, created.owner)
        node_labels, routes = restrictions(created)
        return KeyInfo(
            id=row.id,
            prefix=created.prefix,
            owner=created.owner,
            owner_name=owner.name if owner is not None else created.owner,
            label=created.label,
            models=created.models,
            limits=created.limits,
            state=key_state(view, row, created, self._realm.clock.now()),
            created_at=created.created_at,
            expires_at=created.expires_at,
            last_used_at=self._usage.last_used_at(row.id),
            admin=created.admin,
            node_labels=node_labels,
            routes=routes,
        )


def _concerns(person: Person, row: KeyRow, created: KeyCreate) -> bool:
    """Whether a key is this person's own; to one who acts with a key, that key and those made with it."""
    if person.key is None:
        return created.owner == person.account
    return row.id == person.key.id or created.by == KEY_AUTHOR + person.key.id


def _owner(view: View, person: Person, request: CreateKey) -> str:
    """Whose the new key will be."""
    if not request.user:
        return person.account
    if person.admin:
        row = people.find(view, request.user)
        if people.state(view, row) != "active":
            raise CallError("conflict", f"{row.name} is not active: enable them first.", param="user")
        return row.id
    own = people.account(view, person.account)
    if own is None or request.user not in (own.id, own.name):
        raise CallError("forbidden", "Only an administrator may make a key for somebody else.", param="user")
    return own.id


def _check_admin_key(view: View, person: Person, owner: str) -> None:
    if not person.admin:
        raise CallError("forbidden", "Only an administrator may make an administrator's key.", param="admin")
    if owner != people.OPERATOR and not people.is_active_admin(view, view.get(AccountRow, owner)):
        raise CallError("invalid", "An administrator's key needs an administrator as its owner.", param="admin")


def _operators_standing(view: View, owner: str) -> list[Op]:
    """The operator has no account, and stands from their first key on."""
    if owner != people.OPERATOR or standing(view, owner).epoch:
        return []
    return [OwnerStanding(owner=owner, epoch=1, active=True, by=people.OPERATOR)]
