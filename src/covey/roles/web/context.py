"""What every page of the dashboard has at hand, and the one way it asks other roles."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from quart import current_app

from covey.bus.bus import BusHandle
from covey.contracts.method import Req, Res, Unary
from covey.errors import CallError, Code
from covey.roles.base import Clock, NodeInfo
from covey.roles.web.config import WebConfig

EXTENSION = "covey"

AWAY: frozenset[Code] = frozenset({"unreachable", "deadline", "peer_lost", "draining"})
"""The role asked is not there to answer: nothing is wrong with what was asked."""


@dataclass(frozen=True, slots=True)
class Web:
    """The dashboard's surroundings. `assets` holds `templates/` and `static/`; `static_version` changes with them."""

    config: WebConfig
    bus: BusHandle
    node: NodeInfo
    clock: Clock
    assets: Path
    static_version: str


class Away(Exception):
    """A role is not there to answer; the page about it says which.

    Args:
        role: the role's name.
        cause: what the bus said.
    """

    def __init__(self, role: str, cause: CallError) -> None:
        super().__init__(cause.message)
        self.role = role
        self.cause = cause


def web() -> Web:
    """The surroundings of the application that serves this request."""
    return cast(Web, current_app.extensions[EXTENSION])


async def ask(method: Unary[Req, Res], request: Req) -> Res:
    """Call a method of another role.

    Raises:
        Away: nobody serves it now, or not in time.
        CallError: any other refusal, to be shown beside the form that caused it.
    """
    try:
        return await web().bus.call(method, request)
    except CallError as error:
        if error.code in AWAY:
            raise Away(method.name.partition(".")[0], error) from error
        raise
