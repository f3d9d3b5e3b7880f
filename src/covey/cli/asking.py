"""How a verb reaches the running node."""

import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from covey.cli.verbs import Settings

if TYPE_CHECKING:
    from covey.client import Client
    from covey.contracts.auth import Actor

T = TypeVar("T")
ADMIN_KEY_VARIABLE = "COVEY_ADMIN_KEY"


def ask_node(settings: Settings, work: Callable[["Client"], Awaitable[T]]) -> T:
    """Connect to the node of the data folder, do some work with it, and leave.

    Raises:
        CallError: `unreachable` where no node runs there; whatever the work raises.
    """
    import trio

    from covey.telemetry import logs

    logs.configure(
        level="debug" if settings.verbose else "error", style="text", tracebacks=settings.verbose, stream=None
    )
    return trio.run(partial(_ask, settings.folder, work))


def on_behalf() -> "Actor":
    """Who asks the auth role: nobody in particular, which is enough on an auth node, or `COVEY_ADMIN_KEY`'s owner."""
    from covey.contracts.auth import Actor

    return Actor(key=os.environ.get(ADMIN_KEY_VARIABLE, ""))


async def _ask(folder: Path, work: Callable[["Client"], Awaitable[T]]) -> T:
    from covey.control import connect

    async with connect(folder) as client:
        client.actor = on_behalf()
        return await work(client)
