"""The machines of the network, put together from what they say of themselves and from the links to them. Pure."""

from dataclasses import dataclass
from typing import Literal

from covey.contracts.cluster import LinkList, LinkStatus, NodeList, NodeStatus

State = Literal["live", "draining", "silent", "away"]
"""`silent`: there is a link to it, but it does not say how it is. `away`: there is none."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A member, as the node that serves the page sees it.

    Args:
        peer: its peer id.
        name: what it is called.
        roles: those that it runs; of one that does not answer, those that it was admitted with.
        state: how it is.
        here: it is the node that serves the page, to which there is no link.
        removable: not this node, nor the last one that knows people and keys; auth decides for itself.
        status: what it says of itself; `None` where it says nothing.
        link: the link to it.
        labels: what an administrator gave it.
    """

    peer: str
    name: str
    roles: tuple[str, ...]
    state: State
    here: bool
    removable: bool
    status: NodeStatus | None = None
    link: LinkStatus | None = None
    labels: tuple[str, ...] = ()

    @property
    def round_trip(self) -> str:
        """How long a message there and back takes: `0.4 ms`; "" before the first."""
        seconds = self.link.rtt_seconds if self.link is not None else None
        return "" if seconds is None else f"{seconds * 1000:.1f}\u202fms"


def roster(nodes: NodeList, links: LinkList) -> tuple[Machine, ...]:
    """Every member: the node that was asked first, then the others by name.

    Args:
        nodes: those that answer, the one that was asked first.
        links: of the node that was asked.
    """
    if not nodes.nodes:
        return ()
    own, *others = nodes.nodes
    live = {status.peer_id: status for status in others}
    with_auth = [link.peer for link in links.links if "auth" in link.roles]
    if "auth" in (links.roles or own.roles):
        with_auth.append(own.peer_id)
    roles = own.roles or links.roles
    own_state = _state(own)
    found = [
        Machine(own.peer_id, own.name, roles, own_state, here=True, removable=False, status=own, labels=links.labels)
    ]
    for link in links.links:
        status = live.get(link.peer)
        found.append(
            Machine(
                link.peer,
                link.name,
                status.roles if status is not None else link.roles,
                _state(status, link),
                here=False,
                removable=with_auth != [link.peer],
                status=status,
                link=link,
                labels=link.labels,
            )
        )
    return tuple(found)


def _state(status: NodeStatus | None, link: LinkStatus | None = None) -> State:
    if status is not None:
        return "draining" if status.draining else "live"
    return "away" if link is None or link.path == "down" else "silent"
