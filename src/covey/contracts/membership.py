"""How machines come in, are listed, and leave: served by auth nodes, whose `members` feed is the membership.

Only membership admits; addresses are hints. A call made for a person carries that person's credential (`Actor`).
"""

import msgspec

from covey.contracts.auth import Actor
from covey.contracts.method import Nothing, Party, Unary

INVITE_USES_MAX = 1_000
INVITE_SECONDS_MAX = 30 * 24 * 3600
INVITE_USES_SHOWN = 20
MINTED_SHOWN = 5
NODE_NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
"""What a node may be called. No two members' names are the same, whatever their case."""
NODE_LABEL_PATTERN = r"[a-z0-9-]{1,32}"
"""What a node may be labelled with."""
NODE_LABELS_MAX = 16
ROLE_NAME_PATTERN = r"[a-z][a-z0-9_-]{0,31}"
"""A role's name, a plug-in's too; never that of a `Party` which is no role."""
ADMINISTRATORS: frozenset[Party] = frozenset({"web", "operator", "member"})
"""From another node than an auth node, the operator calls as `member`, with an administrator's key."""


class InviteNode(msgspec.Struct, frozen=True):
    """Let machines in: `uses` of them, with these roles, for a while."""

    actor: Actor
    roles: tuple[str, ...] = ("inference",)
    expires_seconds: int = 3600
    uses: int = 1


class NodeInvite(msgspec.Struct, frozen=True):
    """`token` is the one line for `covey join`; it is shown this once. `expires_at` in Unix seconds."""

    id: str
    token: str
    expires_at: int


INVITE_NODE = Unary("auth.invite_node", InviteNode, NodeInvite, access=ADMINISTRATORS)


class InviteUse(msgspec.Struct, frozen=True):
    """Who came in with an invite, and when (Unix seconds)."""

    peer: str
    name: str
    at: int


class InviteInfo(msgspec.Struct, frozen=True):
    """An invite without its secret. `issuer` is the node that alone can burn it.

    `used`: the latest `INVITE_USES_SHOWN`, in their order. Times in Unix seconds; `made_at` 0 for not known.
    """

    id: str
    issuer: str
    roles: tuple[str, ...]
    uses_left: int
    used: tuple[InviteUse, ...]
    expires_at: int
    revoked: bool
    made_at: int = 0


class Invites(msgspec.Struct, frozen=True, omit_defaults=True):
    """Newest first; of those that are over, only the latest. `silent`: auth nodes that did not tell theirs."""

    invites: tuple[InviteInfo, ...]
    silent: tuple[str, ...] = ()


class ListInvites(msgspec.Struct, frozen=True):
    """Administrators only."""

    actor: Actor


LIST_INVITES = Unary("auth.list_invites", ListInvites, Invites, access=ADMINISTRATORS, idempotent=True)


class RevokeInvite(msgspec.Struct, frozen=True):
    """Whoever came in already stays: remove the node for that."""

    actor: Actor
    id: str


REVOKE_INVITE = Unary("auth.revoke_invite", RevokeInvite, Nothing, access=ADMINISTRATORS)
"""Any auth node passes it on to the issuer."""

ISSUED_INVITES = Unary(
    "auth.issued_invites", Nothing, Invites, access=frozenset({"auth"}), timeout_seconds=2, idempotent=True
)
"""Those that the answering node issued itself."""


class RevokeIssued(msgspec.Struct, frozen=True):
    """`by`: on whose behalf, as the asking auth node has checked."""

    id: str
    by: str


REVOKE_ISSUED = Unary("auth.revoke_issued", RevokeIssued, Nothing, access=frozenset({"auth"}), timeout_seconds=5)
"""`not_found` where the answering node did not issue it."""


class Member(msgspec.Struct, frozen=True):
    """A machine that was admitted. `held_by`: of a change, the other nodes that had it by then, by name.

    `labels`: what an administrator gave it, sorted.
    """

    peer: str
    name: str
    roles: tuple[str, ...]
    removed: bool = False
    held_by: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


class RemoveNode(msgspec.Struct, frozen=True, omit_defaults=True):
    """`node` is a name or a peer id. For ever: that machine can come back only with a new identity and invite.

    `revoke_keys`: with the keys that it made, too; of a node that was removed before, those alone.
    """

    actor: Actor
    node: str
    revoke_keys: bool = False


REMOVE_NODE = Unary("auth.remove_node", RemoveNode, Member, access=ADMINISTRATORS, timeout_seconds=60)


class PromoteNode(msgspec.Struct, frozen=True):
    """Admit a member with further roles, which it takes up by itself. `node` is a name or a peer id."""

    actor: Actor
    node: str
    roles: tuple[str, ...]


PROMOTE_NODE = Unary("auth.promote_node", PromoteNode, Member, access=ADMINISTRATORS)
"""Roles are never taken away again but by removing the machine."""


class ListMinted(msgspec.Struct, frozen=True):
    """Ask what a node has made, before it is removed. `node` is a name or a peer id."""

    actor: Actor
    node: str


class Made(msgspec.Struct, frozen=True):
    """How many, and the names of the first `MINTED_SHOWN`."""

    count: int
    names: tuple[str, ...]


class Minted(msgspec.Struct, frozen=True, kw_only=True):
    """What an auth node has made that still counts: keys that are not revoked, open invitations, machines that are
    members. Of a node that is none, nothing.
    """

    peer: str
    name: str
    roles: tuple[str, ...]
    keys: Made
    accounts: Made
    invitations: Made
    machines: Made


LIST_MINTED = Unary("auth.list_minted", ListMinted, Minted, access=ADMINISTRATORS, idempotent=True)


class RenameNode(msgspec.Struct, frozen=True):
    """Give a node another name, which no other member may hold."""

    actor: Actor
    node: str
    name: str


RENAME_NODE = Unary("auth.rename_node", RenameNode, Member, access=ADMINISTRATORS)


class LabelNode(msgspec.Struct, frozen=True, omit_defaults=True):
    """Give a node labels, and take some away. `node` is a name or a peer id.

    Keys may be held to nodes with certain labels, so only an administrator gives them: a machine claims none itself.
    """

    actor: Actor
    node: str
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


LABEL_NODE = Unary("auth.label_node", LabelNode, Member, access=ADMINISTRATORS)
