"""The parts of a page that is put together from what several nodes say: each may be missing by itself."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from covey.contracts.method import Req, Res, Unary
from covey.errors import CallError
from covey.roles.web.context import web

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Found(Generic[T_co]):
    """What a part of the page shows, or why it cannot."""

    value: T_co | None
    problem: str = ""


async def find(method: Unary[Req, Res], request: Req, *, patience_seconds: float) -> Found[Res]:
    """Ask; whatever refuses or fails is said in the part's place. Never raises `CallError`."""
    try:
        return Found(await web().bus.call(method, request, timeout_seconds=patience_seconds))
    except CallError as error:
        return Found(None, _why(method.name, error))


def _why(method: str, error: CallError) -> str:
    if error.code not in ("unreachable", "peer_lost"):
        return error.message
    role = method.partition(".")[0]
    return f"no node with the role “{role}” can be reached now." if role != "cluster" else error.message
