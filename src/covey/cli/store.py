"""`covey store`: look after a data folder.

`check` and `backup` open it themselves, or ask the node that runs on it; `restore` and `repair` want it stopped.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from covey.cli.asking import ask_node
from covey.cli.output import moment, print_json
from covey.cli.values import FILE_PATH, read_secret
from covey.cli.verbs import Settings, Verbs, json_option
from covey.errors import CallError

if TYPE_CHECKING:
    from covey.client import Client
    from covey.contracts.store import CheckReport

T = TypeVar("T")

passphrase_option = click.option(
    "--passphrase-file", metavar="FILE", help="Holds the passphrase in its only line; - is standard input."
)


@click.group("store", cls=Verbs)
def store() -> None:
    """Check, back up, restore or repair a data folder."""


@store.command("check")
@json_option
@click.pass_obj
def check(settings: Settings, *, as_json: bool) -> None:
    """Check every record and signature, of a running node too. Exit code 1 where something is wrong."""
    from covey.store import maintenance

    report = _by_whoever_can(
        settings, lambda: maintenance.check(settings.folder), lambda: ask_node(settings, _check_live)
    )
    if as_json:
        print_json(report)
    else:
        _describe(report, settings.folder)
    if report.problems:
        raise CallError("storage", f"The store has {len(report.problems)} problems. Try: covey store repair")


@store.command("backup")
@click.argument("file", type=FILE_PATH)
@passphrase_option
@json_option
@click.pass_obj
def backup(settings: Settings, file: Path, *, passphrase_file: str | None, as_json: bool) -> None:
    """Write everything, this node's key included, into one encrypted FILE; the node may go on meanwhile."""
    from covey.store import maintenance

    passphrase = read_secret("passphrase", passphrase_file, "--passphrase-file", confirm=True)
    records = _by_whoever_can(
        settings,
        lambda: maintenance.backup(settings.folder, file, passphrase, now=time.time()),
        lambda: ask_node(settings, partial(_back_up_live, file, passphrase)),
    )
    if as_json:
        print_json({"file": str(file), "records": records})
        return
    click.echo(f"{file} holds {records} records and this node's key. Without its passphrase it is worth nothing.")


@store.command("restore")
@click.argument("file", type=FILE_PATH)
@passphrase_option
@json_option
@click.pass_obj
def restore(settings: Settings, file: Path, *, passphrase_file: str | None, as_json: bool) -> None:
    """Make a data folder, which must be empty, out of a backup."""
    from covey.store import maintenance

    passphrase = read_secret("passphrase", passphrase_file, "--passphrase-file", confirm=False)
    report = maintenance.restore(file, settings.folder, passphrase)
    if as_json:
        print_json(report)
        return
    _describe(report, settings.folder)
    click.echo(f"Restored at {moment(int(time.time()))}. Start it with: covey up")


@store.command("repair")
@json_option
@click.pass_obj
def repair(settings: Settings, *, as_json: bool) -> None:
    """Save what can be saved of a damaged store. Copy the folder first, if there is room."""
    from covey.store import maintenance

    report = maintenance.repair(settings.folder, now=time.time())
    if as_json:
        print_json(report)
    else:
        click.echo(f"{report.set_aside} records set aside, {report.repeated} operations said again.")
        _describe(report.check, settings.folder)
    if report.check.problems:
        raise CallError("storage", "Problems remain: restore a backup with: covey store restore FILE")


def _by_whoever_can(settings: Settings, directly: Callable[[], T], by_the_node: Callable[[], T]) -> T:
    """Do it on the folder; where a node holds that, let the node do it."""
    from covey.store.kv import StoreError

    try:
        return directly()
    except StoreError as error:
        if error.reason != "in_use":
            raise
        held = error
    try:
        return by_the_node()
    except CallError as error:
        if error.reason == "not_running":  # it is no node that holds the folder, or one that is only starting
            raise held from error
        raise


async def _check_live(client: "Client") -> "CheckReport":
    from covey.contracts.method import Nothing
    from covey.contracts.store import STORE_CHECK

    return await client.bus.call(STORE_CHECK, Nothing())


async def _back_up_live(file: Path, passphrase: str, client: "Client") -> int:
    from covey.contracts.store import STORE_BACKUP, BackUp
    from covey.store.backup import new_backup_file

    records = 0
    with new_backup_file(file) as out:
        async with client.bus.stream(STORE_BACKUP, BackUp(passphrase)) as pieces:
            async for piece in pieces:
                out.write(piece.data)
                records = piece.records
    return records


def _describe(report: "CheckReport", folder: Path) -> None:
    from covey.cli.output import plain

    for problem in report.problems:
        click.echo(f"- {plain(problem)}")
    verdict = "sound" if not report.problems else "damaged"
    click.echo(
        f"The store in {folder} is {verdict}: {report.records} records, {report.feeds} feeds, "
        f"{report.entries} entries, {report.rows} rows."
    )
    click.echo("Every signature, hash and link of every entry was checked, and every row made anew and compared.")
    if report.void:
        click.echo(f"{report.void} entries do not count: their author was removed before.")
    if report.proofs:
        click.echo(f"{report.proofs} feeds are frozen: their author wrote two different entries for one place.")
    if report.ahead:
        click.echo(f"{report.ahead} entries wait: the clock of the node that wrote them is far ahead.")
