"""One writer for the whole node, with group commit: many small durable writes for the price of one fsync.

Callers hand in a *plan*: a function from what is stored to what to write. Plans run one after the other on the event
loop, each seeing the ones before it, so a plan can check and decide without a race; what they want written goes to
the disk in one synced batch, in a thread, while the next plans queue up. Each caller resumes once its own are durable.
"""

import logging
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from time import thread_time
from typing import Any, Generic, TypeVar, cast

import trio

from covey.store.kv import Batch, KeyValues, Reader, StoreError, after_prefix
from covey.store.pulse import Pulse
from covey.telemetry.metrics import Metrics

log = logging.getLogger(__name__)
T = TypeVar("T")

Plan = Callable[[Reader], tuple[Batch, T]]
"""From what is stored (with the plans before it) to what to write, and what the caller gets. Runs on the event loop:
no waiting, no side effects (it may have run although the disk then refused), and `CallError` to refuse."""

QUEUE_MAX = 1024
"""Plans that wait; further callers wait before they are even taken."""
LOCAL_PREFIX = b"l/"
"""Where this node's own corner lies in the key space."""
USAGE_PREFIX = LOCAL_PREFIX + b"usage/"
"""And in it what gateways keep of what was used, which outlives a network that never began."""
GROUP_PLANS_MAX = 256
GROUP_BYTES_MAX = 4 * 1024 * 1024
GROUP_SECONDS_MAX = 0.005
"""How much processor time the plans of one group may take from the event loop."""


@dataclass(slots=True, eq=False)
class _Request(Generic[T]):
    plan: Plan[T]
    done: trio.Event = field(default_factory=trio.Event)
    given_up: bool = False
    result: T | None = None
    error: BaseException | None = None


