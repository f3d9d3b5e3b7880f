"""What the network's recovery key may say, whatever has become of the auth nodes: remove one, or make another one.

For the operator alone, on any node: whoever shows the key that the genesis names speaks for the network.
"""

import msgspec

from covey.contracts.membership import Member
from covey.contracts.method import Unary
from covey.contracts.store import OPERATOR


class RecoverRemove(msgspec.Struct, frozen=True):
    """Remove a machine; `node` is a name or a peer id. What it says of others counts from then on no more, either.

    `recovery_key`: as the first start printed it; the node keeps it no longer than the call lasts.
    """

    recovery_key: str
    node: str

    def __repr__(self) -> str:
        """Without the key: a message may end up in a log or a traceback."""
        return f"RecoverRemove(recovery_key=..., node={self.node!r})"


class RecoverPromote(msgspec.Struct, frozen=True):
    """Admit a member with further roles; `node` and `recovery_key` as `RecoverRemove`."""

    recovery_key: str
    node: str
    roles: tuple[str, ...]

    def __repr__(self) -> str:
        """Without the key."""
        return f"RecoverPromote(recovery_key=..., node={self.node!r}, roles={self.roles!r})"


RECOVER_REMOVE = Unary("store.recover_remove", RecoverRemove, Member, access=OPERATOR)
"""`forbidden`: another network's key; `conflict` (`no_auth`): no auth node runs here, so nobody would hear of it."""
RECOVER_PROMOTE = Unary("store.recover_promote", RecoverPromote, Member, access=OPERATOR)
"""As `RECOVER_REMOVE`; without the auth role here, this very node alone can be made one."""
