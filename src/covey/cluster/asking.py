"""Asking every live node that serves a method, each at its own pace, for as long as it is there."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from covey.bus.background import open_background
from covey.bus.bus import BusHandle
from covey.cluster.boot_clock import BootClock
from covey.contracts.method import Unary
from covey.errors import CallError
from covey.store.pulse import Pulse
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How long at most until one is asked that has come, or again one that has failed."""


async def ask_each(
    bus: BusHandle,
    method: Unary[Any, Any],
    links: Pulse,
    ask: Callable[[PeerId], Awaitable[None]],
    *,
    wanted: Callable[[], bool],
) -> None:
    """Until cancelled. `links` beats when a node may have come.

    Args:
        bus: who is live, and serves what.
        method: that is asked of them.
        links: beats when a link has come up or gone down.
        ask: goes on asking one node until that fails with a `CallError`.
        wanted: whether to ask anybody at all.
    """
    asking: set[PeerId] = set()

    async def keep(peer: PeerId) -> None:
        try:
            await ask(peer)
        except CallError as error:
            log.debug("%s did not answer %s: %s", peer, method.name, error)
        finally:
            asking.discard(peer)

    async with open_background() as nursery:
        while True:
            seen = links.count
            for peer in bus.serving(method) if wanted() else ():
                if peer != bus.me and peer not in asking:
                    asking.add(peer)
                    nursery.start_soon(keep, peer)
            with trio.move_on_after(LOOK_SECONDS):
                await links.after(seen)


async def sleep_until(now: BootClock, at: float) -> None:
    """Sleep, and notice within a second of waking that the machine has slept as well."""
    while (left := at - now()) > 0:  # noqa: ASYNC110 - a clock that no event comes from
        await trio.sleep(min(left, LOOK_SECONDS))
