"""One's own account."""

from quart import Blueprint, Response

from covey.contracts.auth import CHANGE_PASSWORD, RENAME_USER, ChangePassword, RenameUser
from covey.errors import CallError
from covey.roles.web.context import ask
from covey.roles.web.forms import form_page, read_form
from covey.roles.web.pages.entry import enter, new_password, to
from covey.roles.web.sessions import visitor

blueprint = Blueprint("account", __name__)


@blueprint.get("/account")
async def page() -> Response:
    """Who one is, and the forms for a new name and a new password."""
    return await form_page("account.html", name="")


@blueprint.post("/account/name")
async def rename() -> Response:
    """Choose another log-in name; sessions and keys go on."""
    form = await read_form()
    try:
        await ask(RENAME_USER, RenameUser(visitor().actor, form.log_in_name()))
    except CallError as error:
        return await form_page("account.html", error, name=form.shown("name"))
    return to("/account", "user_renamed")


@blueprint.post("/account/password")
async def change_password() -> Response:
    """Change the password: every session ends, this one goes on with a new token."""
    form = await read_form()
    try:
        wish = ChangePassword(visitor().session, form.verbatim("old"), new_password(form))
        grant = await ask(CHANGE_PASSWORD, wish)
    except CallError as error:
        return await form_page("account.html", error, name="")
    return enter(grant, "/account", "password_changed")
