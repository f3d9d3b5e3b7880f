"""A nursery for tasks that serve a block, and end with it."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_background() -> AsyncGenerator[trio.Nursery, None]:
    """A nursery that is cancelled where the block ends, and does not wrap the block's own exception in a group.

    Without it, `async with bus.open(): raise CallError(...)` would leave as an `ExceptionGroup`. What a background
    task raises does cancel the block, and leaves as a group, as from any nursery.
    """
    failure: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery
                failure = error
            finally:
                nursery.cancel_scope.cancel()
    finally:
        if failure is not None:
            raise failure
