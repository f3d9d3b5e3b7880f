"""`covey users`: the people who may use the network."""

from typing import TYPE_CHECKING

import click

from covey.cli.asking import ask_node, on_behalf
from covey.cli.changing import Change, change, say_spread
from covey.cli.limits import chosen_limits, limit_options, limits_told
from covey.cli.output import moment, print_json, print_table
from covey.cli.values import duration, read_secret
from covey.cli.verbs import Settings, Verbs, json_option

if TYPE_CHECKING:
    from covey.client import Client
    from covey.contracts.auth import Account, LimitName

password_option = click.option(
    "--password-file", metavar="FILE", help="Holds the password in its only line; - is standard input."
)


@click.group("users", cls=Verbs)
def users() -> None:
    """Add, invite, list, rename, limit, approve and disable people."""


@users.command("add")
@click.argument("name")
@click.option("--admin", is_flag=True, help="May do everything.")
@password_option
@json_option
@click.pass_obj
def add(settings: Settings, name: str, *, admin: bool, password_file: str | None, as_json: bool) -> None:
    """Make an account. Without --password-file the password is asked for."""
    from covey.contracts.auth import ADD_USER, AddUser

    password = read_secret("password", password_file, "--password-file", confirm=True)
    request = AddUser(on_behalf(), name, password, role="admin" if admin else "user")
    sentence = f"{{}} may log in now{' and is an administrator' if admin else ''}."
    _say(change(settings, ADD_USER, request), sentence, as_json=as_json)


@users.command("list")
@json_option
@click.pass_obj
def list_(settings: Settings, *, as_json: bool) -> None:
    """List everybody."""
    from covey.contracts.auth import LIST_USERS, ListUsers

    found = ask_node(settings, lambda client: client.bus.call(LIST_USERS, ListUsers(on_behalf()))).accounts
    if as_json:
        print_json(found)
        return
    print_table(
        ["name", "role", "state", "since", "limits", "id"],
        [
            (one.name, one.role, _state(one), moment(one.created_at), "; ".join(limits_told(one.limits)), one.id)
            for one in found
        ],
        empty="There is nobody yet. Make the first administrator: covey users add NAME --admin",
    )


@users.command("approve")
@click.argument("name")
@json_option
@click.pass_obj
def approve(settings: Settings, name: str, *, as_json: bool) -> None:
    """Let somebody in who registered and waits."""
    _set_standing(settings, name, "is approved and may log in now", active=True, as_json=as_json)


@users.command("enable")
@click.argument("name")
@json_option
@click.pass_obj
def enable(settings: Settings, name: str, *, as_json: bool) -> None:
    """Let somebody in again; their keys work again too."""
    _set_standing(settings, name, "may log in again", active=True, as_json=as_json)


@users.command("disable")
@click.argument("name")
@json_option
@click.pass_obj
def disable(settings: Settings, name: str, *, as_json: bool) -> None:
    """Keep somebody out.

    Their sessions end and their keys stop working.
    """
    _set_standing(settings, name, "is disabled; their keys no longer work", active=False, as_json=as_json)


@users.command("rename")
@click.argument("name", metavar="NAME_OR_ID")
@click.argument("new")
@json_option
@click.pass_obj
def rename(settings: Settings, name: str, new: str, *, as_json: bool) -> None:
    """Give somebody the log-in name NEW.

    Their sessions, keys and password stay. Of two with one name, say which by the id.
    """
    from covey.contracts.auth import RENAME_USER, RenameUser

    request = RenameUser(on_behalf(), new, name)
    _say(change(settings, RENAME_USER, request), f"{name} logs in as {{}} now.", as_json=as_json)


@users.command("limit")
@click.argument("name")
@limit_options(removable=True)
@json_option
@click.pass_obj
def limit(
    settings: Settings,
    name: str,
    *,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    concurrency: int | None,
    budgets: "tuple[tuple[LimitName, int], ...]",
    as_json: bool,
) -> None:
    """Limit somebody, over all their keys and sessions together.

    What is not named stays as it is; none takes a limit away.
    """
    from covey.contracts.auth import LIMIT_USER, LimitUser

    limits = chosen_limits(requests_per_minute, tokens_per_minute, concurrency, budgets)
    if not limits:
        raise click.UsageError("Say which limit to set, or to take away with none: --requests-per-minute 60")
    changed = change(settings, LIMIT_USER, LimitUser(on_behalf(), name, limits))
    told = limits_told(changed.answer.limits)
    sentence = f"The limits of {{}}, over all keys: {'; '.join(told)}." if told else "{} has no limits now."
    _say(changed, sentence, as_json=as_json)


@users.command("passwd")
@click.argument("name")
@password_option
@json_option
@click.pass_obj
def passwd(settings: Settings, name: str, *, password_file: str | None, as_json: bool) -> None:
    """Set somebody's password; every session of theirs ends."""
    from covey.contracts.auth import RESET_PASSWORD, ResetPassword

    password = read_secret("new password", password_file, "--password-file", confirm=True)
    request = ResetPassword(on_behalf(), name, password)
    sentence = "{} has a new password, and is logged out everywhere."
    _say(change(settings, RESET_PASSWORD, request), sentence, as_json=as_json)


@users.command("invite")
@click.option("--admin", is_flag=True, help="Whoever uses the link becomes an administrator.")
@click.option("--expires", type=duration, default="7d", show_default=True, metavar="TIME", help="30d, 12h, 45m.")
@click.option("--label", default="", help="A note to yourself.")
@json_option
@click.pass_obj
def invite(settings: Settings, *, admin: bool, expires: int, label: str, as_json: bool) -> None:
    """Make a link with which one person can register."""
    from covey.contracts.auth import INVITE_PERSON, InvitePerson
    from covey.contracts.cluster import NODE_STATUS
    from covey.contracts.method import Nothing

    request = InvitePerson(on_behalf(), "admin" if admin else "user", label, expires)

    async def work(client: "Client") -> tuple[str, str, int]:
        invitation = await client.bus.call(INVITE_PERSON, request)
        urls = (await client.bus.call(NODE_STATUS, Nothing())).urls
        return urls[0] if urls else "", invitation.secret, invitation.expires_at

    address, secret, expires_at = ask_node(settings, work)
    link = f"{address}/register#{secret}"
    if as_json:
        print_json({"link": link, "secret": secret, "expires_at": expires_at})
        return
    click.echo(link)
    click.echo(f"The link works once, until {moment(expires_at)}.", err=True)
    if not address:
        click.echo("This node has no dashboard: put the address of one that has in front.", err=True)


def _set_standing(settings: Settings, name: str, outcome: str, *, active: bool, as_json: bool) -> None:
    from covey.contracts.auth import SET_STANDING, SetStanding

    request = SetStanding(on_behalf(), name, active)
    _say(change(settings, SET_STANDING, request), f"{{}} {outcome}.", as_json=as_json)


def _state(account: "Account") -> str:
    return f"{account.state}; name taken: choose another" if account.name_lost else account.state


def _say(changed: "Change[Account]", sentence: str, *, as_json: bool) -> None:
    """`sentence`: with braces for the account's name."""
    if as_json:
        print_json(changed.answer)
        return
    click.echo(sentence.format(changed.answer.name))
    if changed.answer.not_held_by:
        say_spread(changed.answer)
    else:
        changed.say_who_has_it()
