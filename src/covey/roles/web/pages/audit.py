"""Who did what, for administrators."""

from quart import Blueprint, Response, request

from covey.contracts.audit import AUDIT, Audit, AuditRecord
from covey.errors import CallError
from covey.roles.web.context import ask
from covey.roles.web.forms import form_page
from covey.roles.web.sessions import visitor

blueprint = Blueprint("audit", __name__)

RECORDS_PER_PAGE = 40
CALLS_MAX = 8
"""For one page: where log-ins are left out, a call may bring few records, or none."""


@blueprint.get("/audit")
async def page() -> Response:
    """The latest; `?before=CURSOR`: those before; `?sessions=1`: log-ins and log-outs as well."""
    before, sessions = request.args.get("before", ""), request.args.get("sessions") == "1"
    problem: CallError | None = None
    records: list[AuditRecord] = []
    cursor = before
    try:
        for _ in range(CALLS_MAX):
            wish = Audit(visitor().actor, RECORDS_PER_PAGE - len(records), cursor, None, sessions)
            found = await ask(AUDIT, wish)
            records += found.records
            cursor = found.cursor
            if not cursor or len(records) >= RECORDS_PER_PAGE:
                break
    except CallError as error:
        problem, cursor = error, ""
    return await form_page("audit.html", problem, records=records, older=cursor, is_first=not before, sessions=sessions)
