"""One's own account."""

from quart import Blueprint, Response

from covey.contracts.auth import CHANGE_PASSWORD, ChangePassword
from covey.errors import CallError
from covey.roles.web.context import ask
from covey.roles.web.forms import form_page, read_form
from covey.roles.web.pages.entry import enter, new_password
from covey.roles.web.sessions import visitor

blueprint = Blueprint("account", __name__)


@blueprint.get("/account")
async def page() -> Response:
    """Who one is, and the form for a new password."""
    return await form_page("account.html")


@blueprint.post("/account/password")
async def change_password() -> Response:
    """Change the password: every session ends, this one goes on with a new token."""
    form = await read_form()
    try:
        wish = ChangePassword(visitor().session, form.verbatim("old"), new_password(form))
        grant = await ask(CHANGE_PASSWORD, wish)
    except CallError as error:
        return await form_page("account.html", error)
    return enter(grant, "/account", "password_changed")
