"""The key-value protocol in memory: for tests, and for nodes that are to keep nothing."""

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from covey.store.kv import Batch, Reader, after_prefix, claim_format, closed


class MemoryStore:
    """As `LevelStore`, without a disk: `write` returns at once and nothing survives the process."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []
        self._lock = threading.Lock()  # `write` runs in the writer's thread, reads on the event loop
        self._open = True
        claim_format(self, "memory")

    def get(self, key: bytes) -> bytes | None:
        """See `Reader`."""
        with self._lock:
            self._check_open()
            return self._values.get(key)

    def scan(
        self, prefix: bytes, *, start: bytes | None = None, limit: int | None = None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """See `Reader`."""
        with self._lock:
            self._check_open()
            end = after_prefix(prefix)
            low = bisect_left(self._keys, prefix)
            high = len(self._keys) if end is None else bisect_left(self._keys, end)
            if start is not None:
                low, high = (
                    (low, min(high, bisect_right(self._keys, start)))
                    if reverse
                    else (max(low, bisect_left(self._keys, start)), high)
                )
            keys = self._keys[low:high]
            if reverse:
                keys.reverse()
            found = [(key, self._values[key]) for key in keys[:limit]]
        yield from found

    @contextmanager
    def snapshot(self) -> Generator[Reader, None, None]:
        """See `Reader`. Copies everything."""
        frozen = MemoryStore()
        with self._lock:
            self._check_open()
            frozen._values, frozen._keys = dict(self._values), list(self._keys)
        try:
            yield frozen
        finally:
            frozen.close()

    def write(self, batch: Batch) -> None:
        """See `KeyValues`."""
        with self._lock:
            self._check_open()
            for key, value in batch:
                if value is None:
                    if self._values.pop(key, None) is not None:
                        del self._keys[bisect_left(self._keys, key)]
                else:
                    if key not in self._values:
                        insort(self._keys, key)
                    self._values[key] = value

    def close(self) -> None:
        """See `KeyValues`."""
        with self._lock:
            self._open = False

    def _check_open(self) -> None:
        if not self._open:
            raise closed("memory")
