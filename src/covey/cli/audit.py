"""`covey audit`: who did what."""

import time
from typing import TYPE_CHECKING

import click

from covey.cli.asking import ask_node, on_behalf
from covey.cli.output import moment, print_json, print_table
from covey.cli.values import duration
from covey.cli.verbs import Settings, json_option, verb

if TYPE_CHECKING:
    from covey.client import Client
    from covey.contracts.audit import AuditRecord

STANDINGS = {"counts": "", "void": "void: its node was removed", "waits": "waits: its node's clock is ahead"}


@verb("audit")
@click.option(
    "--limit", type=click.IntRange(min=1), default=50, show_default=True, metavar="N", help="At most so many."
)
@click.option("--since", type=duration, metavar="TIME", help="Nothing older: 30d, 12h, 45m.")
@click.option("--sessions", is_flag=True, help="Log-ins and log-outs as well.")
@json_option
@click.pass_obj
def audit(settings: Settings, *, limit: int, since: int | None, sessions: bool, as_json: bool) -> None:
    """Show who did what, the latest first.

    It is read out of the signed feeds, of every auth node.
    """
    oldest = None if since is None else time.time() - since

    async def work(client: "Client") -> "list[AuditRecord]":
        return await collect(client, limit, oldest, sessions=sessions)

    records = ask_node(settings, work)
    if as_json:
        print_json(records)
        return
    print_table(
        ["when", "who", "what", "said on", ""],
        [(moment(int(one.at)), one.by_name, one.what, one.node, STANDINGS[one.standing]) for one in records],
        empty="Nothing was done in that time." if since else "Nothing was done yet.",
    )


async def collect(client: "Client", limit: int, since: float | None, *, sessions: bool) -> "list[AuditRecord]":
    """As many records as are wanted, in as many calls as that takes."""
    from covey.contracts.audit import AUDIT, AUDIT_RECORDS_MAX, Audit

    records: list[AuditRecord] = []
    cursor = ""
    while True:
        wanted = min(limit - len(records), AUDIT_RECORDS_MAX)
        page = await client.bus.call(AUDIT, Audit(on_behalf(), wanted, cursor, since, sessions))
        records += page.records
        cursor = page.cursor
        if not cursor or len(records) >= limit:
            return records
