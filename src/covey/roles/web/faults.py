"""What went wrong, said kindly: every failure becomes a page in the dashboard's own design, or JSON for a script."""

import logging
from dataclasses import dataclass

import msgspec
from quart import Response, g, render_template, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from covey.errors import CallError
from covey.http.problems import status_of
from covey.roles.web.context import Away, web

log = logging.getLogger(__name__)

API_PREFIXES = ("/v1/", "/api/")
NO_API = "The API is not served by this node: it has no role “gateway”. `covey nodes list` shows who has."
OTHER_API = "Nothing is here: this version serves OpenAI's API alone, below /v1/."


class Refused(Exception):
    """The request is not let through.

    Args:
        message: why, in one line.
        reason: the same in one word, for scripts.
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Fault:
    """An error page's words."""

    status: int
    title: str
    message: str
    advice: str = ""


ABSENT = {
    "auth": Fault(
        503,
        "The people's register is away",
        "No node with the role “auth” can be reached now, so nobody can be recognised.",
        "Nothing is lost. Start a node with that role (covey up --role auth), or wait until the network is back.",
    ),
    "gateway": Fault(
        503,
        "The gateway is away",
        "No node with the role “gateway” can be reached now, so models cannot be asked.",
        "Start a node with that role (covey up --role gateway), or wait until the network is back.",
    ),
}

BY_STATUS = {
    400: Fault(400, "That did not make sense", "The request was not understood.", "Go back and try again."),
    403: Fault(403, "Not for you", "You may not do this.", "An administrator can."),
    404: Fault(404, "Nothing is here", "There is no such page.", "It may have moved, or the address has a slip."),
    405: Fault(405, "Not like this", "This address is not opened this way.", "Use the links and buttons of a page."),
    408: Fault(408, "That took too long", "The request did not arrive in time.", "Try again."),
    413: Fault(413, "Too much at once", "The request is larger than this page takes.", "Send less."),
    429: Fault(429, "One moment", "Too many attempts.", "Wait a little, then try again."),
}
INTERNAL = Fault(
    500,
    "Something broke",
    "This is our mistake, not yours. The node's log says what happened.",
    "Try again in a moment.",
)


def register(app: QuartTrio) -> None:
    """Tell the application whom to ask about which failure."""
    app.register_error_handler(Away, _on_away)
    app.register_error_handler(Refused, _on_refused)
    app.register_error_handler(CallError, _on_call_error)
    app.register_error_handler(HTTPException, _on_http)
    app.register_error_handler(Exception, _on_bug)


async def _on_away(error: Away) -> Response:
    draining = Fault(503, "This node is stopping", error.cause.message, "Open the page on another node.")
    unknown = Fault(503, "Somebody is away", error.cause.message, "Try again in a moment.")
    fault = draining if error.cause.code == "draining" else ABSENT.get(error.role, unknown)
    return await _answer(fault, error.cause.code, retry_after_seconds=error.cause.retry_after_seconds or 5)


async def _on_refused(error: Refused) -> Response:
    advice = (
        ""
        if error.reason == "csrf"
        else BY_STATUS[403].advice
        if error.reason == "not_admin"
        else "Open the page itself."
    )
    return await _answer(Fault(403, "Not like this", error.message, advice), error.reason)


async def _on_call_error(error: CallError) -> Response:
    """A refusal that no form was there to show."""
    status = status_of(error)
    known = BY_STATUS.get(status, INTERNAL)
    fault = Fault(status, known.title, error.message, known.advice)
    return await _answer(fault, error.code, retry_after_seconds=error.retry_after_seconds)


async def _on_http(error: HTTPException) -> Response:
    status = error.code or 500
    if error.response is not None or status < 400:  # a redirect of the router's own
        return Response("", status, dict(error.get_headers()))
    fault = BY_STATUS.get(status) or Fault(status, error.name, error.name + ".", "")
    if status == 404 and request.path.startswith(API_PREFIXES):
        return as_json(404, "not_found", OTHER_API if "gateway" in web().node.roles else NO_API)
    return await _answer(fault, error.name.lower().replace(" ", "_"))


async def _on_bug(error: Exception) -> Response:
    log.error("The page %s failed.", request.path, exc_info=error)
    return await _answer(INTERNAL, "internal")


async def _answer(fault: Fault, code: str, *, retry_after_seconds: float | None = None) -> Response:
    if request.is_json:
        response = as_json(fault.status, code, fault.message)
    else:
        g.setdefault("visitor", None)
        response = Response(await render_template("error.html", fault=fault), fault.status)
    if retry_after_seconds is not None:
        response.headers["Retry-After"] = str(max(round(retry_after_seconds), 1))
    return response


def as_json(status: int, code: str, message: str) -> Response:
    """The same for a script: `{"error": {"message", "code"}}`."""
    body = msgspec.json.encode({"error": {"message": message, "code": code}})
    return Response(body, status, content_type="application/json")
