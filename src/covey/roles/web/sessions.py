"""Who is looking: the session in the cookie, as the auth role knows it, and one-line notices between two pages."""

import re
import secrets
from dataclasses import dataclass
from typing import cast

from quart import Response, g, request

from covey.contracts.auth import WHO_AM_I, Account, Actor, SessionGrant, WhoAmI
from covey.errors import CallError
from covey.roles.web.context import ask, web
from covey.roles.web.security import csrf_token

COOKIE_CHARS_MAX = 512
FORM_COOKIE_SECONDS = 24 * 3600
NOTICE_SECONDS = 60
_PORT = re.compile(r":(\d+)$")

NOTICES = {
    "logged_out": "You are logged out.",
    "logged_out_here": "This browser has forgotten your session. The auth role could not be told: it ends by itself.",
    "session_ended": "Your session has ended. Please log in again.",
    "password_changed": "Your password is changed. Every other session of yours has ended.",
    "key_revoked": "The key is revoked. Whoever still uses it is refused from now on.",
    "user_renamed": "You have a new log-in name. Your password, sessions and keys stay.",
    "user_enabled": "The account may log in and use its keys.",
    "user_disabled": "The account is disabled: its sessions have ended and its keys are refused.",
    "user_limited": "The limits hold from now on, over all keys and sessions of the account together.",
    "invite_revoked": "The invite lets nobody in any more. Whoever came in with it stays.",
    "machine_renamed": "The machine has its new name.",
    "machine_labelled": "The machine has its labels.",
    "machine_drains": "The machine takes no new work; what runs on it may finish.",
    "machine_works": "The machine takes work again.",
    "machine_removed": "The machine is removed for ever, and its links are cut.",
    "welcome": "Welcome! This is your own AI service.",
    "already_set_up": "This service is set up already. Log in with your account.",
}
"""A notice travels by its name alone, so that nobody can put words in our mouth."""
_REVOKED = re.compile(r"key_revoked\.([0-9]{1,4})\.([0-9]{1,4})")
"""That of a key with two figures: how many other nodes have it, and how many that check keys have not."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who made this request.

    Args:
        account: `None` for somebody who is not logged in.
        session: the session's token; "" without a live one.
        binding: the secret that this visitor's forms are tied to.
        ended: the browser brought a session that is over.
        fresh: `binding` was made just now and must be given to the browser.
    """

    account: Account | None
    session: str
    binding: str
    ended: bool = False
    fresh: bool = False

    @property
    def actor(self) -> Actor:
        """On whose behalf other roles are asked."""
        return Actor(session=self.session)

    @property
    def is_admin(self) -> bool:
        """Whether to offer an administrator's pages; the auth role decides for itself."""
        return self.account is not None and self.account.role == "admin"

    @property
    def csrf(self) -> str:
        """The token for this visitor's forms."""
        return csrf_token(self.binding)


def visitor() -> Visitor:
    """The visitor of the current request."""
    return cast(Visitor, g.visitor)


async def recognise() -> Visitor:
    """Find out who made the current request.

    Raises:
        Away: there is a session, and no auth role to ask about it.
    """
    token = _cookie("session")
    ended = False
    if token:
        try:
            account = await ask(WHO_AM_I, WhoAmI(token))
            return Visitor(account, token, binding=token)
        except CallError as error:
            if error.code != "unauthenticated":
                raise
            ended = True
    binding = _cookie("form")
    if binding:
        return Visitor(None, "", binding, ended=ended)
    return Visitor(None, "", secrets.token_urlsafe(32), ended=ended, fresh=True)


def begin(response: Response, grant: SessionGrant) -> None:
    """Give the browser its new session. A session is never continued across a log-in: its token is always new."""
    seconds = max(int(grant.expires_at - web().clock.now()), 1)
    _set(response, "session", grant.token, seconds)
    _delete(response, "form")


def end(response: Response) -> None:
    """Take the session away from the browser."""
    _delete(response, "session")


def notice(response: Response, name: str) -> None:
    """Show one of `NOTICES` on the next page."""
    _set(response, "notice", name, NOTICE_SECONDS)


def revoked_notice(held_by: int, not_held_by: int) -> str:
    """The name of the notice of a revocation, which tells how far it has come."""
    return f"key_revoked.{held_by}.{not_held_by}" if held_by or not_held_by else "key_revoked"


def notice_text(name: str) -> str:
    """What a notice says; "" for a name that is none."""
    figures = _REVOKED.fullmatch(name)
    if figures is None:
        return NOTICES.get(name, "")
    held_by, missing = int(figures[1]), int(figures[2])
    text = f"{NOTICES['key_revoked']} It is on {_other_nodes(held_by)}."
    return f"{text} {missing} {'has' if missing == 1 else 'have'} not confirmed it yet." if missing else text


def _other_nodes(count: int) -> str:
    if count == 0:
        return "the node that took it alone"
    return f"the node that took it and {count} other{'' if count == 1 else 's'}"


def pending_notice() -> str:
    """The text of the notice that waits to be shown, or ""."""
    return notice_text(_cookie("notice"))


def tidy(response: Response) -> None:
    """Bring the browser's cookies up to date at the end of a request; those the page has just set stay."""
    who = cast("Visitor | None", g.get("visitor"))
    if who is None:
        return
    set_now = "\n".join(response.headers.getlist("Set-Cookie"))
    if who.fresh and cookie_name("form") not in set_now and response.mimetype == "text/html":
        _set(response, "form", who.binding, FORM_COOKIE_SECONDS)
    if who.ended and cookie_name("session") not in set_now:
        end(response)
    if g.get("notice_shown") and cookie_name("notice") not in set_now:
        _delete(response, "notice")


def cookie_name(purpose: str) -> str:
    """`__Host-covey_session` under TLS; else with the port, which cookies do not tell apart by themselves."""
    name = f"covey_{purpose}"
    if request.scheme == "https":
        return f"__Host-{name}"
    port = _PORT.search(request.host)
    return f"{name}_{port[1]}" if port else name


def _cookie(purpose: str) -> str:
    value = request.cookies.get(cookie_name(purpose), "")
    return value if len(value) <= COOKIE_CHARS_MAX else ""


def _set(response: Response, purpose: str, value: str, seconds: int) -> None:
    response.set_cookie(
        cookie_name(purpose),
        value,
        max_age=seconds,
        path="/",
        secure=request.scheme == "https",
        httponly=True,
        samesite="Lax",  # not Strict: a link to a page, sent by mail, should not ask for the password again
    )


def _delete(response: Response, purpose: str) -> None:
    response.delete_cookie(
        cookie_name(purpose), path="/", secure=request.scheme == "https", httponly=True, samesite="Lax"
    )
