"""How a verb reaches the running node."""

import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from covey.cli.verbs import Settings
from covey.errors import CallError, leaves

if TYPE_CHECKING:
    from covey.client import Client
    from covey.contracts.auth import Actor

T = TypeVar("T")
ADMIN_KEY_VARIABLE = "COVEY_ADMIN_KEY"
NO_ADMIN_KEY = (
    f"The node that knows people and keys is another one: set {ADMIN_KEY_VARIABLE} to an administrator's key"
    " (covey keys create --admin), or do this there."
)


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
    try:
        return trio.run(partial(_ask, settings.folder, work))
    except (CallError, ExceptionGroup) as error:
        nameless = any(isinstance(leaf, CallError) and leaf.reason == "session" for leaf in leaves(error))
        if nameless and not os.environ.get(ADMIN_KEY_VARIABLE):
            raise CallError("unauthenticated", NO_ADMIN_KEY, reason="session") from error
        raise


def on_behalf() -> "Actor":
    """Who asks the auth role: nobody in particular, which is enough on an auth node, or `COVEY_ADMIN_KEY`'s owner."""
    from covey.contracts.auth import Actor

    return Actor(key=os.environ.get(ADMIN_KEY_VARIABLE, ""))


async def _ask(folder: Path, work: Callable[["Client"], Awaitable[T]]) -> T:
    from covey.control import connect

    async with connect(folder) as client:
        client.actor = on_behalf()
        return await work(client)