class Overlay:
    """A reader over another, with changes on top that are not written yet."""

    def __init__(self, base: Reader) -> None:
        self._base = base
        self.changes: dict[bytes, bytes | None] = {}
        self._sorted: list[bytes] = []
        self.bytes = 0
        """The size of the keys and values put in, those overwritten included."""

    def get(self, key: bytes) -> bytes | None:
        """See `Reader`."""
        try:
            return self.changes[key]
        except KeyError:
            return self._base.get(key)

    def put(self, batch: Batch) -> None:
        """Lay changes on top."""
        for key, value in batch:
            if key not in self.changes:
                insort(self._sorted, key)
            self.changes[key] = value
            self.bytes += len(key) + len(value or b"")

    def scan(
        self, prefix: bytes, *, start: bytes | None = None, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """See `Reader`."""
        changed = {key: self.changes[key] for key in self._within(prefix, start, reverse=reverse)}
        if not changed:
            return self._base.scan(prefix, start=start, limit=limit, reverse=reverse)
        merged = _merge(changed, self._base.scan(prefix, start=start, reverse=reverse), reverse=reverse)
        return islice(merged, limit) if limit is not None else merged

    @contextmanager
    def snapshot(self) -> Iterator[Reader]:
        """See `Reader`."""
        with self._base.snapshot() as base:
            frozen = Overlay(base)
            frozen.put(list(self.changes.items()))
            yield frozen

    def _within(self, prefix: bytes, start: bytes | None, *, reverse: bool) -> list[bytes]:
        keys, end = self._sorted, after_prefix(prefix)
        low = bisect_left(keys, prefix)
        high = len(keys) if end is None else bisect_left(keys, end)
        if start is not None and reverse:
            high = min(high, bisect_right(keys, start))
        elif start is not None:
            low = max(low, bisect_left(keys, start))
        return keys[low:high]


def _merge(
    changed: dict[bytes, bytes | None], base: Iterator[tuple[bytes, bytes]], *, reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Two sorted sources as one; a changed key hides the stored one."""
    pending = sorted(changed, reverse=not reverse)  # taken from its end
    for key, value in base:
        while pending and (pending[-1] > key if reverse else pending[-1] < key):
            early = pending.pop()
            if (fresh := changed[early]) is not None:
                yield early, fresh
        if key not in changed:
            yield key, value
    while pending:
        late = pending.pop()
        if (fresh := changed[late]) is not None:
            yield late, fresh


class Store:
    """The node's store: reads at once, writes through the one writer. Made by `open_store`."""

    def __init__(
        self, kv: KeyValues, requests: trio.MemorySendChannel[_Request[Any]], commits: Pulse, *, in_thread: bool
    ) -> None:
        self.commits = commits
        """Beats after every durable batch."""
        self.in_thread = in_thread
        """Whether threads may work for it: not where time is virtual."""
        self._kv = kv
        self._requests = requests

    @property
    def reader(self) -> Reader:
        """What is durable, read inline."""
        return self._kv

    async def commit(self, plan: Plan[T]) -> T:
        """Run a plan in its turn and return its result once what it wants written is durable.

        Cancelled while it waits: the plan is dropped, or written whole, never in part.

        Raises:
            StoreError: the disk refused (nothing of the plan is visible), or the store is closed.
            CallError: the plan's own refusal, as whatever else it raises; it touches no other caller.
        """
        request = _Request(plan)
        try:
            await self._requests.send(request)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise StoreError("The store is closed: this node is stopping.", reason="closed") from None
        try:
            await request.done.wait()
        except trio.Cancelled:
            request.given_up = True
            raise
        if isinstance(request.error, StoreError):  # shared by a whole group: each caller raises its own
            raise StoreError(request.error.message, reason=request.error.reason) from request.error
        if request.error is not None:
            raise request.error
        return cast(T, request.result)

    def local(self, area: str) -> "Local":
        """A corner for what concerns this node alone and is never replicated, such as `usage`."""
        return Local(self, area)


class Local:
    """Rows that never leave this node, under keys of the owner's choice within its area.

    For many rows at once, or for a decision on what is there, `Store.commit` a plan over `key(...)`.
    """

    def __init__(self, store: Store, area: str) -> None:
        if not area.isidentifier():
            raise ValueError(f"an area is a plain word, not {area!r}")
        self._store = store
        self.prefix = LOCAL_PREFIX + f"{area}/".encode()

    def key(self, name: bytes) -> bytes:
        """The whole key, for plans."""
        return self.prefix + name

    def get(self, name: bytes) -> bytes | None:
        """What is durable."""
        return self._store.reader.get(self.key(name))

    def scan(
        self, prefix: bytes = b"", *, start: bytes | None = None, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """As `Reader.scan`, with names instead of whole keys."""
        first = None if start is None else self.key(start)
        for key, value in self._store.reader.scan(self.key(prefix), start=first, limit=limit, reverse=reverse):
            yield key[len(self.prefix) :], value

    async def put(self, name: bytes, value: bytes) -> None:
        """Durable when it returns; errors as `Store.commit`."""
        await self.put_all([(name, value)])

    async def delete(self, name: bytes) -> None:
        """Durable when it returns; one that is not there is no error."""
        await self.put_all([(name, None)])

    async def put_all(self, batch: Batch) -> None:
        """All or nothing; `None` deletes."""
        whole = [(self.key(name), value) for name, value in batch]
        await self._store.commit(lambda _: (whole, None))


@asynccontextmanager
async def open_store(kv: KeyValues, metrics: Metrics, *, in_thread: bool = True) -> AsyncGenerator[Store, None]:
    """Run the writer. Leaving writes whatever was accepted, then closes `kv`, even when cancelled.

    Args:
        kv: an open store; it belongs to this block from now on.
        metrics: counts the batches and the writes they held.
        in_thread: write in a thread. False for a store that never blocks where time is virtual: it would leap while
            the thread works.
    """
    send, receive = trio.open_memory_channel[_Request[Any]](QUEUE_MAX)
    commits = Pulse()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_Writer(kv, metrics, receive, commits, in_thread=in_thread).run, name="store writer")
            try:
                yield Store(kv, send, commits, in_thread=in_thread)
            finally:
                # Closing leaves what is queued to the writer, which is shielded and ends when it has written it.
                send.close()
    finally:
        kv.close()


class _Writer:
    """The one task that writes."""

    def __init__(
        self,
        kv: KeyValues,
        metrics: Metrics,
        requests: trio.MemoryReceiveChannel[_Request[Any]],
        commits: Pulse,
        *,
        in_thread: bool,
    ) -> None:
        self._kv = kv
        self._metrics = metrics
        self._requests = requests
        self._commits = commits
        self._in_thread = in_thread
        self._thread = trio.CapacityLimiter(1)  # never behind the threads of others

    async def run(self) -> None:
        """Until the sending side is closed and everything is written. Shielded: a cancelled node loses nothing."""
        with trio.CancelScope(shield=True):
            async for first in self._requests:
                await self._write_group(first)

    async def _write_group(self, first: _Request[Any]) -> None:
        overlay = Overlay(self._kv)
        planned: list[_Request[Any]] = []
        started, request = thread_time(), first
        while True:
            if not request.given_up and self._plan(request, overlay):
                planned.append(request)
            if len(planned) >= GROUP_PLANS_MAX or overlay.bytes >= GROUP_BYTES_MAX:
                break
            if thread_time() - started >= GROUP_SECONDS_MAX:
                break
            try:
                request = self._requests.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                break
        if planned:
            await self._write(overlay, planned)

    def _plan(self, request: _Request[Any], overlay: Overlay) -> bool:
        """Run a plan; `False` where it raised, which only its caller hears of."""
        try:
            batch, request.result = request.plan(overlay)
        except Exception as error:  # noqa: BLE001 - handed to the caller, who raises it
            request.error = error
            request.done.set()
            return False
        overlay.put(batch)
        return True

    async def _write(self, overlay: Overlay, planned: list[_Request[Any]]) -> None:
        failure: Exception | None = None
        if overlay.changes:
            batch = list(overlay.changes.items())
            try:
                if self._in_thread:
                    await trio.to_thread.run_sync(self._kv.write, batch, limiter=self._thread)
                else:
                    await trio.lowlevel.checkpoint()
                    self._kv.write(batch)
            except StoreError as error:
                failure = error
                log.error("A durable write failed: %s", error)  # noqa: TRY400 - the message is the remedy
            except Exception as error:
                failure = error
                log.exception("The store has a bug.")
            else:
                self._metrics.store_commits.inc()
                self._metrics.store_writes.inc(len(planned))
        for request in planned:
            request.error = failure
            request.done.set()
        if overlay.changes and failure is None:
            self._commits.beat()
