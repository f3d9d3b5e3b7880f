"""Reading people out of the view, and the rules about their names. Pure."""

import re
from collections.abc import Iterator

from covey.contracts.auth import LABEL_CHARS_MAX, NAME_PATTERN, Account, AccountState
from covey.errors import CallError
from covey.store.key_check import standing
from covey.store.rows import AccountRow, NameRow
from covey.store.view import View

OPERATOR = "operator"
"""Who owns the keys that the operator makes for nobody in particular. No account's id: those begin with `U`."""
RESERVED_NAMES = frozenset({OPERATOR, "setup"})
"""What the audit calls those who act without an account."""

_NAME = re.compile(NAME_PATTERN)
_ACCOUNT_ID = re.compile(r"U[0-9A-Za-z]{15}")
CLAIMANTS_MAX = 4
"""How many accounts of one name are looked at."""
CLAIMS_MAX = 16
"""How many claims to one name are looked at: those of accounts that were renamed since are among them."""
CLAIMS_NEW_MAX = CLAIMS_MAX - CLAIMANTS_MAX
"""A name that has been claimed so often is given away no more: the latest would not be found."""
ACCOUNT_ID_CHARS = 16
"""A capital `U`, which no name holds, and fifteen base62 digits."""


def check_name(name: str) -> None:
    """Raise `invalid` for what may not be a log-in name."""
    if _NAME.fullmatch(name) is None:
        raise CallError(
            "invalid",
            "A name is 1 to 32 characters: lower-case letters, digits, and . _ - after the first.",
            param="name",
        )
    if name in RESERVED_NAMES:
        raise CallError("invalid", f"The name {name} is reserved; choose another.", param="name")


def check_label(label: str) -> None:
    """Raise `invalid` for the label of a key or an invitation that is too long or holds control characters."""
    if len(label) > LABEL_CHARS_MAX or not label.isprintable():
        raise CallError("invalid", f"A label is at most {LABEL_CHARS_MAX} printable characters.", param="label")


def check_name_free(view: View, name: str) -> None:
    """Raise `conflict` for a name that somebody has. To be asked inside `decide`, where nobody comes in between."""
    row = view.get(NameRow, name)
    if claimants(view, name) or (row is not None and len(row.claims) >= CLAIMS_NEW_MAX):
        raise CallError("conflict", f"The name {name} is taken; choose another.", reason="name_taken", param="name")


def account(view: View, account_id: str) -> AccountRow | None:
    """An account that is known in full, or `None`."""
    row = view.get(AccountRow, account_id)
    return row if row is not None and row.created is not None else None


def claimants(view: View, name: str) -> list[AccountRow]:
    """The accounts that are called so now, the one that claimed the name first, and so has it, before the others.

    There are several only where auth nodes that did not see each other each gave it away. At most `CLAIMANTS_MAX`.
    """
    row = view.get(NameRow, name) if _NAME.fullmatch(name) else None
    claims = row.claims[:CLAIMS_MAX] if row is not None else ()
    known = (account(view, claim[2]) for claim in claims)
    return [one for one in known if one is not None and one.name == name][:CLAIMANTS_MAX]


def named(view: View, name: str) -> AccountRow | None:
    """Who holds a log-in name. Whatever cannot be a name is nobody's."""
    return next(iter(claimants(view, name)), None)


def has_lost_name(view: View, row: AccountRow) -> bool:
    """Whether somebody else claimed this account's name before, so that it has to choose another."""
    holder = named(view, row.name)
    return holder is not None and holder.id != row.id


def find(view: View, user: str) -> AccountRow:
    """The account with this name or id; `not_found`."""
    row = account(view, user) if _ACCOUNT_ID.fullmatch(user) else named(view, user)
    if row is None:
        raise CallError(
            "not_found", f"There is no user {user[:64]!r}; `covey users list` shows who there is.", param="user"
        )
    return row


def state(view: View, row: AccountRow) -> AccountState:
    """`pending` only until an administrator has spoken, whichever way."""
    stands = standing(view, row.id)
    if stands.active and not row.pending:
        return "active"
    return "pending" if row.pending and stands.epoch == 0 else "disabled"


def shown(view: View, row: AccountRow) -> Account:
    """An account as people may see it."""
    created_at = row.created.created_at if row.created else 0
    return Account(
        id=row.id,
        name=row.name,
        role=row.role,
        state=state(view, row),
        created_at=created_at,
        name_lost=has_lost_name(view, row),
        limits=standing(view, row.id).limits,
    )


def active_admins(view: View) -> Iterator[AccountRow]:
    """The administrators whose word counts. Reads every account."""
    return (row for row in view.all(AccountRow) if is_active_admin(view, row))


def is_active_admin(view: View, row: AccountRow | None) -> bool:
    """Whether this is an administrator whose word counts."""
    return row is not None and row.created is not None and row.role == "admin" and state(view, row) == "active"


class AdminWatch:
    """Whether there is an active administrator: one is remembered, so that asking again costs two reads."""

    def __init__(self) -> None:
        self._known = ""

    def exists(self, view: View) -> bool:
        """As of this view."""
        if self._known and is_active_admin(view, view.get(AccountRow, self._known)):
            return True
        found = next(active_admins(view), None)
        self._known = found.id if found else ""
        return found is not None
