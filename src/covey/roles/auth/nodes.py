"""The machines of the network: finding them by name, naming, renaming, labelling and removing them."""

import logging
import re
from collections.abc import Sequence

from msgspec.structs import replace

from covey.bus.caller import Caller
from covey.contracts.feeds import Admit, Label, Op, Remove, Rename
from covey.contracts.membership import (
    NODE_LABELS_MAX,
    NODE_NAME_PATTERN,
    LabelNode,
    ListMinted,
    Member,
    Minted,
    PromoteNode,
    RemoveNode,
    RenameNode,
)
from covey.errors import CallError
from covey.roles.auth.credentials import administrator
from covey.roles.auth.key_rules import check_label
from covey.roles.auth.minted import minted_by, revocations
from covey.roles.auth.realm import Realm
from covey.roles.auth.role_names import checked_roles
from covey.roles.base import ClusterDoor
from covey.store.entries import FeedId
from covey.store.feed_log import read_heads
from covey.store.feeds import Decision, Receipt
from covey.store.kv import Reader
from covey.store.membership import AUTHOR_ROLE, is_member
from covey.store.rows import MemberRow
from covey.store.view import View

log = logging.getLogger(__name__)

NAME_CHARS_MAX = 63
KEYS_PER_ENTRY = 256
"""That are revoked at once."""
NAMELESS = "node"
"""What a machine is called that asks for nothing that could be a name."""

_NAME = re.compile(NODE_NAME_PATTERN)
_PEER = re.compile(r"12D3KooW[1-9A-HJ-NP-Za-km-z]{44}")


class Nodes:
    """Serves REMOVE_NODE, PROMOTE_NODE, RENAME_NODE, LABEL_NODE and LIST_MINTED.

    Args:
        realm: what the auth role's parts share.
        cluster: reaches the other auth nodes.
        me: this node's peer id.
    """

    def __init__(self, realm: Realm, cluster: ClusterDoor, me: str) -> None:
        self._realm = realm
        self._cluster = cluster
        self._me = me

    async def remove_node(self, caller: Caller, request: RemoveNode) -> Member:
        """Serve REMOVE_NODE."""
        realm = self._realm
        administrator(realm.view, caller, request.actor, realm.clock.now())
        # What the others have heard of it counts: the cutoff is the highest head that any of them holds.
        await self._cluster.hear_all(but=find(realm.view, request.node).peer)

        def decide(reader: Reader) -> Decision[Member]:
            view = View(reader)
            person = administrator(view, caller, request.actor, realm.clock.now())
            row = find(view, request.node)
            gone = Member(peer=row.peer, name=row.name, roles=row.roles, removed=True, labels=row.labels)
            if row.removed:
                return Decision((), gone)
            self._check_removable(view, row)
            return Decision((Remove(peer=row.peer, cutoffs=cutoffs(reader, row.peer), by=person.by),), gone)

        receipt = await realm.feeds.append_with(decide)
        gone = receipt.result
        log.info("The node %s (%s) is removed.", gone.name, gone.peer)
        if request.revoke_keys:
            await self._revoke_keys(caller, request, gone.peer)
        return replace(gone, held_by=realm.holders.names(receipt))

    async def _revoke_keys(self, caller: Caller, request: RemoveNode, peer: str) -> None:
        """Revoke what a node has made that is removed by now, so that no further ones come."""
        realm = self._realm
        keys = [*(await minted_by(realm.feeds.reader, peer)).keys]
        for start in range(0, len(keys), KEYS_PER_ENTRY):
            some = keys[start : start + KEYS_PER_ENTRY]

            def decide(view: View, some: Sequence[str] = some) -> Sequence[Op]:
                return revocations(view, some, administrator(view, caller, request.actor, realm.clock.now()).by)

            await realm.feeds.append(decide)
        log.info("The %d keys that it made are revoked.", len(keys))

    async def list_minted(self, caller: Caller, request: ListMinted) -> Minted:
        """Serve LIST_MINTED."""
        realm = self._realm
        administrator(realm.view, caller, request.actor, realm.clock.now())
        row = find(realm.view, request.node)
        return (await minted_by(realm.feeds.reader, row.peer)).shown(row)

    async def promote_node(self, caller: Caller, request: PromoteNode) -> Member:
        """Serve PROMOTE_NODE. With roles that it has, there is nothing to do."""
        realm = self._realm
        administrator(realm.view, caller, request.actor, realm.clock.now())
        roles, peer = checked_roles(request.roles), find(realm.view, request.node).peer

        def decide(view: View) -> Sequence[Op]:
            person = administrator(view, caller, request.actor, realm.clock.now())
            return promotion(find(view, peer), roles, person.by)

        changed = self._changed(peer, await realm.feeds.append(decide))
        log.info("The node %s may run %s.", changed.name, ", ".join(changed.roles))
        return changed

    def _check_removable(self, view: View, row: MemberRow) -> None:
        others = (other for other in view.all(MemberRow) if is_member(other) and other.peer != row.peer)
        if AUTHOR_ROLE in row.roles and not any(AUTHOR_ROLE in other.roles for other in others):
            message = f"{row.name} is the last auth node, which alone knows people and keys: let in another one first."
            raise CallError("conflict", message, reason="last_auth", param="node")
        if row.peer == self._me:
            message = f"{row.name} is the node that answers, and cannot remove itself: do it on another auth node."
            raise CallError("conflict", message, reason="self", param="node")

    async def rename_node(self, caller: Caller, request: RenameNode) -> Member:
        """Serve RENAME_NODE."""
        realm = self._realm
        administrator(realm.view, caller, request.actor, realm.clock.now())
        check_name(request.name)
        peer = find(realm.view, request.node).peer

        def decide(view: View) -> Sequence[Op]:
            person = administrator(view, caller, request.actor, realm.clock.now())
            row = find(view, peer)
            if row.removed:
                raise CallError("conflict", f"{row.name} was removed.", reason="removed", param="node")
            if request.name.casefold() in names(view, but=peer):
                message = f"Another node is called {request.name}: choose another name, or rename that one first."
                raise CallError("conflict", message, reason="name_taken", param="name")
            return () if row.name == request.name else (Rename(peer=peer, name=request.name, by=person.by),)

        receipt = await realm.feeds.append(decide)
        return self._changed(peer, receipt)

    async def label_node(self, caller: Caller, request: LabelNode) -> Member:
        """Serve LABEL_NODE."""
        realm = self._realm
        administrator(realm.view, caller, request.actor, realm.clock.now())
        for param, asked in (("add", request.add), ("remove", request.remove)):
            for label in asked:
                check_label(label, param)
        if both := set(request.add) & set(request.remove):
            raise CallError("invalid", f"Give or take {min(both)}, not both.", param="add")
        peer = find(realm.view, request.node).peer

        def decide(view: View) -> Sequence[Op]:
            person = administrator(view, caller, request.actor, realm.clock.now())
            return labelling(find(view, peer), request.add, request.remove, person.by)

        return self._changed(peer, await realm.feeds.append(decide))

    def _changed(self, peer: str, receipt: Receipt[None]) -> Member:
        """The answer to a change of a machine: what it is now, and who has it."""
        row, held_by = find(self._realm.view, peer), self._realm.holders.names(receipt)
        return Member(row.peer, row.name, row.roles, removed=row.removed, held_by=held_by, labels=row.labels)


