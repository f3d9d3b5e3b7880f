"""What a node says of itself, and of the others it knows: NODE_STATUS and NODES."""

import logging
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import trio

from covey.bus.bus import BusHandle
from covey.bus.caller import Caller
from covey.contracts.cluster import NODE_STATUS, NODES, NodeList, NodeStatus
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.roles.base import Lifecycle, NodeInfo
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

ASK_SECONDS_MAX = 1.0
"""For each other node: one that is frozen must not hold the whole list up."""


class About:
    """Serves both, stamped `member`.

    Args:
        bus: stamped `member`.
        info: who this node is.
        lifecycle: whether it drains.
        urls: where its API and dashboard listen, as of now.
        network_id: as of now, in hexadecimal; "" for none.
    """

    def __init__(
        self,
        bus: BusHandle,
        info: NodeInfo,
        lifecycle: Lifecycle,
        urls: Callable[[], tuple[str, ...]],
        network_id: Callable[[], str],
    ) -> None:
        self._bus = bus
        self._info = info
        self._lifecycle = lifecycle
        self._urls = urls
        self._network_id = network_id
        self._started = trio.current_time()
        bus.serve(NODE_STATUS, self.status)
        bus.serve(NODES, self.nodes)

    async def status(self, caller: Caller, request: Nothing) -> NodeStatus:
        """Serve NODE_STATUS."""
        return NodeStatus(
            name=self._bus.name_of(self._bus.me),
            peer_id=str(self._bus.me),
            version=self._info.version,
            roles=self._info.roles,
            urls=self._urls(),
            started_at=self._info.started_at,
            uptime_seconds=trio.current_time() - self._started,
            memory_bytes=memory_bytes(),
            draining=self._lifecycle.draining,
            network_id=self._network_id(),
            python=platform.python_version(),
        )

    async def nodes(self, caller: Caller, request: Nothing) -> NodeList:
        """Serve NODES: this node, and every peer that answers."""
        found: dict[PeerId, NodeStatus] = {}

        async def ask(peer: PeerId) -> None:
            try:
                found[peer] = await self._bus.call(NODE_STATUS, Nothing(), to=peer, timeout_seconds=ASK_SECONDS_MAX)
            except CallError as error:
                log.info("The node %s did not say how it is: %s", self._bus.name_of(peer), error)

        peers = self._bus.serving(NODE_STATUS)
        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(ask, peer)
        return NodeList(tuple(found[peer] for peer in peers if peer in found))


def memory_bytes() -> int:
    """The resident memory of this process; where the system does not tell it, the most it ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return pages * resource.getpagesize()
