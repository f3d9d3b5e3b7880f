"""`covey keys`: API keys."""

from typing import TYPE_CHECKING

import click

from covey.cli.asking import ask_node, on_behalf
from covey.cli.changing import change, say_spread
from covey.cli.limits import chosen_limits, limit_options, limits_told
from covey.cli.output import moment, print_json, print_table
from covey.cli.values import duration
from covey.cli.verbs import Settings, Verbs, json_option

if TYPE_CHECKING:
    from covey.contracts.auth import KeyInfo, LimitName


@click.group("keys", cls=Verbs)
def keys() -> None:
    """Make, list and revoke API keys."""


@keys.command("create")
@click.option("--user", required=True, metavar="NAME", help="Whose key it is.")
@click.option("--label", default="", metavar="L", help="What it is for.")
@click.option("--model", "models", multiple=True, metavar="M", help="Only this model; give it once for each. [all]")
@click.option("--expires", type=duration, metavar="TIME", help="30d, 12h, 45m. [never]")
@limit_options(removable=False)
@click.option(
    "--nodes", "node_labels", multiple=True, metavar="LABEL", help="Only machines with it; give it once for each. [all]"
)
@click.option(
    "--route", "routes", multiple=True, metavar="PATH", help="Only /v1/models, or all of '/v1/*'; once for each. [all]"
)
@click.option("--admin", is_flag=True, help="May act for an administrator as such.")
@json_option
@click.pass_obj
def create(
    settings: Settings,
    *,
    user: str,
    label: str,
    models: tuple[str, ...],
    expires: int | None,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    concurrency: int | None,
    budgets: "tuple[tuple[LimitName, int], ...]",
    node_labels: tuple[str, ...],
    routes: tuple[str, ...],
    admin: bool,
    as_json: bool,
) -> None:
    """Make a key. It is printed once, alone on standard output."""
    from covey.contracts.auth import CREATE_KEY, CreateKey
    from covey.contracts.limit_words import limits_of

    limits = chosen_limits(requests_per_minute, tokens_per_minute, concurrency, budgets)
    request = CreateKey(
        on_behalf(),
        user=user,
        label=label,
        models=models,
        expires_seconds=expires,
        limits=limits_of(limits),
        admin=admin,
        node_labels=node_labels,
        routes=routes,
    )
    changed = change(settings, CREATE_KEY, request)
    made = changed.answer
    if as_json:
        print_json(made)
        return
    click.echo(made.key)
    click.echo(f"Keep it: it is shown only this once. To revoke it: covey keys revoke {made.id}", err=True)
    changed.say_who_has_it(err=True)


@keys.command("list")
@click.option("--user", metavar="NAME", help="Only theirs.")
@json_option
@click.pass_obj
def list_(settings: Settings, *, user: str | None, as_json: bool) -> None:
    """List the keys, newest first."""
    from covey.contracts.auth import LIST_KEYS, ListKeys

    request = ListKeys(on_behalf(), everyone=True)
    found = ask_node(settings, lambda client: client.bus.call(LIST_KEYS, request)).keys
    chosen = [one for one in found if user is None or user in (one.owner_name, one.owner)]
    if as_json:
        print_json(chosen)
        return
    print_table(
        ["id", "owner", "label", "state", "expires", "last used", "may"],
        [
            (
                one.id,
                one.owner_name,
                one.label,
                one.state.replace("_", " "),
                moment(one.expires_at),
                moment(one.last_used_at),
                _scope(one),
            )
            for one in chosen
        ],
        empty=f"{user} has no keys." if user else "There are no keys yet. Make one: covey keys create --user NAME",
    )


@keys.command("revoke")
@click.argument("key_id", metavar="ID")
@json_option
@click.pass_obj
def revoke(settings: Settings, key_id: str, *, as_json: bool) -> None:
    """Revoke a key, for ever.

    It says which nodes have confirmed. Revoking it again does no harm, and says who has by then.
    """
    from covey.contracts.auth import REVOKE_KEY, RevokeKey

    info = ask_node(settings, lambda client: client.bus.call(REVOKE_KEY, RevokeKey(on_behalf(), key_id)))
    if as_json:
        print_json(info)
        return
    click.echo(f"The key {info.id} of {info.owner_name} no longer works.")
    say_spread(info)


def _scope(key: "KeyInfo") -> str:
    parts = [", ".join(key.models) or "all models"]
    parts.extend(limits_told(key.limits))
    if key.node_labels:
        parts.append(f"on {', '.join(key.node_labels)}")
    parts.extend(key.routes)
    if key.admin:
        parts.append("administer")
    return "; ".join(parts)
