"""Who may write feeds, and who reads which. Pure."""

from covey.contracts.feeds import Kind
from covey.contracts.method import Party
from covey.errors import CallError
from covey.store.rows import MemberRow

AUTHOR_ROLE = "auth"

READERS: dict[Kind, frozenset[Party]] = {
    "members": frozenset({"member"}),
    "keys": frozenset({"gateway", "web", "auth"}),
    "secret": frozenset({"auth"}),
}
"""Who tails a kind of feed: the `access` of its contract."""

DEPENDS_ON: dict[Kind, tuple[Kind, ...]] = {
    "members": ("members",),
    "keys": ("members", "keys"),
    "secret": ("members", "keys", "secret"),
}
"""The kinds that an entry may name as its dependencies: those that every reader of its own kind also reads."""


def is_member(member: MemberRow | None) -> bool:
    """Whether a node was admitted, and not removed."""
    return member is not None and bool(member.roles) and not member.removed


def removed(row: MemberRow) -> CallError:
    """What a machine is told that was removed."""
    return CallError(
        "forbidden",
        f"This machine ({row.name}) was removed from the network. To come back it needs a new identity and a new "
        "invite: covey join --replace INVITE",
        reason="removed",
    )
