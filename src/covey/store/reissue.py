"""What to say again when an author's entries are voided: the denials among them, so that none comes undone. Pure.

A removed author's word beyond the cutoff counts no more, and yet somebody was disabled there, a key revoked, a session
ended: each auth node that had applied it says it again in its own feed. Removals of nodes are not said again.
"""

from collections.abc import Iterable, Iterator
from typing import cast

from covey.contracts.feeds import InvitationUse, KeyRevoke, Op, OwnerStanding, PasswordSet, SessionEnd
from covey.store.merge import Rows
from covey.store.rows import AccountRow, InvitationRow, KeyRow, SessionRow, StandingRow


def reissued(voided: Iterable[Op], rows: Rows) -> list[Op]:
    """The denials that these made and that do not stand any more, going by the rows without them.

    The password of a voided entry is nobody's to log in with, and neither is the one before it: whoever set it may
    have had a reason. So its epoch stays, with no password, until an administrator sets one.
    """
    said: dict[Op, None] = {}
    for op in voided:
        if _is_undone(op, rows):
            said[replace_password(op)] = None
    return list(_strongest(said))


def replace_password(op: Op) -> Op:
    """The same denial without a password to log in with."""
    return PasswordSet(id=op.id, epoch=op.epoch, hash="", by=op.by) if isinstance(op, PasswordSet) else op


def _is_undone(op: Op, rows: Rows) -> bool:
    match op:
        case KeyRevoke(id=key):
            row = rows.get(KeyRow, key)
            return row is None or not row.revoked
        case OwnerStanding(owner=owner, epoch=epoch, active=False):
            # Said again also where somebody has enabled the owner since: that word may be voided in its turn.
            standing = rows.get(StandingRow, owner) or StandingRow(owner=owner)
            return standing.active or standing.epoch < epoch
        case PasswordSet(id=account, epoch=epoch):
            return (rows.get(AccountRow, account) or AccountRow(id=account)).password_epoch < epoch
        case SessionEnd(digest=digest):
            session = rows.get(SessionRow, digest.hex())
            return session is None or not session.ended
        case InvitationUse(id=invitation):
            used = rows.get(InvitationRow, invitation)
            return used is None or not used.used_by
        case _:
            return False


def _strongest(said: Iterable[Op]) -> Iterator[Op]:
    """Of several epochs of one account the highest alone."""
    highest: dict[tuple[type[Op], str], Op] = {}
    for op in said:
        match op:
            case OwnerStanding(owner=one) | PasswordSet(id=one):
                known = highest.get((type(op), one))
                if known is None or cast("OwnerStanding | PasswordSet", known).epoch < op.epoch:
                    highest[type(op), one] = op
            case _:
                yield op
    yield from highest.values()
