"""`covey usage`: who used what, as a table, or for other programs."""

import time
from collections import deque
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import click

from covey.cli.asking import ask_node, on_behalf
from covey.cli.output import plain, print_json, print_json_line, print_table
from covey.cli.values import duration
from covey.cli.verbs import Settings, json_option, verb
from covey.errors import CallError

if TYPE_CHECKING:
    from covey.client import Client
    from covey.contracts.method import Req, Res, Unary
    from covey.contracts.usage import AskUsage, Dimension, UsageRow, UsageSums
    from covey.contracts.usage_table import Fields, Names

DIMENSIONS = ("day", "hour", "model", "key", "user", "node", "route", "outcome")
UNKNOWABLE = ("forbidden", "unauthenticated", "unreachable", "deadline", "peer_lost")
"""Why names may be nobody's business, or nobody there to tell them."""
SHOWN_MAX = 1000
"""Of single requests, in a table."""
HEADS = ("requests", "failed", "prompt", "completion", "cached", "mean", "99 %", "first token")


def moment(text: str) -> float:
    """A type for options: `2026-11-25`, a UTC day's begin, or how long ago, as `7d`; in Unix seconds."""
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        pass
    try:
        return time.time() - duration(text)
    except click.BadParameter as error:
        raise click.BadParameter(f"{text!r} is no time: write a day (2026-11-25), or 30d, 12h, 45m ago.") from error


