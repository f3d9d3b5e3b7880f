"""What `covey status` says of the feeds: do all auth nodes agree, and may this node vouch for keys?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from covey.cli.output import span

if TYPE_CHECKING:
    from covey.contracts.replication import LeaseStatus, Replications, ReplicationStatus

HASH_CHARS = 8
"""Of a view's hash: enough for people to compare."""


def lines(found: "Replications") -> list[tuple[str, str]]:
    """Names and values for the table; none where the node belongs to no network, or is all of it and well."""
    own = found.nodes[0]
    if not own.roles:
        return []
    trouble = _trouble(own)
    auths = [node for node in found.nodes if "auth" in node.roles]
    if len(found.nodes) == 1 and not found.silent and not trouble and own.lease.seconds_left is None:
        return []
    shown = [("auth nodes", agreement(auths, found.silent))]
    if own.lease.needed:
        shown.append(("lease", lease(own.lease)))
    if "auth" not in own.roles and auths:
        shown.append(("copy", copy(own, auths)))
    return [*shown, ("trouble", "\n".join(trouble))] if trouble else shown


def agreement(auths: "Sequence[ReplicationStatus]", silent: Sequence[str]) -> str:
    """Whether all auth nodes hold the same, a word first; where they do not, a line for each."""
    away = f"; NO ANSWER from {', '.join(silent)}" if silent else ""
    if not auths:
        return f"none answers{away}" if silent else "none"
    if len({_hashes(node) for node in auths}) == 1 and not any(node.behind_entries for node in auths):
        names = ", ".join(node.node for node in auths)
        said = f"agree ({names}): {_short(auths[0])}" if len(auths) > 1 else f"{names}: {_short(auths[0])}"
        return said + away
    return "\n".join([f"DIFFER{away}", *(f"{node.node}: {_short(node)}{_behind(node)}" for node in auths)])


def lease(state: "LeaseStatus") -> str:
    """Whether a node may vouch for keys."""
    if state.why:
        return f"NONE: {state.why}"
    return "needs nobody" if state.seconds_left is None else f"{span(state.seconds_left)} left"


def copy(own: "ReplicationStatus", auths: "Sequence[ReplicationStatus]") -> str:
    """How the copy of a node that is no auth node compares with theirs."""
    theirs = {hashed for node in auths for hashed in _hashes(node)}
    same = not own.behind_entries and set(_hashes(own)) <= theirs
    return f"{'the same' if same else 'DIFFERS'}: {_short(own)}{_behind(own)}"


def _hashes(node: "ReplicationStatus") -> tuple[tuple[str, str], ...]:
    return tuple((one.kind, one.view_hash) for one in node.kinds)


def _short(node: "ReplicationStatus") -> str:
    return ", ".join(f"{one.kind} {one.view_hash[:HASH_CHARS]}" for one in node.kinds)


def _behind(node: "ReplicationStatus") -> str:
    if not node.behind_entries:
        return ""
    return f", {node.behind_entries} entries behind for {span(node.lag_seconds)}"


def _trouble(own: "ReplicationStatus") -> list[str]:
    frozen = {feed.author for kind in own.kinds for feed in kind.feeds if feed.frozen}
    return [
        *own.blocked.values(),
        *(f"{name}'s feed is frozen: its key was copied, or its disk put back" for name in sorted(frozen)),
        *(f"the clock of {name} is far ahead: set it" for name in own.ahead),
        *(f"{count} entries refused: {reason}" for reason, count in sorted(own.refused_entries.items())),
        *([f"{own.quarantined_entries} entries wait for earlier ones"] if own.quarantined_entries else []),
    ]
