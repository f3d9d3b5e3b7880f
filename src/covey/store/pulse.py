"""Tells any number of tasks that something has changed, without telling what: they look for themselves."""

import trio


class Pulse:
    """`await pulse.after(seen)` returns once `count` is beyond `seen`: no beat is missed between look and wait."""

    def __init__(self) -> None:
        self.count = 0
        self._next = trio.Event()

    def beat(self) -> None:
        """Something has changed."""
        self.count += 1
        event, self._next = self._next, trio.Event()
        event.set()

    async def after(self, seen: int) -> int:
        """Wait for a beat beyond `seen`; returns the count to wait beyond next time."""
        while self.count <= seen:
            await self._next.wait()
        return self.count
