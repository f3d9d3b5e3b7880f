"""What an auth node has made: keys, accounts, invitations, admissions. For whoever removes it."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

import trio

from covey.contracts.feeds import AccountCreate, Admit, InvitationCreate, KeyCreate, KeyRevoke, Op
from covey.contracts.membership import MINTED_SHOWN, Made, Minted
from covey.roles.auth import people
from covey.roles.auth.realm import ROWS_PER_TURN
from covey.store.entries import FeedId
from covey.store.feed_log import counting, read_heads, read_verdict
from covey.store.kv import Reader
from covey.store.membership import is_member
from covey.store.rows import InvitationRow, KeyRow, MemberRow
from covey.store.view import View


@dataclass(slots=True)
class Findings:
    """Ids and names of what still counts, in the order in which it was made."""

    keys: dict[str, str] = field(default_factory=dict[str, str])
    accounts: dict[str, str] = field(default_factory=dict[str, str])
    invitations: dict[str, str] = field(default_factory=dict[str, str])
    machines: dict[str, str] = field(default_factory=dict[str, str])

    def shown(self, row: MemberRow) -> Minted:
        """As counts, with the first few names."""
        return Minted(
            peer=row.peer,
            name=row.name,
            roles=row.roles,
            keys=_made(self.keys.values()),
            accounts=_made(self.accounts.values()),
            invitations=_made(self.invitations.values()),
            machines=_made(self.machines.values()),
        )


def _made(names: Iterable[str]) -> Made:
    known = tuple(names)
    return Made(len(known), known[:MINTED_SHOWN])


async def minted_by(reader: Reader, peer: str) -> Findings:
    """Everything that a node has made and that still counts: keys that are not revoked, open invitations, members."""
    found, view = Findings(), View(reader)
    async for op in _said_by(reader, peer):
        match op:
            case KeyCreate(id=key, label=label, prefix=prefix):
                row = view.get(KeyRow, key)
                if row is not None and not row.revoked:
                    found.keys[key] = label or f"{prefix}…"
            case AccountCreate(id=account):
                person = people.account(view, account)
                if person is not None:
                    found.accounts[account] = person.name
            case InvitationCreate(id=invitation, label=label):
                invited = view.get(InvitationRow, invitation)
                if invited is not None and not invited.used_by:
                    found.invitations[invitation] = label or invitation
            case Admit(peer=other) if other != peer:
                member = view.get(MemberRow, other)
                if member is not None and is_member(member):
                    found.machines[other] = member.name
            case _:
                pass
    return found


def revocations(view: View, keys: Iterable[str], by: str) -> list[Op]:
    """What revokes those of these keys that are not revoked yet."""
    rows = (view.get(KeyRow, key) for key in keys)
    return [KeyRevoke(id=row.id, by=by) for row in rows if row is not None and not row.revoked]


async def _said_by(reader: Reader, peer: str) -> AsyncIterator[Op]:
    """Every operation of an author that counts; others get their turn meanwhile."""
    verdict, looked = read_verdict(reader), 0
    for feed in read_heads(reader):
        if FeedId.parse(feed).author != peer:
            continue
        for sealed in counting(reader, feed, verdict):
            for op in sealed.entry.ops:
                yield op
            looked += 1
            if looked % ROWS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
