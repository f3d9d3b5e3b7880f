"""The one place that says what links run over: libp2p, imported when they wake."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from covey.bus.background import open_background
from covey.store.identity import Identity
from covey.transport.base import PeerId

if TYPE_CHECKING:
    from covey.transport.libp2p.discovery import Hint
    from covey.transport.libp2p.host import Libp2pHost
    from covey.transport.libp2p.relay import Relays

NOWHERE = "none"
OnHint = Callable[[PeerId, tuple[str, ...]], Awaitable[None]]


class Libp2pDoor:
    """A libp2p host as `ClusterHost`. `announce`: addresses that others are told beside the host's own."""

    def __init__(self, host: "Libp2pHost", relays: "Relays", announce: Sequence[str]) -> None:
        self._host = host
        self._relays = relays
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
    async def reserve(self, relay: PeerId, addresses: tuple[str, ...]) -> AsyncGenerator[trio.Event, None]:
        """See `Relayer.reserve`."""
        async with self._relays.reserve(relay, addresses) as reservation:
            yield reservation.lost


@asynccontextmanager
async def open_host(
    identity: Identity,
    listen: str,
    *,
    announce: Sequence[str] = (),
    network_id: str = "",
    is_member: Callable[[PeerId], bool],
    on_rpc: Callable[[PeerId, trio.abc.Stream], Awaitable[None]],
    on_join: Callable[[PeerId, trio.abc.Stream], Awaitable[None]],
    on_hint: OnHint | None = None,
) -> AsyncGenerator[Libp2pDoor, None]:
    """See `HostOpener`."""
    # 0.9 s and 47 MB, and for discovery zeroconf's: only for who has a cluster.
    from covey.transport.libp2p.host import open_libp2p
    from covey.transport.libp2p.relay import serve_relay, use_relays

    async def join(peer: PeerId, address: str, stream: trio.abc.Stream) -> None:
        await on_join(peer, stream)

    places = () if listen == NOWHERE else (listen,)
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(
            open_libp2p(identity, listen=places, is_member=is_member, on_rpc=on_rpc, on_join=join)
        )
        relays = await stack.enter_async_context(use_relays(host))
        if places:
            serve_relay(host)
        door = Libp2pDoor(host, relays, announce)
        if on_hint is not None:
            from covey.transport.libp2p.discovery import open_discovery

            hints = await stack.enter_async_context(
                open_discovery(network_id, identity.peer_id, lambda: door.addresses)
            )
            nursery = await stack.enter_async_context(open_background())
            nursery.start_soon(_pass_on, hints, on_hint)
        yield door


async def _pass_on(hints: "trio.MemoryReceiveChannel[Hint]", on_hint: OnHint) -> None:
    async for hint in hints:
        await on_hint(hint.peer, hint.addresses)
