"""Keeping up with the members feeds of the auth nodes, on a node that does not write them."""

import logging

import trio

from covey.bus.bus import BusHandle
from covey.contracts.membership import TAIL_MEMBERS, TailMembers
from covey.errors import CallError
from covey.store.entries import EntryError
from covey.store.ingest import ingest, vector
from covey.store.pulse import Pulse
from covey.store.writer import Store

log = logging.getLogger(__name__)

RETRY_SECONDS_MIN = 0.2
RETRY_SECONDS_MAX = 10.0


async def follow_members(bus: BusHandle, store: Store, links: Pulse) -> None:
    """Tail one auth node at a time, whichever is live; runs until cancelled. `links` beats when one may have come up.

    Entries that do not verify are refused, logged, and not asked for again before the back-off is over: the view
    stays as it was.
    """
    wait_seconds = RETRY_SECONDS_MIN
    while True:
        seen = links.count
        try:
            request = TailMembers(vector(store.reader, "members"))
            async with bus.stream(TAIL_MEMBERS, request) as batches:
                async for batch in batches:
                    if batch.entries:
                        await ingest(store, "members", batch.entries)
                    wait_seconds = RETRY_SECONDS_MIN
        except EntryError as error:
            log.error("What an auth node sent was refused: %s", error.message)  # noqa: TRY400 - the message says it
            wait_seconds = RETRY_SECONDS_MAX
        except CallError as error:
            log.debug("No members feed now: %s", error)
            with trio.move_on_after(wait_seconds):
                await links.after(seen)
            wait_seconds = min(wait_seconds * 2, RETRY_SECONDS_MAX)
            continue
        await trio.sleep(wait_seconds)
        wait_seconds = min(wait_seconds * 2, RETRY_SECONDS_MAX)
