"""Letting machines in: what a machine that is not a member yet is answered."""

import logging
from dataclasses import dataclass

import trio

from covey.contracts.feeds import Admit
from covey.contracts.joining import JOIN_BYTES_MAX, JoinAnswer, JoinRequest, Welcome
from covey.contracts.membership import InviteUse
from covey.errors import CallError
from covey.roles.auth.backoff import Backoff, Pace, too_many
from covey.roles.auth.node_invites import InviteBook, check_open, unknown_invite
from covey.roles.auth.nodes import free_name
from covey.roles.auth.realm import Realm
from covey.roles.base import ClusterDoor
from covey.store.feed_log import GENESIS_KEY
from covey.store.feeds import Decision
from covey.store.ingest import batches_after
from covey.store.kv import Batch, Reader
from covey.store.membership import is_member, removed
from covey.store.rows import MemberRow
from covey.store.view import View
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

MEMBERS_BYTES_MAX = JOIN_BYTES_MAX - 512 * 1024
"""How much of an answer the members feeds may take: the rest is for addresses and what holds it together."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """What a machine is from now on."""

    name: str
    roles: tuple[str, ...]


class Admission:
    """Answers JoinRequests (`covey.contracts.joining`).

    Args:
        realm: what the auth role's parts share.
        book: this node's invites.
        cluster: knows where members are.
        pace: how each peer's attempts are held back.
    """

    def __init__(self, realm: Realm, book: InviteBook, cluster: ClusterDoor, pace: Pace) -> None:
        self._realm = realm
        self._book = book
        self._cluster = cluster
        self._attempts = Backoff(pace)

    async def welcome(self, peer: PeerId, request: JoinRequest) -> JoinAnswer:
        """Let a machine in, or tell it why not. `peer`: as the transport has proved it.

        Never raises a `CallError`: it is the answer's `refusal`. With no secret, a machine asks what it is here: the
        refusal's `reason` is then `member`, `not_member` or `removed`.
        """
        try:
            return JoinAnswer(welcome=await self._welcome(peer, request))
        except CallError as error:
            if request.secret:
                log.warning("The machine %s was not let in: %s", peer, error.message)
            return JoinAnswer(refusal=error.problem)

    async def _welcome(self, peer: PeerId, request: JoinRequest) -> Welcome:
        realm = self._realm
        if request.network_id != realm.feeds.network_id:
            raise CallError("forbidden", "This node belongs to another network.", reason="wrong_network")
        if not request.secret:
            raise _standing(realm.view.get(MemberRow, peer))
        self._pace(peer)
        self._decide(realm.feeds.reader, peer, request)  # what is refused costs no turn of the writer
        await self._members()  # nor is an invite burnt for an answer that is too long to send

        admitted = (await realm.feeds.append_with(lambda reader: self._decide(reader, peer, request))).result
        self._attempts.clear(peer)
        log.info("The machine %s is a member: %s, with %s.", peer, admitted.name, ", ".join(admitted.roles))
        return Welcome(
            genesis=realm.feeds.reader.get(GENESIS_KEY) or b"",
            members=await self._members(),
            addresses=self._cluster.addresses(),
            name=admitted.name,
            roles=admitted.roles,
        )

    def _pace(self, peer: PeerId) -> None:
        """Count an attempt: it is taken back if it succeeds."""
        now = trio.current_time()
        if (wait_seconds := self._attempts.wait_seconds(peer, now)) > 0:
            raise too_many(wait_seconds, "joins")
        self._attempts.charge(peer, now)

    def _decide(self, reader: Reader, peer: PeerId, request: JoinRequest) -> Decision[Admitted]:
        """Admit and burn at once, or neither. A member's invite is burnt only for what it adds to its roles."""
        view, realm = View(reader), self._realm
        row = view.get(MemberRow, peer)
        if row is not None and row.removed:
            raise removed(row)
        invite = self._book.of_secret(reader, request.secret)
        if invite is None:
            raise unknown_invite()
        roles = invite.roles
        if row is not None and is_member(row):
            roles = tuple(sorted({*row.roles, *invite.roles}))
            if roles == tuple(sorted(row.roles)):  # it may not have heard the first answer
                return Decision((), Admitted(row.name, row.roles))
        check_open(view, invite, realm.clock.now())
        name = row.name if row is not None and is_member(row) else free_name(view, request.name)
        burnt: Batch = self._book.put(invite.burnt(InviteUse(peer=peer, name=name, at=realm.now)))
        admit = Admit(peer=peer, roles=roles, name=name, by=invite.by)
        return Decision((admit,), Admitted(name, roles), burnt)

    async def _members(self) -> tuple[bytes, ...]:
        """Every entry of the members feeds; `too_large` for more than an answer holds."""
        entries: list[bytes] = []
        size = 0
        for batch in batches_after(self._realm.feeds.reader, "members", {}):
            entries += batch
            size += sum(len(entry) + 8 for entry in batch)
            if size > MEMBERS_BYTES_MAX:
                message = "This network's history has grown too long to be sent to a new machine: upgrade Covey."
                raise CallError("too_large", message)
            await trio.lowlevel.checkpoint()
        return tuple(entries)


def _standing(row: MemberRow | None) -> CallError:
    """What a machine is here, as the refusal of a request that shows no invite."""
    if row is not None and row.removed:
        return removed(row)
    if is_member(row):
        return CallError("conflict", "This machine is a member of the network already.", reason="member")
    message = "This machine is not a member of the network. Ask an administrator for an invite: covey invite"
    return CallError("forbidden", message, reason="not_member")
