"""This gateway's book of what was used: taken down in memory, written in batches, read, and in time forgotten."""

import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from itertools import islice

import trio

from covey.contracts.usage import GROUPS_MAX, Dimension, UsageRecord, UsageRow
from covey.contracts.usage_sums import Ledger, counts_hours
from covey.errors import CallError
from covey.roles.base import Clock
from covey.roles.gateway.usage_rows import (
    AREA,
    DAYS,
    HOURS,
    RECORDS,
    Counts,
    Delta,
    Question,
    Retention,
    group_of,
    is_over,
    prune,
    read_record,
    read_total,
    record_name,
    total_of,
    total_start,
)
from covey.store.kv import Batch, Reader, StoreError
from covey.store.writer import Store
from covey.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

PENDING_MAX = 20_000
"""Records that wait for the disk: some ten seconds of the most that one gateway does. Those beyond are not kept."""
BATCH_MAX = 250
TURN_ROWS = 50
"""How many records or totals are worked on before others get their turn: a fraction of a millisecond."""
EMIT_MAX = 200
PRUNE_SECONDS = 600.0
COMMIT_SECONDS_MAX = 5.0
RETRY_SECONDS_MAX = 60.0


class UsageBook:
    """What was asked of this gateway. Others are told nothing by itself: who asks adds up what each gateway says.

    A `kill -9` or a power cut loses what was recorded within the last `flush_seconds`.

    Args:
        store: the records go to this node's own corner of it.
        clock: says what is too old.
        metrics: counts what could not be written.
        retention: what is kept.
        flush_seconds: how long records wait in memory, to be written together.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        metrics: Metrics,
        retention: Retention | None = None,
        *,
        flush_seconds: float = 1.0,
    ) -> None:
        self._failures = metrics.usage_failures
        self._store = store
        self._key: Callable[[bytes], bytes] = store.local(AREA).key
        self._clock = clock
        self._retention = retention or Retention()
        self._flush_seconds = flush_seconds
        self._pending: deque[UsageRecord] = deque()
        self._lost = 0
        self._refused = False
        self._writing = trio.Lock()

    def record(self, record: UsageRecord) -> None:
        """Take down a request. Neither waits nor fails: those beyond `PENDING_MAX` unwritten ones are only counted."""
        if len(self._pending) < PENDING_MAX:
            self._pending.append(record)
        else:
            self._lost += 1

    async def run(self) -> None:
        """Write and prune, until cancelled; then write what is left, for `COMMIT_SECONDS_MAX` at most."""
        prune_at, wait_seconds = trio.current_time(), self._flush_seconds
        try:
            while True:
                await trio.sleep(wait_seconds)
                counts = await self.flush()
                if self._refused:  # the writer logs every attempt
                    wait_seconds = min(2 * wait_seconds, RETRY_SECONDS_MAX)
                    continue
                wait_seconds = self._flush_seconds
                if trio.current_time() >= prune_at or (counts is not None and is_over(counts, self._retention)):
                    await self._prune()
                    prune_at = trio.current_time() + PRUNE_SECONDS
        finally:
            with trio.move_on_after(COMMIT_SECONDS_MAX, shield=True):
                await self.flush()

    async def flush(self) -> Counts | None:
        """Write what waits; what the disk refuses goes on waiting. Returns how much is stored now, if that is known."""
        counts: Counts | None = None
        async with self._writing:
            # What comes meanwhile waits for the next time: a busy gateway would write a few at a time, without end.
            left = len(self._pending)
            while left > 0:
                batch = list(islice(self._pending, min(left, BATCH_MAX)))
                left -= len(batch)
                try:
                    counts = await self._write(batch)
                except CallError as error:
                    self._say_refused(error)
                    return None
                for _ in batch:
                    self._pending.popleft()
                self._say_written()
        return counts

    async def _write(self, batch: list[UsageRecord]) -> Counts | None:
        delta = Delta()
        for place, record in enumerate(batch):
            delta.add(record)
            if place % TURN_ROWS == TURN_ROWS - 1:
                await trio.lowlevel.checkpoint()

        def plan(reader: Reader) -> tuple[Batch, Counts]:
            return delta.apply(reader, self._key)

        # Shielded: one that is cancelled in the middle may be written, and the next attempt would count it twice.
        with trio.move_on_after(COMMIT_SECONDS_MAX, shield=True):
            return await self._store.commit(plan)
        log.warning("The disk takes its time: %d records of usage may be lost, or not.", len(batch))
        return None

    async def _prune(self) -> None:
        def plan(reader: Reader) -> tuple[Batch, bool]:
            return prune(reader, self._key, self._clock.now(), self._retention)

        try:
            while await self._store.commit(plan):
                pass
        except StoreError as error:
            self._say_refused(error)

    def _say_refused(self, error: CallError) -> None:
        self._failures.inc()
        if not self._refused:
            self._refused = True
            log.error(
                "What is used cannot be written down; up to %d requests are kept in memory: %s",
                PENDING_MAX,
                error.message,
            )

    def _say_written(self) -> None:
        if self._refused:
            self._refused = False
            log.warning("What is used is written down again; %d requests were not kept.", self._lost)
        elif self._lost:
            log.warning("The disk was too slow: the usage of %d requests was not kept.", self._lost)
        self._lost = 0

    # Reading

    async def rows(self, question: Question, group_by: tuple[Dimension, ...]) -> tuple[UsageRow, ...]:
        """Totals of whole hours or days, outwards, one line for each group that occurs, sorted.

        Raises:
            CallError: `too_large`; `storage`.
        """
        kind = HOURS if counts_hours(question.since, question.until, group_by) else DAYS
        ledger = Ledger(GROUPS_MAX)
        first, beyond = total_start(kind, question.since), question.until
        async with self._reading() as (reader, pending):
            turn = 0
            for _, value in reader.scan(self._key(kind), start=self._key(first)):
                total = read_total(value)
                if total is not None and total.start >= beyond:
                    break
                if total is not None and question.means_total(total):
                    ledger.add(group_of(total, group_by), total.sums)
                turn = await _take_turns(turn)
            for record in pending:
                name, total = total_of(kind, record)
                if name >= first and total.start < beyond and question.means_total(total):
                    ledger.add(group_of(total, group_by), total.sums)
                turn = await _take_turns(turn)
        return ledger.rows()

    async def records(self, question: Question, emit: Callable[[tuple[UsageRecord, ...]], Awaitable[None]]) -> None:
        """Hand on the requests themselves, in the order in which they ended, `EMIT_MAX` at once.

        Raises:
            CallError: `storage`.
        """
        async with self._reading() as (reader, pending):
            found: list[UsageRecord] = []
            last, turn = self._key(record_name(question.until)), 0
            for name, value in reader.scan(self._key(RECORDS), start=self._key(record_name(question.since))):
                if name >= last:
                    break
                record = read_record(value)
                if record is not None and question.means_record(record):
                    found.append(record)
                if len(found) == EMIT_MAX:
                    await emit(tuple(found))
                    found.clear()
                turn = await _take_turns(turn)
            found += [record for record in pending if question.means_record(record)]
        for begin in range(0, len(found), EMIT_MAX):
            await emit(tuple(found[begin : begin + EMIT_MAX]))

    @asynccontextmanager
    async def _reading(self) -> AsyncGenerator[tuple[Reader, list[UsageRecord]], None]:
        """What is stored, and what is not yet: as of one moment."""
        with ExitStack() as stack:
            async with self._writing:  # nothing is on its way to the disk now, so nothing is in both or in neither
                reader = stack.enter_context(self._store.reader.snapshot())
                pending = list(self._pending)
            yield reader, pending


async def _take_turns(turn: int) -> int:
    """Count one more row; every `TURN_ROWS` of them others have their turn."""
    if turn % TURN_ROWS == TURN_ROWS - 1:
        await trio.lowlevel.checkpoint()
    return turn + 1
