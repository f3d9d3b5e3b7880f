"""The Quart application: hooks around every request, the pages, what templates know."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import trio
from jinja2 import StrictUndefined
from quart import (
    Response,
    g,
    redirect,
    request,
    send_from_directory,  # pyright: ignore[reportUnknownVariableType]
)
from quart.typing import ResponseReturnValue
from quart_trio import QuartTrio

from covey.errors import CallError
from covey.http.asgi import ASGIApp
from covey.roles.web import display, faults, sessions
from covey.roles.web.context import EXTENSION, Away, Web, web
from covey.roles.web.forms import read_form
from covey.roles.web.intake import REFUSAL, Intake
from covey.roles.web.pages import account, audit, chat, entry, keys, machines, overview, people, usage
from covey.roles.web.security import (
    ACCESS,
    CSRF_FIELD,
    CSRF_HEADER,
    HEADERS,
    SAFE_METHODS,
    comes_from_us,
    csrf_matches,
)
from covey.telemetry.access import note_route

STATIC_SECONDS = 365 * 24 * 3600
LIVE_PARTS_OF = {"overview.live": "/", "machines.live": "/nodes"}
"""The page that asks for a part of itself again and again: whoever logs in anew wants the whole."""


def build(surroundings: Web) -> QuartTrio:
    """Make the application. It serves nothing until its `startup()` has run, in its own nursery."""
    app = QuartTrio(
        "covey.roles.web",
        static_folder=None,  # served by `static_file` below, under paths that change with the contents
        template_folder=str(surroundings.assets / "templates"),
    )
    app.extensions[EXTENSION] = surroundings
    app.config["MAX_CONTENT_LENGTH"] = None  # the intake has read the body already, within limits
    app.asgi_app = Intake(cast(ASGIApp, app.asgi_app), surroundings.config)  # type: ignore[method-assign,assignment]
    app.jinja_env.undefined = StrictUndefined
    app.jinja_env.trim_blocks = app.jinja_env.lstrip_blocks = True
    app.jinja_env.filters.update(display.FILTERS)
    app.add_url_rule("/static/<version>/<path:name>", "static_file", static_file)
    for page in (entry, overview, keys, chat, account, usage, people, machines, audit):
        app.register_blueprint(page.blueprint)
    app.before_request(admit)
    app.after_request(finish)
    # Alone: those that Quart and its blueprints bring are synchronous, so they would cost every page trips to a thread.
    app.template_context_processors.clear()
    app.context_processor(template_context)
    faults.register(app)
    _check_access_table(app)
    return app


def _check_access_table(app: QuartTrio) -> None:
    """Deny by default: a page that nobody decided about keeps the role from starting."""
    undecided = {rule.endpoint for rule in app.url_map.iter_rules()} ^ set(ACCESS)
    if undecided:
        raise RuntimeError(f"ACCESS in covey.roles.web.security and the pages differ in {sorted(undecided)}")


async def digest_of(folder: Path) -> str:
    """A short word that changes with any file below `folder`."""

    def digest() -> str:
        state = hashlib.sha256()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            state.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
        return state.hexdigest()[:12]

    return await trio.to_thread.run_sync(digest)


async def admit() -> ResponseReturnValue | None:
    """Before every request: it must come from our own pages, from somebody who may, with the form's own token."""
    refusal = cast("Mapping[str, Any]", request.scope).get(REFUSAL)
    if isinstance(refusal, CallError):
        raise refusal
    endpoint = request.endpoint
    note_route("" if request.url_rule is None else request.url_rule.rule)
    changes = request.method not in SAFE_METHODS
    if endpoint is None:  # no such page: Quart answers 404 or 405, with the menu of whoever asked
        if not changes and not request.path.startswith(faults.API_PREFIXES):
            with suppress(Away, CallError):
                g.visitor = await sessions.recognise()
        return None
    if changes and not comes_from_us(
        request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin"), request.host
    ):
        raise faults.Refused("This came from another site's page, so it was not done.", reason="cross_site")
    if endpoint == "static_file":
        return None
    who = g.visitor = await sessions.recognise()
    if ACCESS[endpoint] != "anyone" and who.account is None:
        return to_log_in(ended=who.ended)
    if ACCESS[endpoint] == "admin" and not who.is_admin:
        raise faults.Refused("This page is for administrators.", reason="not_admin")
    if changes and not csrf_matches(who.binding, await _form_token()):
        raise faults.Refused("This form is out of date. Go back, load the page again and repeat.", reason="csrf")
    return None


async def _form_token() -> str:
    sent = request.headers.get(CSRF_HEADER)
    return sent if sent is not None else (await read_form()).text(CSRF_FIELD)


def to_log_in(*, ended: bool) -> ResponseReturnValue:
    """Send a visitor without a session to the log-in page: a page's, htmx's or a script's own way."""
    if request.endpoint == "chat.stream":
        return faults.as_json(401, "unauthenticated", "Your session has ended. Log in again to go on.")
    asked = request.full_path.rstrip("?") if request.method == "GET" else "/"
    back = LIVE_PARTS_OF.get(request.endpoint or "", asked)
    where = "/login" if back == "/" else f"/login?{display.query(next=back)}"
    response = cast(Response, redirect(where, 303))
    if "HX-Request" in request.headers:
        response = Response("", 401, {"HX-Redirect": where})
    if ended:
        sessions.notice(response, "session_ended")
    return response


async def finish(response: Response) -> Response:
    """After every request: cookies and headers."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Cache-Control", "no-store")
    sessions.tidy(response)
    return response


async def template_context() -> dict[str, object]:
    """What every template knows besides what its page gives it."""
    surroundings = web()

    def static(name: str) -> str:
        return f"/static/{surroundings.static_version}/{name}"

    def notice() -> str:
        text = sessions.pending_notice()
        g.notice_shown = g.get("notice_shown") or bool(text)
        return text

    return {
        "site_title": surroundings.config.site_title,
        "refresh_seconds": surroundings.config.refresh_seconds,
        "visitor": g.get("visitor"),
        "now": surroundings.clock.now(),
        "static": static,
        "notice": notice,
        "version": surroundings.node.version,
        "node_name": surroundings.node.name,
    }


async def static_file(version: str, name: str) -> Response:
    """A file of `static/`; for ever, where the path names the very contents."""
    current = web()
    response = await send_from_directory(str(current.assets / "static"), name)
    forever = f"public, max-age={STATIC_SECONDS}, immutable"
    response.headers["Cache-Control"] = forever if version == current.static_version else "no-cache"
    return response
