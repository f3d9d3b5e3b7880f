"""Whose sessions are which. The view finds a session by its token; this finds them by their person."""

from collections.abc import Iterable

import msgspec

from covey.contracts.feeds import SessionEnd, SessionStart
from covey.store.rows import SessionRow


class _Known(msgspec.Struct, frozen=True):
    created_at: int
    expires_at: int


class SessionIndex:
    """The sessions that may be live, in memory: those of the store when it was opened, and those met since.

    It only finds sessions to end; whether one counts is always asked of the view.
    """

    def __init__(self, rows: Iterable[SessionRow], now: float) -> None:
        self._by_account: dict[str, dict[bytes, _Known]] = {}
        for row in rows:
            if row.started is not None and not row.ended and now < row.started.expires_at:
                self.learn(row.started)

    def learn(self, started: SessionStart) -> None:
        """A session has begun, here or elsewhere; telling twice changes nothing."""
        of_account = self._by_account.setdefault(started.account, {})
        of_account[started.digest] = _Known(started.created_at, started.expires_at)

    def forget(self, account: str, ended: Iterable[SessionEnd]) -> None:
        """These have ended."""
        of_account = self._by_account.get(account, {})
        for op in ended:
            of_account.pop(op.digest, None)
        if not of_account:
            self._by_account.pop(account, None)

    def ends(self, account: str, now: float, *, keep: int = 0) -> list[SessionEnd]:
        """What ends an account's sessions, but for the `keep` that began last."""
        live = {digest: known for digest, known in self._by_account.get(account, {}).items() if now < known.expires_at}
        if account in self._by_account:
            self._by_account[account] = live
        oldest_first = sorted(live, key=lambda digest: (live[digest].created_at, digest))
        return [SessionEnd(digest) for digest in oldest_first[: max(0, len(oldest_first) - keep)]]
