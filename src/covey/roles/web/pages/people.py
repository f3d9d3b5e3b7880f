"""Accounts, for administrators: invite, add, approve, disable, enable, limits, a new password."""

import secrets
from dataclasses import dataclass

from quart import Blueprint, Response, request

from covey.contracts.auth import (
    ADD_USER,
    AUTH_STATE,
    INVITE_PERSON,
    LIMIT_USER,
    LIST_USERS,
    RESET_PASSWORD,
    SET_STANDING,
    AccountRole,
    AddUser,
    InvitePerson,
    LimitUser,
    ListUsers,
    ResetPassword,
    SetStanding,
)
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.roles.web.context import ask
from covey.roles.web.forms import Form, form_page, read_form
from covey.roles.web.limits import changes, fields, is_about_limits
from covey.roles.web.pages.entry import to
from covey.roles.web.sessions import visitor

blueprint = Blueprint("people", __name__)

# Without look-alikes (0 and o, 1 and l), to be read aloud; 4 groups of 5 are 98 bits.
_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class Handover:
    """Something secret to give to a person, shown this once."""

    title: str
    text: str
    secret: str
    advice: str


@blueprint.get("/users")
async def page() -> Response:
    """The list; `?limit=ID` with the form for that account's limits."""
    return await _people_page(limited=request.args.get("limit", ""))


@blueprint.post("/users")
async def add() -> Response:
    """Make an account with a password that the administrator hands over."""
    form = await read_form()
    password = made_up_password()
    try:
        account = await ask(ADD_USER, AddUser(visitor().actor, form.log_in_name(), password, _role(form)))
    except CallError as error:
        return await _people_page(error, name=form.shown("name"), opened="add")
    return await _people_page(
        handover=_password_handover(f"The account {account.name} is ready", account.name, password)
    )


@blueprint.post("/users/invite")
async def invite() -> Response:
    """Make a one-time link, with which a person registers and chooses their own password."""
    form = await read_form()
    try:
        days = form.number("days", lowest=1, highest=30) or 7
        wish = InvitePerson(visitor().actor, _role(form), form.text("label"), days * _DAY_SECONDS)
        invitation = await ask(INVITE_PERSON, wish)
    except CallError as error:
        return await _people_page(error, opened="invite")
    link = f"{request.scheme}://{request.host}/register#{invitation.secret}"
    who = "an administrator" if invitation.role == "admin" else "a user"
    text = f"Whoever opens it first becomes {who}. It works once, for {days} day{'' if days == 1 else 's'}."
    return await _people_page(handover=Handover("The invitation is ready", text, link, "Send this link to one person."))


@blueprint.post("/users/<account_id>/standing")
async def set_standing(account_id: str) -> Response:
    """Approve, enable or disable."""
    form = await read_form()
    active = form.text("active") == "yes"
    try:
        await ask(SET_STANDING, SetStanding(visitor().actor, account_id, active))
    except CallError as error:
        return await _people_page(error)
    return to("/users", "user_enabled" if active else "user_disabled")


@blueprint.post("/users/<account_id>/limits")
async def limit(account_id: str) -> Response:
    """Limit somebody, over all their keys and sessions."""
    form = await read_form()
    try:
        await ask(LIMIT_USER, LimitUser(visitor().actor, account_id, changes(form)))
    except CallError as error:
        return await _people_page(error, limited=account_id, limit_form=form)
    return to("/users", "user_limited")


@blueprint.post("/users/<account_id>/password")
async def reset_password(account_id: str) -> Response:
    """Set a new password, for the administrator to hand over."""
    password = made_up_password()
    try:
        account = await ask(RESET_PASSWORD, ResetPassword(visitor().actor, account_id, password))
    except CallError as error:
        return await _people_page(error)
    return await _people_page(handover=_password_handover(f"{account.name} has a new password", account.name, password))


def _password_handover(title: str, name: str, password: str) -> Handover:
    return Handover(title, f"Log-in name: {name}", password, "Hand it over in person; it can be changed under Account.")


def made_up_password() -> str:
    """A random password that can be read aloud."""
    return "-".join("".join(secrets.choice(_LETTERS) for _ in range(5)) for _ in range(4))


def _role(form: Form) -> AccountRole:
    return "admin" if form.text("role") == "admin" else "user"


async def _people_page(
    problem: CallError | None = None,
    *,
    handover: Handover | None = None,
    name: str = "",
    opened: str = "",
    limited: str = "",
    limit_form: Form | None = None,
) -> Response:
    listed = await ask(LIST_USERS, ListUsers(visitor().actor))
    state = await ask(AUTH_STATE, Nothing())
    pending_first = sorted(listed.accounts, key=lambda account: (account.state != "pending", account.name))
    one = next((account for account in listed.accounts if account.id == limited), None)
    return await form_page(
        "users.html",
        problem,
        limited=one,
        limit_fields=fields(one.limits, limit_form) if one is not None else (),
        about_limits=is_about_limits(problem),
        accounts=pending_first,
        registration=state.registration,
        handover=handover,
        name=name,
        opened=opened,
    )
