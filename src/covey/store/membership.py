"""Who may write feeds, and who reads which. Pure."""

from covey.contracts.feeds import Kind
from covey.contracts.method import Party
from covey.store.entries import FeedId
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


def may_author(peer: str, member: MemberRow | None, founder: str) -> bool:
    """Whether entries of this peer count, going by its row of the view.

    The founder's word counts until its row exists, which its own first entry makes; from then on it is a member
    like any other.
    """
    if member is None:
        return peer == founder
    return AUTHOR_ROLE in member.roles and not member.removed


def counts(feed: FeedId, seq: int, member: MemberRow | None, founder: str) -> bool:
    """Whether an entry counts, going by the row of its author: a removed author's do up to the removal's cutoff.

    So it does not matter whether they arrive before the removal or after it.
    """
    if member is not None and member.removed and AUTHOR_ROLE in member.roles:
        return seq <= member.cutoffs.get(str(feed), 0)
    return may_author(feed.author, member, founder)
