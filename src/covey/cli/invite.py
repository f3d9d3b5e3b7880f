"""`covey invite`: the one line that lets another machine in."""

import click

from covey.cli.asking import ask_node, on_behalf
from covey.cli.output import moment, print_json, print_table
from covey.cli.values import duration
from covey.cli.verbs import Settings, Verbs, json_option

USES_SHOWN = 3


@click.group("invite", cls=Verbs, invoke_without_command=True)
@click.option(
    "--role", "roles", multiple=True, metavar="R", help="What it may be; once for each.  [default: inference]"
)
@click.option("--expires", type=duration, default="1h", show_default=True, metavar="TIME", help="7d, 12h, 45m.")
@click.option("--uses", type=click.IntRange(min=1), default=1, show_default="1", metavar="N", help="How many machines.")
@json_option
@click.pass_context
def invite(context: click.Context, *, roles: tuple[str, ...], expires: int, uses: int, as_json: bool) -> None:
    """Print the line with which another machine joins this network.

    On that machine: covey join, with that line. From the first invite on, this machine listens for others.
    """
    if context.invoked_subcommand is not None:
        return
    from covey.contracts.membership import INVITE_NODE, InviteNode

    request = InviteNode(on_behalf(), roles or ("inference",), expires, uses)
    made = ask_node(context.obj, lambda client: client.bus.call(INVITE_NODE, request))
    if as_json:
        print_json({"token": made.token, "expires": made.expires_at, "id": made.id})
        return
    click.echo(made.token)
    times = "once" if uses == 1 else f"{uses} times"
    click.echo(f"On the other machine: covey join TOKEN   It works {times}, until {moment(made.expires_at)}.", err=True)


@invite.command("list")
@json_option
@click.pass_obj
def list_(settings: Settings, *, as_json: bool) -> None:
    """List the invites of every auth node, newest first, without their secrets."""
    from covey.contracts.membership import LIST_INVITES, ListInvites

    answer = ask_node(settings, lambda client: client.bus.call(LIST_INVITES, ListInvites(on_behalf())))
    found = answer.invites
    if as_json:
        print_json(found)
        return
    print_table(
        ["id", "roles", "uses left", "until", "used by"],
        [
            (
                one.id,
                ", ".join(one.roles),
                "revoked" if one.revoked else one.uses_left,
                moment(one.expires_at),
                ", ".join(use.name for use in one.used[-USES_SHOWN:]),
            )
            for one in found
        ],
        empty="There are no invites. Make one: covey invite",
    )
    if answer.silent:
        click.echo(f"Without those of {', '.join(answer.silent)}: no answer.")


@invite.command("revoke")
@click.argument("invite_id", metavar="ID")
@json_option
@click.pass_obj
def revoke(settings: Settings, invite_id: str, *, as_json: bool) -> None:
    """Let nobody in with an invite any more.

    Whoever came in with it stays: covey nodes remove.
    """
    from covey.contracts.membership import REVOKE_INVITE, RevokeInvite

    ask_node(settings, lambda client: client.bus.call(REVOKE_INVITE, RevokeInvite(on_behalf(), invite_id)))
    if as_json:
        print_json({"id": invite_id, "revoked": True})
        return
    click.echo(f"The invite {invite_id} lets nobody in any more.")
