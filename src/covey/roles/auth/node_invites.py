"""Invites for machines: made, listed, revoked and judged by the node that issued them.

They lie in this node's own corner of the store and never leave it: nobody else can burn one.
"""

import hmac
import logging
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256

import msgspec
import trio
from msgspec.structs import replace

from covey.bus.bus import BusHandle
from covey.bus.caller import Caller
from covey.cluster.invites import CHARS_MAX, SECRET_BYTES, Invite, format_invite
from covey.contracts.keys import base62
from covey.contracts.membership import (
    INVITE_SECONDS_MAX,
    INVITE_USES_MAX,
    INVITE_USES_SHOWN,
    ISSUED_INVITES,
    REVOKE_ISSUED,
    InviteInfo,
    InviteNode,
    Invites,
    InviteUse,
    ListInvites,
    NodeInvite,
    RevokeInvite,
    RevokeIssued,
)
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.roles.auth import people
from covey.roles.auth.credentials import administrator
from covey.roles.auth.realm import Realm
from covey.roles.auth.role_names import checked_roles
from covey.roles.base import ClusterDoor
from covey.store.feeds import Decision
from covey.store.kv import Batch, Reader
from covey.store.rows import AccountRow
from covey.store.view import View
from covey.store.writer import Local
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

AREA = "invites"
INVITES_OPEN_MAX = 100
INVITES_OVER_MAX = 100
"""How many that are used up, revoked or expired are remembered, to tell whoever shows one what became of it."""
ID_CHARS = 12


class InviteRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An invite as its issuer keeps it. `digest`: SHA-256 of the secret. `number`: they are counted up, as made.

    `used`: the latest `INVITE_USES_SHOWN`. `by`: who made it, as in the feeds.
    """

    id: str
    number: int
    digest: bytes
    roles: tuple[str, ...]
    uses: int
    uses_left: int
    used: tuple[InviteUse, ...] = ()
    expires_at: int
    revoked: bool = False
    by: str
    made_at: int = 0

    def is_open(self, now: float) -> bool:
        """Whether it could still let somebody in."""
        return self.uses_left > 0 and not self.revoked and now < self.expires_at

    def burnt(self, use: InviteUse) -> "InviteRecord":
        """The same, used once more."""
        return replace(self, uses_left=self.uses_left - 1, used=(*self.used, use)[-INVITE_USES_SHOWN:])


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(InviteRecord).decode


class InviteBook:
    """The records of this node, read from and written within plans. `local`: the corner `AREA` of the store."""

    def __init__(self, local: Local) -> None:
        self._local = local

    def all(self, reader: Reader) -> list[InviteRecord]:
        """Newest first; a few hundred at most."""
        records = (_decode(value) for _, value in reader.scan(self._local.prefix))
        return sorted(records, key=lambda record: record.number, reverse=True)

    def get(self, reader: Reader, invite_id: str) -> InviteRecord | None:
        """The one of this id."""
        if not invite_id.isascii():
            return None
        value = reader.get(self._local.key(invite_id.encode()))
        return None if value is None else _decode(value)

    def of_secret(self, reader: Reader, secret: bytes) -> InviteRecord | None:
        """The one with this secret, whatever has become of it."""
        digest = sha256(secret).digest()
        record = self.get(reader, id_of(digest))
        return record if record is not None and hmac.compare_digest(record.digest, digest) else None

    def put(self, record: InviteRecord) -> Batch:
        """What writes it."""
        return [(self._local.key(record.id.encode()), _encode(record))]

    def add(self, reader: Reader, record: InviteRecord, now: float) -> Batch:
        """What writes a new one, and forgets those that were over longest ago.

        Raises:
            CallError: `conflict`: there are as many open ones as there may be.
        """
        records = self.all(reader)
        over = [known for known in records if not known.is_open(now)]
        if (open_count := len(records) - len(over)) >= INVITES_OPEN_MAX:
            message = f"There are {open_count} open invites already: covey invite revoke ID, or wait until some expire."
            raise CallError("conflict", message, reason="invites_open_max")
        forgotten = [(self._local.key(old.id.encode()), None) for old in over[INVITES_OVER_MAX:]]
        number = 1 + max((known.number for known in records), default=0)
        return [*self.put(replace(record, number=number)), *forgotten]


class NodeInvites:
    """Serves INVITE_NODE, LIST_INVITES, REVOKE_INVITE, ISSUED_INVITES and REVOKE_ISSUED.

    Args:
        realm: what the auth role's parts share.
        book: where the invites are kept.
        cluster: tells the addresses that go into an invite.
        bus: reaches other auth nodes, which have invites of their own.
    """

    def __init__(self, realm: Realm, book: InviteBook, cluster: ClusterDoor, bus: BusHandle) -> None:
        self._realm = realm
        self._book = book
        self._cluster = cluster
        self._bus = bus

    async def invite_node(self, caller: Caller, request: InviteNode) -> NodeInvite:
        """Serve INVITE_NODE. This node listens for other machines from now on."""
        realm = self._realm
        administrator(realm.view, caller, request.actor, realm.clock.now())
        roles = checked_roles(request.roles)
        _check_bounds(request)
        addresses = await self._cluster.open()
        secret, expires_at = secrets.token_bytes(SECRET_BYTES), realm.now + request.expires_seconds
        digest = sha256(secret).digest()
        token = _token(
            Invite(
                network_id=bytes.fromhex(realm.feeds.network_id),
                issuer=self._bus.me,
                addresses=addresses,
                roles=roles,
                expires_at=expires_at,
                secret=secret,
            )
        )

        def decide(reader: Reader) -> Decision[InviteRecord]:
            person = administrator(View(reader), caller, request.actor, realm.clock.now())
            record = InviteRecord(
                id=id_of(digest),
                number=0,
                digest=digest,
                roles=roles,
                uses=request.uses,
                uses_left=request.uses,
                expires_at=expires_at,
                by=person.by,
                made_at=realm.now,
            )
            return Decision((), record, self._book.add(reader, record, realm.clock.now()))

        record = (await realm.feeds.append_with(decide)).result
        log.info("%s made the invite %s for %s, %d times.", record.by, record.id, ", ".join(roles), record.uses)
        return NodeInvite(id=record.id, token=token, expires_at=expires_at)

    async def list_invites(self, caller: Caller, request: ListInvites) -> Invites:
        """Serve LIST_INVITES: those of every auth node that answers."""
        realm = self._realm
        administrator(realm.view, caller, request.actor, realm.clock.now())
        found, silent = list((await self.issued_invites(caller, Nothing())).invites), list[str]()

        async def ask(peer: PeerId) -> None:
            try:
                found.extend((await self._bus.call(ISSUED_INVITES, Nothing(), to=peer)).invites)
            except CallError as error:
                log.debug("No invites from %s: %s", peer, error)
                silent.append(self._bus.name_of(peer))

        async with trio.open_nursery() as nursery:
            for peer in self._others():
                nursery.start_soon(ask, peer)
        found.sort(key=lambda invite: -invite.made_at)  # each node gives its own newest first
        return Invites(tuple(found), tuple(sorted(silent)))

    def _others(self) -> list[PeerId]:
        return [peer for peer in self._bus.serving(ISSUED_INVITES) if peer != self._bus.me]

    async def issued_invites(self, caller: Caller, request: Nothing) -> Invites:
        """Serve ISSUED_INVITES."""
        return Invites(tuple(self._shown(record) for record in self._book.all(self._realm.feeds.reader)))

    def _shown(self, record: InviteRecord) -> InviteInfo:
        return InviteInfo(
            id=record.id,
            issuer=self._bus.me,
            roles=record.roles,
            uses_left=record.uses_left,
            used=record.used,
            expires_at=record.expires_at,
            revoked=record.revoked,
            made_at=record.made_at,
        )

    async def revoke_invite(self, caller: Caller, request: RevokeInvite) -> Nothing:
        """Serve REVOKE_INVITE. Revoking twice is no error."""
        realm = self._realm
        person = administrator(realm.view, caller, request.actor, realm.clock.now())
        wish = RevokeIssued(request.id, person.by)
        try:
            return await self.revoke_issued(caller, wish)
        except CallError as error:
            if error.code != "not_found":
                raise
            unknown = error
        for peer in self._others():
            try:
                return await self._bus.call(REVOKE_ISSUED, wish, to=peer)
            except CallError as error:
                log.debug("%s did not revoke the invite: %s", peer, error)
        raise unknown

    async def revoke_issued(self, caller: Caller, request: RevokeIssued) -> Nothing:
        """Serve REVOKE_ISSUED."""

        def decide(reader: Reader) -> Decision[None]:
            record = self._book.get(reader, request.id)
            if record is None:
                message = "No auth node that answers made such an invite; `covey invite list` shows which there are."
                raise CallError("not_found", message, param="id")
            return Decision((), None, self._book.put(replace(record, revoked=True)))

        await self._realm.feeds.append_with(decide)
        log.info("%s revoked the invite %s.", request.by, request.id)
        return Nothing()


def id_of(digest: bytes) -> str:
    """The public id of an invite: 71 bits of its secret's digest, so that it is found by its secret at once."""
    return base62(int.from_bytes(digest), ID_CHARS)


