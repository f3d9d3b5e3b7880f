"""API keys: one's own, or everybody's for an administrator."""

from urllib.parse import urlsplit

from quart import Blueprint, Response, request

from covey.contracts.auth import (
    CREATE_KEY,
    KEY_MODELS_MAX,
    KEY_NODE_LABELS_MAX,
    LABEL_CHARS_MAX,
    LIST_KEYS,
    REVOKE_KEY,
    CreateKey,
    KeyLimits,
    ListKeys,
    NewKey,
    RevokeKey,
)
from covey.contracts.cluster import LINKS, NODES
from covey.contracts.gateway import API_ROUTES, LIST_MODELS, ListModels, ModelSummary
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.roles.web.context import Away, ask
from covey.roles.web.forms import Form, form_page, read_form
from covey.roles.web.limits import fields, is_about_limits, typed
from covey.roles.web.pages.entry import to
from covey.roles.web.sessions import revoked_notice, visitor

blueprint = Blueprint("keys", __name__)

DAY_SECONDS = 86_400
EXPIRIES = {"": "Never", "7": "In 7 days", "30": "In 30 days", "90": "In 90 days", "365": "In a year"}
"""What the form offers: days, and their words."""


@blueprint.get("/keys")
async def page() -> Response:
    """The list, and the form for a new key."""
    return await _keys_page(everyone=visitor().is_admin and request.args.get("everyone") == "1")


@blueprint.post("/keys")
async def create() -> Response:
    """Make a key, and show it this once."""
    form = await read_form()
    try:
        wish = _wish(form)
        made = await ask(CREATE_KEY, wish)
    except CallError as error:
        return await _keys_page(error, form=form)
    return await _keys_page(made=made, made_for=wish)


def _wish(form: Form) -> CreateKey:
    label, models, days = form.text("label"), form.several("models"), form.text("expires_days")
    if not 1 <= len(label) <= LABEL_CHARS_MAX:
        wanted = f"Give it a name of up to {LABEL_CHARS_MAX} characters, so that you know it again."
        raise CallError("invalid", wanted, param="label")
    if len(models) > KEY_MODELS_MAX:
        raise CallError("invalid", f"Tick up to {KEY_MODELS_MAX} models, or none for all of them.", param="models")
    if days not in EXPIRIES:
        raise CallError("invalid", "Choose one of the times offered.", param="expires_days")
    node_labels, routes = form.several("node_labels"), form.several("routes")
    if len(node_labels) > KEY_NODE_LABELS_MAX:
        wanted = f"Tick up to {KEY_NODE_LABELS_MAX} labels, or none for every machine."
        raise CallError("invalid", wanted, param="node_labels")
    return CreateKey(
        visitor().actor,
        label=label,
        models=models,
        expires_seconds=int(days) * DAY_SECONDS if days else None,
        limits=typed(form),
        node_labels=node_labels,
        routes=routes,
    )


@blueprint.post("/keys/<key_id>/revoke")
async def revoke(key_id: str) -> Response:
    """Take a key back, for ever."""
    form = await read_form()
    gone = await ask(REVOKE_KEY, RevokeKey(visitor().actor, key_id))
    notice = revoked_notice(len(gone.held_by), len(gone.not_held_by))
    return to("/keys?everyone=1" if form.text("everyone") else "/keys", notice)


async def _keys_page(
    problem: CallError | None = None,
    *,
    everyone: bool = False,
    form: Form | None = None,
    made: NewKey | None = None,
    made_for: CreateKey | None = None,
) -> Response:
    models, labels = await known_models(), await known_labels()
    listed = await ask(LIST_KEYS, ListKeys(visitor().actor, everyone))
    return await form_page(
        "keys.html",
        problem,
        keys=listed.keys,
        models=models,
        everyone=everyone,
        expiries=EXPIRIES,
        form=form,
        ticked=form.several("models") if form is not None else (),
        limit_fields=fields(KeyLimits(), form),
        labels=labels,
        ticked_labels=form.several("node_labels") if form is not None else (),
        routes=API_ROUTES,
        ticked_routes=form.several("routes") if form is not None else (),
        held=form is not None and _is_held(form, problem),
        made=made,
        made_for=made_for,
        example_model=_example_model(made_for, models),
        base_url=await api_url() if made is not None else "",
    )


async def known_models() -> tuple[ModelSummary, ...]:
    """The models to choose from; none while the gateway is away: a key can be made without it."""
    try:
        return (await ask(LIST_MODELS, ListModels(visitor().actor))).models
    except Away:
        return ()


async def known_labels() -> tuple[str, ...]:
    """The labels that machines have, to choose from; none while nobody can say."""
    try:
        found = await ask(LINKS, Nothing())
    except (Away, CallError):
        return ()
    return tuple(sorted({*found.labels, *(label for link in found.links for label in link.labels)}))


def _is_held(form: Form, problem: CallError | None) -> bool:
    """Whether the folded part of the form has something to show."""
    about = problem is not None and problem.param in ("node_labels", "routes")
    filled = any(field.value for field in fields(KeyLimits(), form))
    return about or filled or is_about_limits(problem) or bool(form.several("node_labels") + form.several("routes"))


def _example_model(made_for: CreateKey | None, models: tuple[ModelSummary, ...]) -> str:
    chosen = made_for.models if made_for is not None else ()
    names = chosen or tuple(model.name for model in models)
    return names[0] if names else "MODEL"


async def api_url() -> str:
    """Where programs find the API: here, if this node is a gateway, else at one that is."""
    here = f"{request.scheme}://{request.host}"
    try:
        nodes = (await ask(NODES, Nothing())).nodes
    except (Away, CallError):
        return f"{here}/v1"
    if nodes and "gateway" in nodes[0].roles:
        return f"{here}/v1"
    elsewhere = [url for node in nodes if "gateway" in node.roles for url in node.urls if urlsplit(url).netloc]
    return f"{elsewhere[0].rstrip('/') if elsewhere else here}/v1"
