"""The one place that says what links run over: libp2p, imported when they wake."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from covey.store.identity import Identity
from covey.transport.base import PeerId

if TYPE_CHECKING:
    from covey.transport.libp2p.host import Libp2pHost

NOWHERE = "none"


class Libp2pDoor:
    """A libp2p host as `ClusterHost`. `announce`: addresses that others are told beside the host's own."""

    def __init__(self, host: "Libp2pHost", announce: Sequence[str]) -> None:
        self._host = host
        self._announce = tuple(announce)

    @property
    def addresses(self) -> tuple[str, ...]:
        """See `Host.addresses`."""
        return (*self._announce, *self._host.addresses)

    async def dial(self, peer: PeerId, addresses: tuple[str, ...]) -> tuple[trio.abc.Stream, str]:
        """See `Host.dial`."""
        return await self._host.dial(peer, addresses, "rpc")

    async def dial_join(self, peer: PeerId, addresses: tuple[str, ...]) -> tuple[trio.abc.Stream, str]:
        """See `JoinDialer.dial_join`."""
        return await self._host.dial(peer, addresses, "join")

    def came_from(self, peer: PeerId) -> str:
        """See `Host.came_from`."""
        return next((path.address for path in reversed(self._host.paths(peer)) if not path.dialled), "")

    def close_peer(self, peer: PeerId) -> None:
        """See `Host.close_peer`."""
        self._host.close_peer(peer)


@asynccontextmanager
async def open_host(
    identity: Identity,
    listen: str,
    *,
    announce: Sequence[str] = (),
    is_member: Callable[[PeerId], bool],
    on_rpc: Callable[[PeerId, trio.abc.Stream], Awaitable[None]],
    on_join: Callable[[PeerId, trio.abc.Stream], Awaitable[None]],
) -> AsyncGenerator[Libp2pDoor, None]:
    """See `HostOpener`."""
    from covey.transport.libp2p.host import open_libp2p  # 0.3 s and 47 MB: only for who has a cluster

    async def join(peer: PeerId, address: str, stream: trio.abc.Stream) -> None:
        await on_join(peer, stream)

    async with open_libp2p(
        identity, listen=() if listen == NOWHERE else (listen,), is_member=is_member, on_rpc=on_rpc, on_join=join
    ) as host:
        yield Libp2pDoor(host, announce)
