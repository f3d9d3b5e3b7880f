"""The first page: what runs where, and how well."""

from dataclasses import dataclass

import trio
from quart import Blueprint, render_template

from covey.contracts.cluster import NODES, NodeList
from covey.contracts.gateway import LIST_MODELS, STATS, GatewayStats, ListModels, ModelSummaries
from covey.contracts.method import Nothing, Req, Res, Unary
from covey.roles.web.display import Chart, chart
from covey.roles.web.found import Found, find
from covey.roles.web.sessions import visitor

blueprint = Blueprint("overview", __name__)

PATIENCE_SECONDS = 2.0
"""How long one part may hold up the page; it says so itself when it took longer."""


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

    async def ask(method: Unary[Req, Res], request: Req) -> None:
        found[method.name] = await find(method, request, patience_seconds=PATIENCE_SECONDS)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, NODES, Nothing())
        nursery.start_soon(ask, LIST_MODELS, ListModels(visitor().actor))
        nursery.start_soon(ask, STATS, Nothing())
    return Overview(found[NODES.name], found[LIST_MODELS.name], found[STATS.name])  # type: ignore[arg-type]


@blueprint.get("/")
async def page() -> str:
    """The whole page."""
    return await render_template("overview.html", overview=await look())


@blueprint.get("/overview/live")
async def live() -> str:
    """The part that the page asks for again and again."""
    return await render_template("_overview_live.html", overview=await look())
