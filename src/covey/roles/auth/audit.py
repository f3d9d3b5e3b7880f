"""The audit: who did what, read out of the feeds themselves, newest first, a page at a time."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import trio

from covey.bus.caller import Caller
from covey.contracts.audit import AUDIT_RECORDS_MAX, CURSOR_CHARS_MAX, Audit, AuditPage, AuditRecord, AuditStanding
from covey.contracts.feeds import AccountCreate, BudgetSpent, Op, PasswordSet, SessionEnd, SessionStart
from covey.errors import CallError
from covey.roles.auth.audit_words import by_name, said
from covey.roles.auth.credentials import administrator
from covey.roles.auth.realm import Realm
from covey.store.entries import Entry, Sealed
from covey.store.feed_log import GENESIS_KEY, is_future, read_verdict
from covey.store.genesis import read_genesis
from covey.store.history import newest_first
from covey.store.hybrid_clock import wall_seconds
from covey.store.merge import is_denial
from covey.store.rows import MemberRow
from covey.store.verdict import Verdict
from covey.store.view import View

ENTRIES_PER_CALL = 4096
"""How many are looked at for one page: log-ins that are left out count, too."""
ENTRIES_PER_TURN = 64
RECOVERY = "recovery"
"""What the node is called where the recovery key itself spoke."""

_CURSOR = re.compile(r"([0-9a-f]{1,16}):((?:members|keys|secret)/[0-9A-Za-z]{1,64}/[0-9A-Za-z]{1,64}):([0-9]{1,4})")


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the audit: an operation, by its entry's clock and feed, and its number in the entry."""

    clock: int
    feed: str
    number: int

    def __str__(self) -> str:
        return f"{self.clock:x}:{self.feed}:{self.number}"


def parse_mark(cursor: str) -> Mark:
    """The reverse; `invalid` for what is no mark."""
    found = _CURSOR.fullmatch(cursor) if len(cursor) <= CURSOR_CHARS_MAX else None
    if found is None:
        raise CallError("invalid", "There is no such place in the audit: begin anew.", param="cursor")
    return Mark(int(found[1], 16), found[2], int(found[3]))


class Auditing:
    """Serves AUDIT."""

    def __init__(self, realm: Realm) -> None:
        self._realm = realm

    async def audit(self, caller: Caller, request: Audit) -> AuditPage:
        """Serve AUDIT."""
        realm = self._realm
        administrator(realm.view, caller, request.actor, realm.clock.now())
        if not 1 <= request.limit <= AUDIT_RECORDS_MAX:
            message = f"Ask for 1 to {AUDIT_RECORDS_MAX} records at once."
            raise CallError("invalid", message, param="limit")
        begin = parse_mark(request.cursor) if request.cursor else None
        with realm.feeds.reader.snapshot() as reader:
            clerk = _Clerk(
                View(reader), read_verdict(reader), read_genesis(reader.get(GENESIS_KEY) or b"").recovery_peer
            )
            records: list[AuditRecord] = []
            upto = (begin.clock, begin.feed) if begin is not None else None
            for looked, sealed in enumerate(newest_first(reader, upto), start=1):
                entry = sealed.entry
                if request.since is not None and wall_seconds(entry.clock) < request.since:
                    return AuditPage(tuple(records), "")
                waits = is_future(reader, sealed)
                for number, op in _told(entry, sessions=request.sessions):
                    mark = Mark(entry.clock, entry.feed, number)
                    if begin is not None and upto == (entry.clock, entry.feed) and number >= begin.number:
                        continue
                    records.append(clerk.record(sealed, op, waits=waits))
                    if len(records) == request.limit:
                        return AuditPage(tuple(records), str(mark))
                if looked == ENTRIES_PER_CALL:
                    return AuditPage(tuple(records), str(Mark(entry.clock, entry.feed, 0)))
                if looked % ENTRIES_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
        return AuditPage(tuple(records), "")


class _Clerk:
    """Writes records. `recovery`: the peer id of the network's recovery key."""

    def __init__(self, view: View, verdict: Verdict, recovery: str) -> None:
        self._view = view
        self._verdict = verdict
        self._recovery = recovery

    def record(self, sealed: Sealed, op: Op, *, waits: bool) -> AuditRecord:
        """What an operation of an entry says. `waits`: all but the denials of the entry does."""
        view, author, words = self._view, sealed.feed.author, said(self._view, op)
        return AuditRecord(
            at=wall_seconds(sealed.entry.clock),
            node=RECOVERY if author == self._recovery else self._name(author),
            peer=author,
            by=words.by,
            by_name=by_name(view, words.by),
            what=words.what,
            subject=words.subject,
            subject_name=words.subject_name,
            standing=self._standing(sealed, op, waits=waits),
        )

    def _name(self, peer: str) -> str:
        row = self._view.get(MemberRow, peer)
        return row.name if row is not None and row.name else peer

    def _standing(self, sealed: Sealed, op: Op, *, waits: bool) -> AuditStanding:
        if sealed.entry.seq > self._verdict.limit(sealed.feed):
            return "void"
        return "waits" if waits and not is_denial(op) else "counts"


def _told(entry: Entry, *, sessions: bool) -> Iterator[tuple[int, Op]]:
    """The operations of an entry that are worth a record, the last one first, with their numbers.

    The first password of an account that was made in the same breath is not, and neither is what a budget counts.
    """
    made = {op.id for op in entry.ops if isinstance(op, AccountCreate)}
    for number in reversed(range(len(entry.ops))):
        op = entry.ops[number]
        if isinstance(op, SessionStart | SessionEnd) and not sessions:
            continue
        if isinstance(op, BudgetSpent) or (isinstance(op, PasswordSet) and op.id in made):
            continue
        yield number, op
