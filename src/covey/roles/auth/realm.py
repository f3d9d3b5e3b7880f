"""What every part of the auth role shares."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from covey.roles.auth.backoff import Backoff, LogInGuard
from covey.roles.auth.config import AuthConfig
from covey.roles.auth.holders import Holders
from covey.roles.auth.passwords import Passwords
from covey.roles.auth.people import AdminWatch, check_name_free
from covey.roles.auth.session_index import SessionIndex
from covey.roles.auth.sight import Sight
from covey.roles.base import Clock
from covey.store.feeds import Feeds
from covey.store.view import View
from covey.telemetry.metrics import Metrics

T = TypeVar("T")

ROWS_PER_TURN = 256
"""Rows of a long listing that are read (a millisecond) before other tasks get their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Realm:
    """The feeds, and what this process remembers about the people in them."""

    feeds: Feeds
    clock: Clock
    config: AuthConfig
    metrics: Metrics
    passwords: Passwords
    log_ins: LogInGuard
    registrations: Backoff
    sessions: SessionIndex
    holders: Holders
    sight: Sight
    admins: AdminWatch = field(default_factory=AdminWatch)

    @property
    def view(self) -> View:
        """What is durable now."""
        return self.feeds.view

    def check_new_name(self, view: View, name: str) -> None:
        """Raise `conflict` for a name that somebody has, or may be given elsewhere, unseen.

        To be asked inside `decide`.
        """
        self.sight.check(view)
        check_name_free(view, name)

    @property
    def now(self) -> int:
        """Unix seconds, for what is written down."""
        return int(self.clock.now())


async def taking_turns(rows: Iterable[T], keep: Callable[[T], bool] = lambda _: True) -> list[T]:
    """The rows of a long listing that are to be kept, as of its start, without holding up the event loop."""
    kept: list[T] = []
    for number, row in enumerate(rows, start=1):
        if keep(row):
            kept.append(row)
        if number % ROWS_PER_TURN == 0:
            await trio.lowlevel.checkpoint()
    return kept
