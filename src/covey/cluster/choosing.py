"""Two sessions with one peer: which one is the link (network.md).

Of one boot, the one that the lower peer id dialled stays, unless it is silent. Of another boot, the old one is asked:
silent for a second, it is replaced (an honest restart, let in at once); answering, the newer is refused (a copied
identity).
"""

import trio

from covey.bus.session import Session
from covey.cluster.link import Farewell, Link
from covey.transport.base import PeerId

COPIED = "copied_identity"
DUPLICATE = "duplicate"
REPLACED = "replaced"
SILENT = "silent"
PROBE_SECONDS = 1.0
GIVE_WAY_SECONDS_MIN = 1.0
GIVE_WAY_SECONDS_MAX = 5.0


async def verdict(link: Link, new: Session, *, dialed_by: PeerId, me: PeerId, name: str) -> Farewell | None:
    """Why a new session cannot be the link; `None` where it can, and an old one has to make way.

    Args:
        link: to the peer, with the old session, if there is one.
        new: both sides have said HELLO.
        dialed_by: which side opened the new one.
        me: this node.
        name: what people call the peer.
    """
    old = link.session
    if old is None or old.lost is not None:
        return None
    if crossed(link, new, dialed_by=dialed_by) and dialed_by == min(link.peer, me):
        return None
    if not await old.answers(PROBE_SECONDS):
        return None
    if _same_boot(old, new):
        return Farewell("conflict", "The nodes have a link already, and it answers.", reason=DUPLICATE)
    message = (
        f"Two machines run with the identity of {name}: the one that came later is refused. Stop one of them; a copied"
        " data folder can become a node of its own: covey join --replace TOKEN"
    )
    return Farewell("conflict", message, reason=COPIED)


def crossed(link: Link, new: Session, *, dialed_by: PeerId) -> bool:
    """Whether both sides dialled at once, so that there are two sessions where one was meant."""
    return link.session is not None and _same_boot(link.session, new) and link.dialed_by != dialed_by


def _same_boot(old: Session, new: Session) -> bool:
    return old.hello is not None and new.hello is not None and old.hello.boot_id == new.hello.boot_id


async def give_way(session: Session, why: Farewell) -> None:
    """End one of two sessions that were dialled at once.

    For a moment each side may have taken another one for the link: what it called over the one that has to go gets the
    time to end. Streams without end do not.
    """
    with trio.move_on_after(GIVE_WAY_SECONDS_MAX):
        await trio.sleep(GIVE_WAY_SECONDS_MIN)
        while session.lost is None and any(session.calls_in_flight):  # noqa: ASYNC110 - for some seconds at most
            await trio.sleep(0.05)
    session.refuse(why)


def replaced() -> Farewell:
    """What the session is told that makes way."""
    return Farewell("conflict", "Another link between the same two nodes took over.", reason=REPLACED)
