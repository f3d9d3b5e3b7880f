"""The queues at work: one lane per model, waiting on trio what `FairQueue` decides."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from prometheus_client import Gauge

from covey.contracts.inference import ModelStatus
from covey.roles.inference.queue import FairQueue, Ticket, busy
from covey.telemetry.metrics import Metrics


@dataclass(slots=True)
class _Lane:
    queue: FairQueue
    running: Gauge
    waiting: Gauge
    starts: dict[Ticket, trio.Event] = field(default_factory=dict[Ticket, trio.Event])

    def admit(self, slots: int) -> None:
        for ticket in self.queue.admit(slots, trio.current_time()):
            self.starts.pop(ticket).set()
        self.running.set(self.queue.running)
        self.waiting.set(self.queue.waiting)


class Lanes:
    """The lanes of a node. One is made when a model is first asked for; models are few."""

    def __init__(self, *, length_max: int, wait_seconds_max: float, slots_default: int, metrics: Metrics) -> None:
        self._length_max = length_max
        self._wait_seconds_max = wait_seconds_max
        self._slots_default = slots_default
        self._metrics = metrics
        self._lanes: dict[str, _Lane] = {}

    def load(self, model: str) -> int:
        """How many requests run or wait."""
        lane = self._lanes.get(model)
        return lane.queue.running + lane.queue.waiting if lane else 0

    @asynccontextmanager
    async def turn(self, status: ModelStatus, tenant: str) -> AsyncGenerator[None, None]:
        """Wait for a slot of the model's engine and hold it for the block.

        Raises:
            CallError: `no_capacity`: too many wait already, or it took too long.
        """
        lane = self._lane(status.name)
        slots = status.slots or self._slots_default
        ticket = lane.queue.arrive(tenant, slots, trio.current_time())
        start = lane.starts[ticket] = trio.Event()
        answered = False
        try:
            lane.admit(slots)
            if not ticket.running:
                with trio.move_on_after(self._wait_seconds_max):
                    await start.wait()
            if not ticket.running:
                raise busy(lane.queue.expected_wait(tenant, slots), "queue_slow")
            yield
            answered = True
        finally:
            lane.starts.pop(ticket, None)
            lane.queue.leave(ticket, trio.current_time(), answered=answered)
            lane.admit(slots)

    def _lane(self, model: str) -> _Lane:
        if (lane := self._lanes.get(model)) is None:
            lane = self._lanes[model] = _Lane(
                FairQueue(self._length_max, self._wait_seconds_max),
                self._metrics.engine_running.labels(model),
                self._metrics.engine_waiting.labels(model),
            )
        return lane
