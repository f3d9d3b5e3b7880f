"""The machines of the network, for administrators: how they are; letting in, naming, labelling, draining, removing."""

from dataclasses import dataclass

import trio
from quart import Blueprint, Response, render_template, request

from covey.contracts.cluster import DRAIN, LINKS, NODES, Drain, LinkList, NodeList
from covey.contracts.membership import (
    INVITE_NODE,
    INVITE_USES_MAX,
    LABEL_NODE,
    LIST_INVITES,
    REMOVE_NODE,
    RENAME_NODE,
    REVOKE_INVITE,
    InviteInfo,
    InviteNode,
    Invites,
    LabelNode,
    ListInvites,
    NodeInvite,
    RemoveNode,
    RenameNode,
    RevokeInvite,
)
from covey.contracts.method import Nothing, Req, Res, Unary
from covey.errors import CallError
from covey.roles.web.context import Away, ask, web
from covey.roles.web.forms import Form, form_page, read_form
from covey.roles.web.found import Found, find
from covey.roles.web.limits import typed_labels
from covey.roles.web.machines import Machine, roster
from covey.roles.web.pages.entry import to
from covey.roles.web.sessions import visitor

blueprint = Blueprint("machines", __name__)

# Not `auth`: such a machine decides who is who, so to let one in is for those who know, at the command line.
ROLES = {"inference": "runs models", "gateway": "serves the API", "web": "serves this dashboard"}
"""What the form offers, and what it means."""
EXPIRIES = {"3600": "In an hour", "86400": "In a day", "604800": "In 7 days", "2592000": "In 30 days"}
"""What the form offers: seconds, and their words."""


@dataclass(frozen=True, slots=True)
class Network:
    """The live part of the page; each of the three may be missing by itself. `now`: Unix seconds."""

    nodes: Found[NodeList]
    links: Found[LinkList]
    invites: Found[Invites]
    now: float

    @property
    def machines(self) -> tuple[Machine, ...]:
        """Every member; without the links, this node alone."""
        return roster(self.nodes.value, self.links.value or LinkList(())) if self.nodes.value is not None else ()

    @property
    def open_invites(self) -> tuple[InviteInfo, ...]:
        """Those that could still let somebody in, newest first."""
        known = self.invites.value.invites if self.invites.value is not None else ()
        return tuple(one for one in known if one.uses_left > 0 and not one.revoked and one.expires_at > self.now)

    def named(self, peer: str) -> Machine | None:
        """The member with this peer id."""
        return next((machine for machine in self.machines if machine.peer == peer), None)


async def look() -> Network:
    """Ask for everything at once."""
    found: dict[str, Found[object]] = {}

    async def search(method: Unary[Req, Res], wanted: Req) -> None:
        # A frozen machine costs NODES two of its three seconds, so nobody is less patient here than the contract.
        found[method.name] = await find(method, wanted, patience_seconds=NODES.timeout_seconds)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(search, NODES, Nothing())
        nursery.start_soon(search, LINKS, Nothing())
        nursery.start_soon(search, LIST_INVITES, ListInvites(visitor().actor))
    return Network(found[NODES.name], found[LINKS.name], found[LIST_INVITES.name], web().clock.now())  # type: ignore[arg-type]


@blueprint.get("/nodes")
async def page() -> Response:
    """The whole page; `?rename=PEER` with the form for that machine's name, `?label=PEER` for its labels."""
    return await _machines_page(rename=request.args.get("rename", ""), label=request.args.get("label", ""))


@blueprint.get("/nodes/live")
async def live() -> str:
    """The part that the page asks for again and again."""
    return await render_template("_nodes_live.html", network=await look())


@blueprint.post("/nodes/invite")
async def invite() -> Response:
    """Make the line with which a machine joins, and show it this once."""
    form = await read_form()
    try:
        wish = _wish(form)
        made = await ask(INVITE_NODE, wish)
    except CallError as error:
        return await _machines_page(error, invite_form=form)
    return await _machines_page(made=made, made_for=wish)


