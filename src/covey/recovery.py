"""Speaking with the network's recovery key: RECOVER_REMOVE and RECOVER_PROMOTE, served by every node.

What that key says is written into this node's own store, as a feed of its own that nobody can void. It spreads from
there as any other does: by the tails of an auth node. So a node without that role is let be made one, and nothing else.
"""

import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence

from covey.bus.bus import BusHandle
from covey.bus.caller import Caller
from covey.contracts.feeds import Op, Remove
from covey.contracts.membership import Member
from covey.contracts.recovery import RECOVER_PROMOTE, RECOVER_REMOVE, RecoverPromote, RecoverRemove
from covey.errors import CallError
from covey.roles.auth.nodes import find, promotion
from covey.roles.auth.role_names import checked_roles
from covey.store.entries import FeedId
from covey.store.feed_log import GENESIS_KEY, read_heads, read_verdict
from covey.store.feeds import Author
from covey.store.genesis import parse_recovery_key, read_genesis
from covey.store.identity import Identity
from covey.store.ingest import Ingested
from covey.store.kv import Batch, Reader
from covey.store.membership import AUTHOR_ROLE
from covey.store.rows import MemberRow
from covey.store.view import View
from covey.store.writer import Overlay, Store

log = logging.getLogger(__name__)

BY = "recovery"
"""Who did it, in the feeds."""


class Recovery:
    """Serves both.

    Args:
        bus: of any stamp.
        store: the node's.
        identity: its own key: let back in, it says what it had denied in the same batch.
        now: gives Unix seconds.
        has_auth: whether this node runs the auth role, so that what is said here spreads.
        promoted: told when this node itself was made an auth node.
    """

    def __init__(
        self,
        bus: BusHandle,
        store: Store,
        identity: Identity,
        now: Callable[[], float],
        *,
        has_auth: bool,
        promoted: Callable[[], Awaitable[None]],
    ) -> None:
        self._me = bus.me
        self._store = store
        self._identity = identity
        self._now = now
        self._has_auth = has_auth
        self._promoted = promoted
        bus.serve(RECOVER_REMOVE, self.remove)
        bus.serve(RECOVER_PROMOTE, self.promote)

    async def remove(self, caller: Caller, request: RecoverRemove) -> Member:
        """Serve RECOVER_REMOVE."""
        author = self._author(request.recovery_key)
        if not self._has_auth:
            raise _no_auth()

        def decide(reader: Reader) -> tuple[MemberRow, Sequence[Op]]:
            row = find(View(reader), request.node)
            if row.peer == self._me:
                message = f"{row.name} is this very node, and cannot remove itself: do it on another auth node."
                raise CallError("conflict", message, reason="self", param="node")
            return row, (Remove(peer=row.peer, cutoffs=standing_cutoffs(reader, row.peer), by=BY),)

        row = await self._say(author, decide)
        log.warning("The recovery key removed the node %s (%s).", row.name, row.peer)
        return row

    async def promote(self, caller: Caller, request: RecoverPromote) -> Member:
        """Serve RECOVER_PROMOTE."""
        author, roles = self._author(request.recovery_key), checked_roles(request.roles)

        def decide(reader: Reader) -> tuple[MemberRow, Sequence[Op]]:
            row = find(View(reader), request.node)
            if not self._has_auth and (row.peer != self._me or AUTHOR_ROLE not in roles):
                raise _no_auth()
            return row, promotion(row, roles, BY)

        row = await self._say(author, decide)
        log.warning("The recovery key lets the node %s run %s.", row.name, ", ".join(row.roles))
        if row.peer == self._me and not self._has_auth:
            await self._promoted()
        return row

    def _author(self, text: str) -> Author:
        """The recovery key as a writer of feeds, of a new one each time."""
        genesis = self._store.reader.get(GENESIS_KEY)
        if genesis is None:
            raise CallError("not_found", "This node belongs to no network yet.", reason="no_network")
        try:
            identity = Identity(bytes(parse_recovery_key(text)))
        except ValueError as error:
            raise CallError("invalid", f"This is not a recovery key: {error}.", param="recovery_key") from None
        if identity.peer_id != read_genesis(genesis).recovery_peer:
            message = "This is the recovery key of another network."
            raise CallError("forbidden", message, reason="wrong_network", param="recovery_key")
        return Author(identity, genesis, secrets.token_hex(8))

    async def _say(self, author: Author, decide: Callable[[Reader], tuple[MemberRow, Sequence[Op]]]) -> Member:
        """Decide and write in one commit; returns what has become of the machine."""

        def plan(reader: Reader) -> tuple[Batch, str]:
            row, ops = decide(reader)
            overlay, now = Overlay(reader), self._now()
            author.lay(overlay, ops, now)
            # Of two who removed each other this node may be the one that is back.
            own = Author(self._identity, reader.get(GENESIS_KEY) or b"")
            own.say_again(overlay, Ingested(), now)
            return list(overlay.changes.items()), row.peer

        peer = await self._store.commit(plan)
        row = View(self._store.reader).get(MemberRow, peer) or MemberRow(peer=peer)
        return Member(peer=row.peer, name=row.name, roles=row.roles, removed=row.removed)


def standing_cutoffs(reader: Reader, peer: str) -> dict[str, int]:
    """Where the feeds of an author end as far as they count now and this node holds them.

    Of two that removed each other, neither's word against the other counts: so the one that is removed here loses it
    for good, and the other is back.
    """
    verdict = read_verdict(reader)
    ends = ((FeedId.parse(feed), head.seq) for feed, head in read_heads(reader).items())
    return {str(feed): min(seq, verdict.limit(feed)) for feed, seq in ends if feed.author == peer}


def _no_auth() -> CallError:
    return CallError(
        "conflict",
        "This node does not run the role auth, so nobody would hear of it: do this on an auth node, or first make this"
        " one an auth node: covey nodes promote NAME --role auth --recovery-key-file FILE",
        reason="no_auth",
    )
