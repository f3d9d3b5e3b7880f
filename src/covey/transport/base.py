"""A transport moves bytes between peers, and knows nothing of methods or messages."""

from collections.abc import Awaitable, Callable
from typing import NewType, Protocol

import trio

PeerId = NewType("PeerId", str)
"""A node's name that nobody else can have: the libp2p peer id of its Ed25519 key (base58, identity multihash)."""

Accept = Callable[[PeerId, trio.abc.Stream], Awaitable[None]]
"""Takes over an inbound stream from an authenticated peer, and closes it."""


class Transport(Protocol):
    """One node's door to the others."""

    async def dial(self, peer: PeerId) -> trio.abc.Stream:
        """Open a byte stream to a peer; the caller closes it.

        Raises:
            CallError: `unreachable`.
        """
        ...

    async def serve(self, accept: Accept, *, task_status: trio.TaskStatus[None]) -> None:
        """Hand every inbound stream to `accept` in a task of its own until cancelled; started() once listening."""
        ...
