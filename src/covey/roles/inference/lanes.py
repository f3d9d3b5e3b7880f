"""The queues at work: one lane per model, waiting on trio what `FairQueue` decides."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from types import TracebackType

import trio

from covey.contracts.inference import ModelStatus
from covey.roles.inference.queue import FairQueue, Ticket, busy
from covey.telemetry.metrics import Metrics


@dataclass(slots=True)
class _Lane:
    queue: FairQueue
    waited: Callable[[float], None]
    starts: dict[Ticket, trio.Event] = field(default_factory=dict[Ticket, trio.Event])

    def admit(self, slots: int) -> None:
        for ticket in self.queue.admit(slots, trio.current_time()):
            start = self.starts.pop(ticket, None)
            if start is not None:
                start.set()


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

    def turn(self, status: ModelStatus, tenant: str) -> "Turn":
        """Wait for a slot of the model's engine and hold it for the block.

        Raises:
            CallError: `no_capacity`: too many wait already, or it took too long.
        """
        slots = status.slots or self._slots_default
        return Turn(self._lane(status.name), tenant, slots, self._wait_seconds_max)

    def _lane(self, model: str) -> _Lane:
        if (lane := self._lanes.get(model)) is None:
            queue = FairQueue(self._length_max, self._wait_seconds_max)
            lane = self._lanes[model] = _Lane(queue, self._metrics.queue_seconds.labels(model).observe)
            self._metrics.engine_running.labels(model).set_function(lambda: queue.running)
            self._metrics.engine_waiting.labels(model).set_function(lambda: queue.waiting)
        return lane


class Turn(AbstractAsyncContextManager[None]):
    """Made by `Lanes.turn`. No generator: those cost more than all of this."""

    def __init__(self, lane: _Lane, tenant: str, slots: int, wait_seconds_max: float) -> None:
        self._lane = lane
        self._tenant = tenant
        self._slots = slots
        self._wait_seconds_max = wait_seconds_max

    async def __aenter__(self) -> None:
        """Wait."""
        lane, slots = self._lane, self._slots
        arrived_at = trio.current_time()
        self._ticket = ticket = lane.queue.arrive(self._tenant, slots, arrived_at)
        lane.admit(slots)
        if ticket.running:
            lane.waited(0)
            return
        start = lane.starts[ticket] = trio.Event()
        try:
            with trio.move_on_after(self._wait_seconds_max):
                await start.wait()
            if not start.is_set():
                raise busy(lane.queue.expected_wait(self._tenant, slots), "queue_slow")
            lane.waited(trio.current_time() - arrived_at)
        except BaseException:
            lane.starts.pop(ticket, None)
            self._leave(answered=False)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the slot back."""
        self._leave(answered=error is None)

    def _leave(self, *, answered: bool) -> None:
        self._lane.queue.leave(self._ticket, trio.current_time(), answered=answered)
        self._lane.admit(self._slots)
