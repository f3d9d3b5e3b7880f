"""Which node runs a request: the least loaded that has the model. Prefix affinity and bounded loads come later."""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import trio

from covey.bus.bus import BusHandle
from covey.contracts.gateway import ModelSummary
from covey.contracts.inference import CHAT, MODELS, ModelState, ModelStatus
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.transport.base import PeerId

log = logging.getLogger(__name__)

FRESH_SECONDS = 0.5
"""How old a view of the models may be. Asking costs microseconds in the process, half a millisecond over a link."""

ASK_SECONDS_MAX = 1.0
SILENT_SECONDS = 5.0
"""How long a node that did not answer is left alone, where there are others."""

_BEST_FIRST: tuple[ModelState, ...] = ("loaded", "remote", "loading", "on_disk", "failed")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that has the model. `slots` 0 counts as one."""

    peer: PeerId
    status: ModelStatus
    in_flight: int


def choose(candidates: Iterable[Candidate]) -> Candidate | None:
    """The best node, by state, then by (in-flight + 1) / capacity; ties keep the given order. Pure."""
    return min(
        candidates,
        key=lambda one: (_rank(one.status.state), (one.in_flight + 1) / max(one.status.slots, 1)),
        default=None,
    )


def _rank(state: ModelState) -> int:
    # A loaded, a remote and an on-disk model can all answer; one being fetched, or broken, is the last resort.
    return {"loaded": 0, "remote": 0, "on_disk": 1, "loading": 2, "failed": 3}[state]


def summarise(views: Mapping[PeerId, tuple[ModelStatus, ...]], names: Mapping[PeerId, str]) -> tuple[ModelSummary, ...]:
    """The union over nodes, sorted by name. Pure."""
    by_name: dict[str, list[tuple[PeerId, ModelStatus]]] = {}
    for peer, statuses in views.items():
        for status in statuses:
            by_name.setdefault(status.name, []).append((peer, status))
    summaries: list[ModelSummary] = []
    for name, entries in sorted(by_name.items()):
        _, best = min(entries, key=lambda entry: _BEST_FIRST.index(entry[1].state))
        summaries.append(
            ModelSummary(
                name=name,
                state=best.state,
                capabilities=tuple(sorted({one for _, status in entries for one in status.capabilities})),
                nodes=tuple(dict.fromkeys(names.get(peer, str(peer)) for peer, _ in entries)),
                context_tokens=best.context_tokens,
                progress=best.progress,
                detail=best.detail,
                created_at=best.created_at,
            )
        )
    return tuple(summaries)


class Fleet:
    """The gateway's view of who has which model, and of its own requests in flight."""

    def __init__(self, bus: BusHandle) -> None:
        self._bus = bus
        self._views: dict[PeerId, tuple[ModelStatus, ...]] = {}
        self._asked: tuple[PeerId, ...] = ()
        self._asked_at = float("-inf")
        self._asking = trio.Lock()
        self._silent_until: dict[PeerId, float] = {}
        self._in_flight: dict[tuple[PeerId, str], int] = {}

    async def summaries(self) -> tuple[ModelSummary, ...]:
        """Every model of the live cluster."""
        await self._refresh()
        return summarise(self._views, {peer: self._bus.name_of(peer) for peer in self._views})

    async def place(self, model: str, tried: Collection[PeerId] = ()) -> PeerId | None:
        """The node that shall run a request for a model; `None` where all that have it were `tried` in vain.

        Raises:
            CallError: `not_found` (`model_not_found`); `unreachable` where no inference node is live.
        """
        await self._refresh()
        chosen = choose(
            Candidate(peer, status, self._in_flight.get((peer, model), 0))
            for peer, statuses in self._views.items()
            for status in statuses
            if status.name == model and peer not in tried
        )
        if chosen is not None:
            return chosen.peer
        if tried:
            return None
        if not self._views:
            raise CallError(
                "unreachable",
                "No inference node is running. Start one with: covey up --role inference",
                reason="no_capacity",
                retry_after_seconds=2.0,
            )
        raise CallError(
            "not_found",
            f"The model {model!r} does not exist here. GET /v1/models lists those that do.",
            reason="model_not_found",
            param="model",
        )

    async def default_model(self, allowed: Collection[str] = ()) -> str:
        """The model for a request that names none: the first that can answer; of the `allowed` ones, if there are any.

        Raises:
            CallError: `not_found` (`model_not_found`).
        """
        models = [one for one in await self.summaries() if not allowed or one.name in allowed]
        models = [one for one in models if one.state in ("loaded", "remote", "on_disk")] or models
        if not models:
            raise CallError(
                "not_found", "There is no model yet. Fetch one with: covey models pull NAME", reason="model_not_found"
            )
        return models[0].name

    def started(self, peer: PeerId, model: str) -> None:
        """A request runs there now."""
        self._in_flight[peer, model] = self._in_flight.get((peer, model), 0) + 1

    def ended(self, peer: PeerId, model: str) -> None:
        """It runs no longer."""
        left = self._in_flight[peer, model] - 1
        if left:
            self._in_flight[peer, model] = left
        else:
            del self._in_flight[peer, model]

    async def _refresh(self) -> None:
        if self._is_fresh():
            return
        async with self._asking:  # one asks for all that wait
            if not self._is_fresh():
                await self._ask(self._bus.serving(CHAT))

    def _is_fresh(self) -> bool:
        return trio.current_time() - self._asked_at < FRESH_SECONDS and self._bus.serving(CHAT) == self._asked

    async def _ask(self, peers: tuple[PeerId, ...]) -> None:
        now = trio.current_time()
        self._silent_until = {
            peer: until for peer, until in self._silent_until.items() if peer in peers and until > now
        }
        # A node that hangs costs a moment once in a while, not every request a moment.
        talking = [peer for peer in peers if peer not in self._silent_until] or peers
        views: dict[PeerId, tuple[ModelStatus, ...]] = {}

        async def ask(peer: PeerId) -> None:
            try:
                views[peer] = (await self._bus.call(MODELS, Nothing(), to=peer, timeout_seconds=ASK_SECONDS_MAX)).models
            except CallError as error:
                # It cannot be asked, so it cannot be given work.
                log.info("The node %s does not say which models it has: %s", self._bus.name_of(peer), error)
                self._silent_until[peer] = trio.current_time() + SILENT_SECONDS

        async with trio.open_nursery() as nursery:
            for peer in talking:
                nursery.start_soon(ask, peer)
        self._views = {peer: views[peer] for peer in peers if peer in views}
        self._asked, self._asked_at = peers, trio.current_time()
