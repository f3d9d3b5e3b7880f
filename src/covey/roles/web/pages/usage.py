"""What was used: one's own, or for an administrator everybody's. As a page, and as files."""

from quart import Blueprint, Response, render_template, request

from covey.contracts.auth import LIST_KEYS, LIST_USERS, ListKeys, ListUsers
from covey.contracts.usage import USAGE, USAGE_RECORDS, AskUsage, Dimension, UsageRow
from covey.contracts.usage_sums import day_of
from covey.contracts.usage_table import Names, as_csv, columns_of_rows, line_of_row
from covey.errors import CallError
from covey.roles.web.context import AWAY, Away, web
from covey.roles.web.exporting import RecordsBody, as_file, in_json
from covey.roles.web.found import Found, find
from covey.roles.web.sessions import visitor
from covey.roles.web.usage_view import KINDS, MEASURES, RANGES, Choice, UsageView, choose, lay_out

blueprint = Blueprint("usage", __name__)

PATIENCE_SECONDS = 20.0
NAMES_SECONDS = 2.0
TOTALS_BY: tuple[Dimension, ...] = ("day", "user", "key", "model", "node", "route", "outcome")


@blueprint.get("/usage")
async def page() -> str:
    """Bars, a table, links to files."""
    choice = choose(request.args)
    now = web().clock.now()
    found: Found[UsageView]
    silent: tuple[str, ...] = ()
    try:
        rows, silent = await _totals(_question(choice, ("day", choice.by)))
        found = Found(lay_out(rows, choice, await look_up_names(), now))
    except CallError as error:
        found = Found(None, error.message)
    return await render_template(
        "usage.html", choice=choice, found=found, silent=silent, ranges=RANGES, kinds=KINDS, measures=MEASURES
    )


@blueprint.get("/usage/totals.<ending>")
async def totals(ending: str) -> Response:
    """The totals of days, as told apart as they are kept: `totals.csv`, `totals.json`."""
    choice = choose(request.args)
    rows, _ = await _totals(_question(choice, TOTALS_BY))
    names = await look_up_names()
    lines = [line_of_row(TOTALS_BY, row, names) for row in rows]
    body = as_csv(lines, columns_of_rows(TOTALS_BY)) if _is_csv(ending) else in_json(lines)
    return as_file(body, _file_name("totals", choice), ending)


@blueprint.get("/usage/requests.<ending>")
async def requests(ending: str) -> Response:
    """Every request by itself: `requests.csv`, `requests.json`."""
    choice = choose(request.args)
    body = RecordsBody(web().bus, _question(choice), await look_up_names(), csv=_is_csv(ending))
    if not web().bus.serving(USAGE_RECORDS):  # later is too late: the status is sent before the first line is there
        raise Away("gateway", CallError("unreachable", "No gateway can be reached now."))
    return as_file(body, _file_name("requests", choice), ending)


def _question(choice: Choice, group_by: tuple[Dimension, ...] = ()) -> AskUsage:
    who = visitor()
    since, until = choice.period(web().clock.now())
    mine = who.account.id if choice.mine and who.account is not None else ""
    return AskUsage(who.actor, since, until, group_by, user=mine)


async def _totals(ask: AskUsage) -> tuple[list[UsageRow], tuple[str, ...]]:
    rows: list[UsageRow] = []
    silent: tuple[str, ...] = ()
    try:
        async with web().bus.stream(USAGE, ask, timeout_seconds=PATIENCE_SECONDS) as replies:
            async for reply in replies:
                rows += reply.rows
                silent += reply.silent
    except CallError as error:
        if error.code in AWAY:
            raise Away("gateway", error) from error
        raise
    return rows, silent


async def look_up_names() -> Names:
    """How people and keys are called, as far as the visitor may know."""
    who = visitor()
    keys = await find(LIST_KEYS, ListKeys(who.actor, everyone=who.is_admin), patience_seconds=NAMES_SECONDS)
    users = {who.account.id: who.account.name} if who.account is not None else {}
    if who.is_admin:
        people = await find(LIST_USERS, ListUsers(who.actor), patience_seconds=NAMES_SECONDS)
        users |= {one.id: one.name for one in people.value.accounts} if people.value else {}
    return Names(users, {one.id: one.label for one in keys.value.keys} if keys.value else {})


def _is_csv(ending: str) -> bool:
    if ending not in ("csv", "json"):
        raise CallError("not_found", "This is to be had as csv and as json.")
    return ending == "csv"


def _file_name(what: str, choice: Choice) -> str:
    since, until = choice.period(web().clock.now())
    return f"covey-{what}-{day_of(since)}-{day_of(until - 1)}"
