"""Which roles machines may be admitted with. Pure."""

import re
from typing import get_args

from covey.contracts.membership import ROLE_NAME_PATTERN
from covey.contracts.method import Party
from covey.errors import CallError

ROLES_MAX = 16

_ROLE = re.compile(ROLE_NAME_PATTERN)
_NOT_ROLES = frozenset({"member", "operator"})
"""Parties that no machine is admitted as: whoever is, could stamp its calls so."""
_ROLES: frozenset[str] = frozenset(get_args(Party)) - _NOT_ROLES


def checked_roles(roles: tuple[str, ...]) -> tuple[str, ...]:
    """Sorted, each once; a name that is not built in is a plug-in's."""
    if not roles or len(roles) > ROLES_MAX:
        raise CallError("invalid", f"A machine has 1 to {ROLES_MAX} roles.", param="roles")
    for role in roles:
        if role not in _ROLES and (role in _NOT_ROLES or _ROLE.fullmatch(role) is None):
            known = ", ".join(sorted(_ROLES))
            raise CallError(
                "invalid", f"{role[:64]!r} cannot be a role. Roles are {known}, or a plug-in's.", param="roles"
            )
    return tuple(sorted(set(roles)))