def unknown_invite() -> CallError:
    """The one answer for every secret that no invite of this node has."""
    return _refused("invite_unknown", "This invite is not one of this node's.")


def check_open(view: View, record: InviteRecord, now: float) -> None:
    """Raise `forbidden` unless an invite whose secret was shown still lets somebody in. Pure.

    An invite is its maker's word: it is worth nothing once they administer no more.
    """
    if record.uses_left <= 0:
        last = record.used[-1]
        when = datetime.fromtimestamp(last.at, UTC).strftime("%Y-%m-%d at %H:%M:%S UTC")
        times = "" if record.uses == 1 else f" {record.uses} times, the last time"
        raise _refused("invite_used", f"This invite was used{times} by {last.name} on {when}.")
    if record.revoked:
        raise _refused("invite_revoked", "This invite was revoked.")
    if now >= record.expires_at:
        raise _refused("invite_expired", "This invite has expired.")
    if record.by != people.OPERATOR and not people.is_active_admin(view, view.get(AccountRow, record.by)):
        raise _refused("invite_revoked", "Whoever made this invite is no administrator any more.")


def _refused(reason: str, what: str) -> CallError:
    return CallError("forbidden", f"{what} Ask an administrator for a new one: covey invite", reason=reason)


def _check_bounds(request: InviteNode) -> None:
    if not 1 <= request.uses <= INVITE_USES_MAX:
        raise CallError("invalid", f"An invite lets in 1 to {INVITE_USES_MAX} machines.", param="uses")
    if not 1 <= request.expires_seconds <= INVITE_SECONDS_MAX:
        days = INVITE_SECONDS_MAX // (24 * 3600)
        raise CallError("invalid", f"An invite lasts from a second to {days} days.", param="expires_seconds")


def _token(invite: Invite) -> str:
    """The line, with as many of the addresses, from the first one, as it has room for."""
    for shorter in _with_fewer_addresses(invite):
        token = format_invite(shorter)
        if len(token) <= CHARS_MAX:
            return token
    raise CallError(
        "conflict",
        "This node has no address at which other machines could reach it: set `[network] announce`.",
        reason="no_address",
    )


def _with_fewer_addresses(invite: Invite) -> Iterator[Invite]:
    for count in range(len(invite.addresses), 0, -1):
        yield replace(invite, addresses=invite.addresses[:count])