def _wish(form: Form) -> InviteNode:
    roles, seconds = form.several("roles"), form.text("expires_seconds")
    if not roles or not ROLES.keys() >= set(roles):
        raise CallError("invalid", "Tick what the machine is to do: one at least.", param="roles")
    if seconds not in EXPIRIES:
        raise CallError("invalid", "Choose one of the times offered.", param="expires_seconds")
    uses = form.number("uses", lowest=1, highest=INVITE_USES_MAX) or 1
    return InviteNode(visitor().actor, roles, int(seconds), uses)


@blueprint.post("/nodes/invites/<invite_id>/revoke")
async def revoke_invite(invite_id: str) -> Response:
    """Let nobody in with an invite any more."""
    try:
        await ask(REVOKE_INVITE, RevokeInvite(visitor().actor, invite_id))
    except CallError as error:
        return await _machines_page(error)
    return to("/nodes", "invite_revoked")


@blueprint.post("/nodes/<peer>/rename")
async def rename(peer: str) -> Response:
    """Call a machine something else."""
    form = await read_form()
    try:
        await ask(RENAME_NODE, RenameNode(visitor().actor, peer, form.text("name")))
    except CallError as error:
        return await _machines_page(error, rename=peer, name=form.shown("name"))
    return to("/nodes", "machine_renamed")


@blueprint.post("/nodes/<peer>/labels")
async def label(peer: str) -> Response:
    """Give a machine labels, and take others."""
    form = await read_form()
    try:
        # What the form was shown with, so that it takes nothing that somebody else has given meanwhile.
        wanted, before = set(typed_labels(form, "labels")), set(typed_labels(form, "was"))
        add, gone = tuple(sorted(wanted - before)), tuple(sorted(before - wanted))
        if add or gone:
            await ask(LABEL_NODE, LabelNode(visitor().actor, peer, add, gone))
    except CallError as error:
        about = CallError(error.code, error.message, reason=error.reason, param="labels")
        return await _machines_page(about, label=peer, labels=form.shown("labels"))
    return to("/nodes", "machine_labelled")


@blueprint.post("/nodes/<peer>/drain")
async def drain(peer: str) -> Response:
    """Have a machine take no new work, or take work again."""
    undo = (await read_form()).text("undo") == "yes"
    try:
        await ask(DRAIN, Drain(visitor().actor, peer, undo))
    except Away as error:  # that one machine: the page itself is well
        return await _machines_page(error.cause)
    except CallError as error:
        return await _machines_page(error)
    return to("/nodes", "machine_works" if undo else "machine_drains")


@blueprint.post("/nodes/<peer>/remove")
async def remove(peer: str) -> Response:
    """Remove a machine from the network, for ever."""
    try:
        await ask(REMOVE_NODE, RemoveNode(visitor().actor, peer))
    except CallError as error:
        return await _machines_page(error)
    return to("/nodes", "machine_removed")


async def _machines_page(
    problem: CallError | None = None,
    *,
    rename: str = "",
    name: str | None = None,
    label: str = "",
    labels: str | None = None,
    invite_form: Form | None = None,
    made: NodeInvite | None = None,
    made_for: InviteNode | None = None,
) -> Response:
    network = await look()
    renamed, labelled = network.named(rename), network.named(label)
    return await form_page(
        "nodes.html",
        problem,
        network=network,
        renamed=renamed,
        name=renamed.name if renamed is not None and name is None else name,
        labelled=labelled,
        labels=" ".join(labelled.labels) if labelled is not None and labels is None else labels,
        roles=ROLES,
        expiries=EXPIRIES,
        uses_max=INVITE_USES_MAX,
        invite_form=invite_form,
        ticked=invite_form.several("roles") if invite_form is not None else ("inference",),
        made=made,
        made_for=made_for,
    )
