"""The first page: what runs where, and how well."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import trio
from quart import Blueprint, render_template

from covey.contracts.cluster import NODES, NodeList
from covey.contracts.gateway import LIST_MODELS, STATS, GatewayStats, ListModels, ModelSummaries
from covey.contracts.method import Nothing, Req, Res, Unary
from covey.errors import CallError
from covey.roles.web.context import web
from covey.roles.web.display import Chart, chart
from covey.roles.web.sessions import visitor

blueprint = Blueprint("overview", __name__)

PATIENCE_SECONDS = 2.0
"""How long one part may hold up the page; it says so itself when it took longer."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What a part of the page shows, or why it cannot."""

    value: T | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything on the page; each part may be missing by itself."""

    nodes: Found[NodeList]
    models: Found[ModelSummaries]
    stats: Found[GatewayStats]

    @property
    def tokens(self) -> Chart:
        """Completion tokens over time."""
        return chart([tokens for _, tokens in self.stats.value.history] if self.stats.value else [])


async def look() -> Overview:
    """Ask for everything at once."""
    found: dict[str, Found[object]] = {}

    async def find(method: Unary[Req, Res], request: Req) -> None:
        try:
            value = await web().bus.call(method, request, timeout_seconds=PATIENCE_SECONDS)
        except CallError as error:
            found[method.name] = Found(None, _why(method.name, error))
        else:
            found[method.name] = Found(value)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(find, NODES, Nothing())
        nursery.start_soon(find, LIST_MODELS, ListModels(visitor().actor))
        nursery.start_soon(find, STATS, Nothing())
    return Overview(found[NODES.name], found[LIST_MODELS.name], found[STATS.name])  # type: ignore[arg-type]


def _why(method: str, error: CallError) -> str:
    if error.code not in ("unreachable", "peer_lost"):
        return error.message
    role = method.partition(".")[0]
    return f"no node with the role “{role}” can be reached now." if role != "cluster" else error.message


@blueprint.get("/")
async def page() -> str:
    """The whole page."""
    return await render_template("overview.html", overview=await look())


@blueprint.get("/overview/live")
async def live() -> str:
    """The part that the page asks for again and again."""
    return await render_template("_overview_live.html", overview=await look())
