"""What the verbs that change people, keys and machines share: asking, and telling which other nodes have it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

import click

from covey.cli.asking import ask_node
from covey.cli.verbs import Settings
from covey.contracts.method import Req, Res, Unary

if TYPE_CHECKING:
    from covey.client import Client


@dataclass(frozen=True, slots=True)
class Change(Generic[Res]):
    """What came of it. `several`: whether the network has several auth nodes, so that others should have it, too."""

    answer: Res
    several: bool

    def say_who_has_it(self, *, err: bool = False) -> None:
        """One line, where there are others to have it; `err`: on standard error."""
        if not self.several:
            return
        held_by: tuple[str, ...] = getattr(self.answer, "held_by", ())
        if held_by:
            click.echo(f"It is also on: {', '.join(held_by)}.", err=err)
        else:
            click.echo("No other node has it yet: it spreads once one is linked.", err=err)


def change(settings: Settings, method: Unary[Req, Res], request: Req) -> Change[Res]:
    """Have the running node, or the auth node that it asks, change something. Errors as `ask_node`."""

    async def work(client: "Client") -> Change[Res]:
        several = await has_several_auth_nodes(client)
        return Change(await client.bus.call(method, request), several)

    return ask_node(settings, work)


async def has_several_auth_nodes(client: "Client") -> bool:
    """As far as the running node knows."""
    from covey.contracts.cluster import LINKS
    from covey.contracts.method import Nothing

    links = await client.bus.call(LINKS, Nothing())
    return sum("auth" in roles for roles in (links.roles, *(link.roles for link in links.links))) > 1


def say_spread(answer: Any) -> None:
    """Who has confirmed a revocation, and who has not; nothing where no other node checks keys."""
    if not answer.held_by and not answer.not_held_by:
        return
    here = "On the node that answered" + (f", and on: {', '.join(answer.held_by)}" if answer.held_by else " alone")
    missing = f" Not yet on: {', '.join(answer.not_held_by)}." if answer.not_held_by else ""
    click.echo(f"{here}.{missing}")
