"""Who is calling, and whether they may: the one question that is asked of every call, near or far."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import get_args

from covey.contracts.method import Party
from covey.errors import CallError
from covey.transport.base import PeerId

EVERY_PARTY: frozenset[Party] = frozenset(get_args(Party))
"""What this process itself may act as: its roles are kept apart by their stamped handles."""

_ROLES: frozenset[Party] = frozenset({"gateway", "auth", "inference", "web"})


@dataclass(frozen=True, slots=True)
class Caller:
    """The peer that a call came from (this node's own id: this process), and the role it was stamped with."""

    peer: PeerId
    stamp: Party
    request_id: str = ""


def permits(stamp: str, granted: Collection[Party], access: frozenset[Party]) -> bool:
    """Whether a call may be made.

    Args:
        stamp: the role that the caller says it acts in.
        granted: what its peer may act as: its admitted roles, with `member`; everything for this process itself.
        access: the contract's.

    `member` in the access admits any role of an admitted peer, but never an outside operator: those are named.
    """
    if stamp not in granted:
        return False
    return stamp in access or ("member" in access and "member" in granted and stamp != "operator")


def check(method: str, stamp: str, granted: Collection[Party], access: frozenset[Party]) -> None:
    """Raise `denied`, in the same words near and far, unless `permits`."""
    if not permits(stamp, granted, access):
        raise CallError("denied", f"The role {stamp!r} may not call {method}.")


def may_serve(method: str, granted: Collection[Party]) -> bool:
    """Whether a peer is believed when it says that it serves a method.

    A method of a role (`auth.verify`) only from a peer that was admitted with that role, any other from every member:
    or else a compromised inference node could offer to verify keys.
    """
    family = method.partition(".")[0]
    return family in granted if family in _ROLES else "member" in granted
