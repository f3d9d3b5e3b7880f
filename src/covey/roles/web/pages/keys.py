"""API keys: one's own, or everybody's for an administrator."""

from urllib.parse import urlsplit

from quart import Blueprint, Response, request

from covey.contracts.auth import (
    CREATE_KEY,
    KEY_MODELS_MAX,
    LABEL_CHARS_MAX,
    LIST_KEYS,
    REVOKE_KEY,
    CreateKey,
    KeyLimits,
    ListKeys,
    NewKey,
    RevokeKey,
)
from covey.contracts.cluster import NODES
from covey.contracts.gateway import LIST_MODELS, ListModels, ModelSummary
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.roles.web.context import Away, ask
from covey.roles.web.forms import Form, form_page, read_form
from covey.roles.web.pages.entry import to
from covey.roles.web.sessions import revoked_notice, visitor

blueprint = Blueprint("keys", __name__)

DAY_SECONDS = 86_400
EXPIRIES = {"": "Never", "7": "In 7 days", "30": "In 30 days", "90": "In 90 days", "365": "In a year"}
"""What the form offers: days, and their words."""
REQUESTS_PER_MINUTE_MAX = 1_000_000


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
    per_minute = form.number("requests_per_minute", lowest=1, highest=REQUESTS_PER_MINUTE_MAX)
    return CreateKey(
        visitor().actor,
        label=label,
        models=models,
        expires_seconds=int(days) * DAY_SECONDS if days else None,
        limits=KeyLimits(requests_per_minute=per_minute),
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
    models = await known_models()
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
