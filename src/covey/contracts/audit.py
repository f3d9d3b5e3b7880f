"""Who did what, read out of the signed feeds: for administrators."""

from typing import Literal

import msgspec

from covey.contracts.auth import ADMINISTRATION, Actor
from covey.contracts.method import Unary

AUDIT_RECORDS_MAX = 500
"""In one answer."""
CURSOR_CHARS_MAX = 200

AuditStanding = Literal["counts", "void", "waits"]
"""`void`: its author was removed before, or its feed is frozen there. `waits`: its author's clock is far ahead."""


class Audit(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was done, the latest first, from `cursor` on; "": from the very latest.

    `since`: Unix seconds; nothing older. `sessions`: log-ins and log-outs as well.
    """

    actor: Actor
    limit: int = 100
    cursor: str = ""
    since: float | None = None
    sessions: bool = False


class AuditRecord(msgspec.Struct, frozen=True):
    """One thing that was done.

    `at`: Unix seconds, by the clock of the node where it was said. `node` and `peer`: that node's name and peer id.
    `by`: an account id, `key:<id>`, `operator`, `setup`, `recovery`, `repair` or an invitation's id, as the feeds have
    it; "" where they do not say. `by_name`: the same as people know it. `what`: one sentence. `subject`: the id of what
    it is about; `subject_name`: how that is called now.
    """

    at: float
    node: str
    peer: str
    by: str
    by_name: str
    what: str
    subject: str
    subject_name: str
    standing: AuditStanding = "counts"


class AuditPage(msgspec.Struct, frozen=True):
    """`cursor`: where the next page begins; "" at the end. A page may be short, or empty, and yet not the last one."""

    records: tuple[AuditRecord, ...]
    cursor: str


AUDIT = Unary("auth.audit", Audit, AuditPage, access=ADMINISTRATION, idempotent=True)
"""`invalid`: no such cursor, or too many records at once."""
