"""When each key was last used: of interest to people, of no consequence, and so never replicated."""

import logging
from collections.abc import Mapping

import trio

from covey.contracts.keys import KEY_ID_CHARS
from covey.errors import CallError
from covey.store.rows import KeyRow
from covey.store.view import View
from covey.store.writer import Local

log = logging.getLogger(__name__)

PREFIX = b"key_used/"
CLOCK_SKEW_SECONDS_MAX = 60
CLOSE_SECONDS_MAX = 5.0


class KeyUsage:
    """In memory, and written now and then to this node's own corner of the store: a crash loses a minute of it."""

    def __init__(self, local: Local) -> None:
        self._local = local
        self._unwritten: dict[str, int] = {}

    def record(self, view: View, used_at: Mapping[str, int], now: int) -> None:
        """What a gateway reports: Unix seconds by key id. Unknown keys are left out, and the future is now."""
        for key_id, at in used_at.items():
            if len(key_id) != KEY_ID_CHARS or not key_id.isascii() or view.get(KeyRow, key_id) is None:
                continue
            at_most = min(at, now) if at <= now + CLOCK_SKEW_SECONDS_MAX else now
            if at_most > (self.last_used_at(key_id) or 0):
                self._unwritten[key_id] = at_most

    def last_used_at(self, key_id: str) -> int | None:
        """Unix seconds, as far as this node was told."""
        if (at := self._unwritten.get(key_id)) is not None:
            return at
        stored = self._local.get(PREFIX + key_id.encode())
        return None if stored is None else int(stored)

    async def keep(self, flush_seconds: float) -> None:
        """Write it down every `flush_seconds`, until cancelled; then once more."""
        try:
            while True:
                await trio.sleep(flush_seconds)
                await self.flush()
        finally:
            with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
                await self.flush()

    async def flush(self) -> None:
        """Write down what is new. What the disk refuses is kept for the next time."""
        batch = dict(self._unwritten)
        if not batch:
            return
        try:
            await self._local.put_all([(PREFIX + key.encode(), str(at).encode()) for key, at in batch.items()])
        except CallError as error:
            log.warning("The keys' last use could not be written: %s", error)
            return
        for key_id, at in batch.items():
            if self._unwritten.get(key_id) == at:
                del self._unwritten[key_id]