def find(view: View, node: str) -> MemberRow:
    """The machine with this peer id or name, a removed one too.

    Raises:
        CallError: `not_found`; `conflict` where several that are equally likely to be meant have the name.
    """
    if _PEER.fullmatch(node):
        known = view.get(MemberRow, node)
        found = [known] if known is not None else []
    else:
        named = [row for row in view.all(MemberRow) if row.name.casefold() == node.casefold()]
        found = [row for row in named if not row.removed] or named
    if not found:
        message = f"There is no node {node[:64]!r}; `covey nodes list` shows which there are."
        raise CallError("not_found", message, param="node")
    if len(found) > 1:
        message = f"Several nodes are called {node[:64]!r}: say which one by its peer id."
        raise CallError("conflict", message, reason="ambiguous", param="node")
    return found[0]


def promotion(row: MemberRow, roles: Sequence[str], by: str) -> list[Op]:
    """What admits a member with further roles; nothing where it has them all.

    Raises:
        CallError: `conflict`: it was removed.
    """
    if row.removed:
        raise CallError("conflict", f"{row.name} was removed.", reason="removed", param="node")
    wanted = tuple(sorted({*row.roles, *roles}))
    return [] if wanted == tuple(sorted(row.roles)) else [Admit(peer=row.peer, roles=wanted, name=row.name, by=by)]


def labelling(row: MemberRow, add: Sequence[str], remove: Sequence[str], by: str) -> list[Op]:
    """What gives a member labels and takes others; nothing where it is as it shall be.

    Raises:
        CallError: `conflict`: it was removed, or would have too many.
    """
    if row.removed:
        raise CallError("conflict", f"{row.name} was removed.", reason="removed", param="node")
    has, wanted = set(row.labels), (set(row.labels) | set(add)) - set(remove)
    if len(wanted) > NODE_LABELS_MAX:
        message = f"A node has at most {NODE_LABELS_MAX} labels: take some away first."
        raise CallError("conflict", message, reason="labels_max", param="add")
    changes = {label: label in wanted for label in sorted(has ^ wanted)}
    return [Label(peer=row.peer, labels=changes, by=by)] if changes else []


def names(view: View, *, but: str = "") -> set[str]:
    """The names that members have, in lower case: two must not differ by it alone. `but`: a peer to leave out."""
    return {row.name.casefold() for row in view.all(MemberRow) if is_member(row) and row.peer != but}


def check_name(name: str) -> None:
    """Raise `invalid` for what may not be a node's name; a peer id may not, or it could pass for another node's."""
    if _NAME.fullmatch(name) is None or _PEER.fullmatch(name):
        message = f"A node's name is 1 to {NAME_CHARS_MAX} letters, digits, and . _ - after the first."
        raise CallError("invalid", message, param="name")


def free_name(view: View, wanted: str) -> str:
    """What a new machine is called: what it wants, made well-formed, with the first number that makes it unique."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted[: 4 * NAME_CHARS_MAX]).strip("._-")[:NAME_CHARS_MAX]
    if not name or _PEER.fullmatch(name):
        name = NAMELESS
    taken, candidate, number = names(view), name, 1
    while candidate.casefold() in taken:
        number += 1
        suffix = f"-{number}"
        candidate = name[: NAME_CHARS_MAX - len(suffix)] + suffix
    return candidate


def cutoffs(reader: Reader, peer: str) -> dict[str, int]:
    """Where the feeds of an author end, as far as this node holds them."""
    return {feed: head.seq for feed, head in read_heads(reader).items() if FeedId.parse(feed).author == peer}