@verb("usage")
@click.option(
    "--by", "group_by", type=click.Choice(DIMENSIONS), multiple=True, help="A line for each; may be repeated. [model]"
)
@click.option("--since", type=moment, default="7d", show_default=True, metavar="TIME", help="2026-11-25, or 7d ago.")
@click.option("--until", type=moment, metavar="TIME", help="Likewise. [now]")
@click.option("--user", default="", metavar="NAME", help="Only what they asked.")
@click.option("--key", default="", metavar="ID", help="Only what was asked with it.")
@click.option("--model", default="", metavar="M", help="Only what was asked of it.")
@click.option("--records", is_flag=True, help="Every request by itself.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option
@click.pass_obj
def usage(
    settings: Settings,
    *,
    group_by: "tuple[Dimension, ...]",
    since: float,
    until: float | None,
    user: str,
    key: str,
    model: str,
    records: bool,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Show who used what: requests, tokens, and how long they took, over all gateways.

    Days and hours are UTC's. Of more than two days whole days are counted, else whole hours. With --records and --json,
    an object a line.
    """
    from covey.contracts.usage import AskUsage

    if as_csv and as_json:
        raise click.UsageError("Take --csv or --json, not both.")
    group_by = tuple(dict.fromkeys(group_by)) or ("model",)
    ask = AskUsage(on_behalf(), since, time.time() if until is None else until, group_by, user, key, model)
    style = "csv" if as_csv else "json" if as_json else ""

    async def work(client: "Client") -> None:
        known = await look_up_names(client)
        asked = _for_person(ask, known)
        await (_show_records if records else _show_rows)(client, asked, known, style)

    ask_node(settings, work)


async def look_up_names(client: "Client") -> "Names":
    """How people and keys are called, as far as who asks may know: ids are shown for the rest."""
    from covey.contracts.auth import LIST_KEYS, LIST_USERS, ListKeys, ListUsers
    from covey.contracts.usage_table import Names

    async def asked(method: "Unary[Req, Res]", request: "Req") -> "Res | None":
        try:
            return await client.bus.call(method, request)
        except CallError as error:
            if error.code not in UNKNOWABLE:
                raise
            return None

    accounts = await asked(LIST_USERS, ListUsers(client.actor))
    listed = await asked(LIST_KEYS, ListKeys(client.actor, everyone=accounts is not None))
    return Names(
        {one.id: one.name for one in accounts.accounts} if accounts else {},
        {one.id: one.label for one in listed.keys} if listed else {},
    )


def _for_person(ask: "AskUsage", known: "Names") -> "AskUsage":
    from msgspec.structs import replace

    if not ask.user or ask.user in known.users:
        return ask
    for account, name in known.users.items():
        if name == ask.user:
            return replace(ask, user=account)
    if known.users:
        raise CallError("not_found", f"There is no user {ask.user!r}; `covey users list` shows who there is.")
    return ask


async def _show_rows(client: "Client", ask: "AskUsage", known: "Names", style: str) -> None:
    from covey.contracts.usage import USAGE
    from covey.contracts.usage_table import as_csv, columns_of_rows, line_of_row

    rows: list[UsageRow] = []
    silent: tuple[str, ...] = ()
    async with client.bus.stream(USAGE, ask) as replies:
        async for reply in replies:
            rows += reply.rows
            silent += reply.silent
    if style == "json":
        print_json([line_of_row(ask.group_by, row, known) for row in rows])
    elif style == "csv":
        lines = (line_of_row(ask.group_by, row, known) for row in rows)
        click.echo(as_csv(lines, columns_of_rows(ask.group_by)), nl=False)
    else:
        _print_rows(ask, rows, known)
    _say_silent(silent)


def _print_rows(ask: "AskUsage", rows: "Sequence[UsageRow]", known: "Names") -> None:
    from covey.contracts.usage_sums import total

    lines: list[tuple[object, ...]] = []
    for row in rows:
        names = [known.of(*pair) for pair in zip(ask.group_by, row.group, strict=True)]
        lines.append((*names, *_figures(row.sums)))
    if len(rows) > 1:
        lines.append(("total", *[""] * (len(ask.group_by) - 1), *_figures(total(rows))))
    print_table([*ask.group_by, *HEADS], lines, empty="Nothing was asked in that time.")
    if rows:
        click.echo(f"{_shown(ask.since)} to {_shown(ask.until)}, UTC", err=True)


def _figures(sums: "UsageSums") -> tuple[object, ...]:
    from covey.contracts.usage_sums import quantile
    from covey.contracts.usage_table import mean

    return (
        sums.requests,
        sums.failed,
        sums.prompt_tokens,
        sums.completion_tokens,
        sums.cached_tokens,
        _seconds(mean(sums.seconds, sums.requests)),
        _seconds(quantile(sums.seconds_histogram, 0.99)),
        _seconds(mean(sums.first_token_seconds, sums.first_tokens)),
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _shown(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


async def _show_records(client: "Client", ask: "AskUsage", known: "Names", style: str) -> None:
    from covey.contracts.usage import USAGE_RECORDS
    from covey.contracts.usage_table import RECORD_COLUMNS, Fields, as_csv, line_of_record

    silent: tuple[str, ...] = ()
    latest: deque[Fields] = deque(maxlen=SHOWN_MAX)
    seen = 0
    if style == "csv":
        click.echo(as_csv([], RECORD_COLUMNS), nl=False)
    async with client.bus.stream(USAGE_RECORDS, ask) as replies:
        async for reply in replies:
            silent += reply.silent
            lines = [line_of_record(one, known) for one in reply.records]
            seen += len(lines)
            if style == "csv":
                click.echo(as_csv(lines), nl=False)
            elif style == "json":
                for line in lines:
                    print_json_line(line)
            else:
                latest += lines
    if not style:
        _print_records(latest, seen)
    _say_silent(silent)


def _print_records(lines: "Collection[Fields]", seen: int) -> None:
    columns = {
        "ended (UTC)": "ended_at",
        "user": "user_name",
        "key": "key_name",
        "model": "model",
        "node": "node",
        "outcome": "outcome",
        "prompt": "prompt_tokens",
        "completion": "completion_tokens",
        "took": "seconds",
        "first token": "first_token_seconds",
    }
    rows = [[_cell(name, line[name]) for name in columns.values()] for line in lines]
    print_table([*columns], rows, empty="Nothing was asked in that time.")
    if seen > len(lines):
        click.echo(f"{len(lines)} of {seen} are shown; --csv and --json give all.", err=True)


def _cell(name: str, value: object) -> object:
    if name == "ended_at":
        return str(value)[:19].replace("T", " ")
    return _seconds(cast("float | None", value)) if name.endswith("seconds") else value


def _say_silent(silent: "Sequence[str]") -> None:
    if silent:
        names = ", ".join(plain(one) for one in sorted(set(silent)))
        click.echo(f"Not in it is what these gateways took, for they did not answer: {names}", err=True)
