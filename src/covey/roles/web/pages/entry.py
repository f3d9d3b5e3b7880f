"""The ways in and out: setting up, logging in, registering, logging out."""

from collections.abc import Mapping
from typing import Any, cast

from quart import Blueprint, Response, redirect, request

from covey.contracts.auth import (
    AUTH_STATE,
    LOG_IN,
    LOG_OUT,
    PASSWORD_CHARS_MAX,
    PASSWORD_CHARS_MIN,
    REGISTER,
    SET_UP,
    AuthState,
    LogIn,
    LogOut,
    Register,
    SessionGrant,
    SetUp,
)
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.roles.web import sessions
from covey.roles.web.context import Away, ask
from covey.roles.web.forms import Form, form_page, read_form
from covey.roles.web.security import local_path

blueprint = Blueprint("entry", __name__)


def to(path: str, notice: str = "") -> Response:
    """Go on to another page (with GET), perhaps with a notice."""
    response = cast(Response, redirect(path, 303))
    if notice:
        sessions.notice(response, notice)
    return response


def enter(grant: SessionGrant, path: str, notice: str = "") -> Response:
    """Begin a session and go on."""
    response = to(path, notice)
    sessions.begin(response, grant)
    return response


def client_address() -> str:
    """Where the request came from, as the listener knows it; no header has a say in it here."""
    client = cast("Mapping[str, Any]", request.scope).get("client")
    return str(client[0]) if client else ""


def new_password(form: Form) -> str:
    """A password that was typed twice.

    Raises:
        CallError: `invalid`, too short, too long, or not the same both times.
    """
    password = form.verbatim("password")
    if not PASSWORD_CHARS_MIN <= len(password) <= PASSWORD_CHARS_MAX:
        wanted = f"Choose a password of {PASSWORD_CHARS_MIN} to {PASSWORD_CHARS_MAX} characters."
        raise CallError("invalid", wanted, param="password")
    if password != form.verbatim("again"):
        raise CallError("invalid", "The two passwords differ. Type the same one twice.", param="again")
    return password


@blueprint.get("/setup")
async def set_up_page() -> Response:
    """The first account; the link's fragment brings the secret."""
    state = await ask(AUTH_STATE, Nothing())
    if not state.needs_setup:
        return to("/login", "already_set_up")
    return await form_page("setup.html", name="", secret="")


@blueprint.post("/setup")
async def set_up() -> Response:
    """Make the first administrator."""
    form = await read_form()
    try:
        grant = await ask(SET_UP, SetUp(form.text("secret"), form.log_in_name(), new_password(form)))
    except CallError as error:
        return await form_page("setup.html", error, name=form.shown("name"), secret=form.shown("secret"))
    return enter(grant, "/", "welcome")


@blueprint.get("/login")
async def log_in_page() -> Response:
    """Who is there?"""
    if sessions.visitor().account is not None:
        return to("/")
    state = await ask(AUTH_STATE, Nothing())
    if state.needs_setup:
        return to("/setup")
    return await form_page("login.html", name="", back=local_path(request.args.get("next", "/")), state=state)


@blueprint.post("/login")
async def log_in() -> Response:
    """Begin a session."""
    form = await read_form()
    back = local_path(form.text("next"))
    try:
        grant = await ask(LOG_IN, LogIn(form.log_in_name(), form.verbatim("password"), client_address()))
    except CallError as error:
        state = await ask(AUTH_STATE, Nothing())
        return await form_page("login.html", error, name=form.shown("name"), back=back, state=state)
    return enter(grant, back)


@blueprint.get("/register")
async def register_page() -> Response:
    """Make an account; an invitation's secret comes in the link's fragment."""
    if sessions.visitor().account is not None:
        return to("/")
    state = await ask(AUTH_STATE, Nothing())
    if state.needs_setup:
        return to("/setup")
    return await _register_form(state)


@blueprint.post("/register")
async def register() -> Response:
    """Make the account, and begin a session unless it awaits approval."""
    form = await read_form()
    try:
        invitation = form.text("invitation")
        wish = Register(form.log_in_name(), new_password(form), invitation, client_address())
        registered = await ask(REGISTER, wish)
    except CallError as error:
        state = await ask(AUTH_STATE, Nothing())
        return await _register_form(state, error, name=form.shown("name"), invitation=form.shown("invitation"))
    if registered.grant is None:
        return await form_page("registered.html", name=registered.account.name)
    return enter(registered.grant, "/", "welcome")


async def _register_form(
    state: AuthState, problem: CallError | None = None, *, name: str = "", invitation: str = ""
) -> Response:
    return await form_page("register.html", problem, name=name, invitation=invitation, mode=state.registration)


@blueprint.post("/logout")
async def log_out() -> Response:
    """End the session everywhere. The browser forgets it even when the auth role cannot be told."""
    response = to("/login", "logged_out")
    try:
        await ask(LOG_OUT, LogOut(sessions.visitor().session))
    except Away:
        sessions.notice(response, "logged_out_here")
    sessions.end(response)
    return response
