"""Who may see what was used, and asking all gateways: each knows only what was asked of itself."""

import logging
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio
from msgspec.structs import replace

from covey.bus.bus import BusHandle
from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.contracts.auth import AUTHORIZE, AuthorizeActor, Identity
from covey.contracts.usage import (
    GROUPS_MAX,
    SPAN_SECONDS_MAX,
    USAGE,
    USAGE_RECORDS,
    AskUsage,
    UsageRecord,
    UsageRecords,
    UsageRow,
    UsageRows,
)
from covey.contracts.usage_sums import merge
from covey.errors import CallError, Code
from covey.roles.gateway.usage import UsageBook
from covey.roles.gateway.usage_rows import Question
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

ASK_SECONDS_MAX = 10.0
"""How long another gateway's totals are waited for."""
RECORDS_SECONDS_MAX = 600.0
ROWS_AT_ONCE = 200
"""In one reply: far from the most that a frame holds."""
PASSED_ON: frozenset[Code] = frozenset({"invalid", "forbidden", "too_large"})
"""What another gateway says about the question itself, and so is the answer to it."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose usage one may see: "" is everybody's, or with every key."""

    owner: str = ""
    key: str = ""


def scope_of(identity: Identity, *, with_key: bool) -> Scope:
    """What an identity may see. A key that leaks out of a program tells of its own use alone."""
    if identity.role == "admin":
        return Scope()
    return Scope(identity.owner, identity.key_id if with_key else "")


def narrow(scope: Scope, ask: AskUsage) -> Question:
    """The question, as far as one may ask it.

    Raises:
        CallError: `invalid`; `forbidden`: about somebody else.
    """
    if not (math.isfinite(ask.since) and math.isfinite(ask.until) and ask.since < ask.until):
        raise CallError("invalid", "The time has to end after it begins.", param="until")
    if ask.until - ask.since > SPAN_SECONDS_MAX:
        raise CallError("invalid", "Ask for ten years at most.", param="since")
    if len(set(ask.group_by)) != len(ask.group_by):
        raise CallError("invalid", "Group by each thing once.", param="group_by")
    if scope.owner and ask.user not in ("", scope.owner):
        raise CallError("forbidden", "Only an administrator may see what others use.", param="user")
    if scope.key and ask.key not in ("", scope.key):
        raise CallError("forbidden", "This key may see only its own use.", param="key")
    return Question(ask.since, ask.until, ask.user or scope.owner, ask.key or scope.key, ask.model)


class UsageService:
    """Serves USAGE and USAGE_RECORDS.

    Args:
        bus: as the gateway sees it.
        book: this gateway's own.
    """

    def __init__(self, bus: BusHandle, book: UsageBook) -> None:
        self._bus = bus
        self._book = book

    def serve(self) -> None:
        """From now on."""
        self._bus.serve_stream(USAGE, self.usage)
        self._bus.serve_stream(USAGE_RECORDS, self.records)

    async def usage(self, caller: Caller, ask: AskUsage, emit: Emit[UsageRows]) -> None:
        """Serve USAGE."""
        question = narrow(await self._scope(caller, ask), ask)
        parts = [await self._book.rows(question, ask.group_by)]
        silent: tuple[str, ...] = ()
        if not ask.here:

            async def take(peer: PeerId) -> None:
                parts.append(await self._rows_of(peer, ask))

            silent = await self._ask_others(take)
        rows = merge(parts, GROUPS_MAX)
        for begin in range(0, len(rows), ROWS_AT_ONCE):
            await emit(UsageRows(rows[begin : begin + ROWS_AT_ONCE]))
        if silent:
            await emit(UsageRows((), silent))

    async def records(self, caller: Caller, ask: AskUsage, emit: Emit[UsageRecords]) -> None:
        """Serve USAGE_RECORDS."""
        question = narrow(await self._scope(caller, ask), ask)

        async def pass_on(records: tuple[UsageRecord, ...]) -> None:
            await emit(UsageRecords(records))

        await self._book.records(question, pass_on)
        if ask.here:
            return
        silent: list[str] = []
        for peer in self._others():  # one after the other: nothing piles up here while the reader is slow
            there = replace(ask, here=True)
            try:
                async with self._bus.stream(
                    USAGE_RECORDS, there, to=peer, timeout_seconds=RECORDS_SECONDS_MAX
                ) as replies:
                    async for reply in replies:
                        await emit(reply)
            except CallError as error:
                silent.append(self._say_silent(peer, error))
        if silent:
            await emit(UsageRecords((), tuple(sorted(silent))))

    async def _scope(self, caller: Caller, ask: AskUsage) -> Scope:
        if not ask.actor.session and not ask.actor.key and self._speaks_for_operator(caller):
            return Scope()
        identity = await self._bus.call(AUTHORIZE, AuthorizeActor(ask.actor))
        return scope_of(identity, with_key=bool(ask.actor.key))

    def _speaks_for_operator(self, caller: Caller) -> bool:
        """This node's operator; or an auth node's, for whom its gateway or its door asks: an auth node could make
        itself an administrator, so its word is as good. Never its dashboard, which speaks for persons.
        """
        if caller.stamp == "operator":
            return True
        far = caller.peer != self._bus.me and caller.stamp in ("gateway", "member")
        return far and caller.peer in self._bus.serving(AUTHORIZE)

    def _others(self) -> list[PeerId]:
        return [peer for peer in self._bus.serving(USAGE) if peer != self._bus.me]

    async def _ask_others(self, take: Callable[[PeerId], Awaitable[None]]) -> tuple[str, ...]:
        """Ask all others at once; returns who did not answer.

        Raises:
            CallError: what one of them said about the question itself.
        """
        silent: list[str] = []
        refusals: list[CallError] = []

        async def ask(peer: PeerId) -> None:
            try:
                await take(peer)
            except CallError as error:
                if error.code in PASSED_ON:
                    refusals.append(error)
                else:
                    silent.append(self._say_silent(peer, error))

        async with trio.open_nursery() as nursery:
            for peer in self._others():
                nursery.start_soon(ask, peer)
        if refusals:
            raise refusals[0]
        return tuple(sorted(silent))

    async def _rows_of(self, peer: PeerId, ask: AskUsage) -> tuple[UsageRow, ...]:
        rows: list[UsageRow] = []
        there = replace(ask, here=True)
        async with self._bus.stream(USAGE, there, to=peer, timeout_seconds=ASK_SECONDS_MAX) as replies:
            async for reply in replies:
                rows += reply.rows
                if len(rows) > GROUPS_MAX or any(len(row.group) != len(ask.group_by) for row in reply.rows):
                    raise CallError("protocol", "It sent more lines than there can be, or others than were asked for.")
        return tuple(rows)

    def _say_silent(self, peer: PeerId, error: CallError) -> str:
        name = self._bus.name_of(peer)
        log.info("The gateway %s does not say what was used there: %s", name, error)
        return name
