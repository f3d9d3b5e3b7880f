"""Which node runs a request: the least loaded that has the model. Prefix affinity and bounded loads come later."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import trio

from covey.bus.bus import BusHandle
from covey.contracts.gateway import ModelSummary
from covey.contracts.inference import CHAT, MODELS, ModelState, ModelStatus
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.transport.base import PeerId

FRESH_SECONDS = 0.5
"""How old a view of the models may be. Asking costs microseconds in the process, half a millisecond over a link."""

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

    def __init__(self, bus: BusHandle, node_names: Mapping[PeerId, str]) -> None:
        self._bus = bus
        self._node_names = node_names
        self._views: dict[PeerId, tuple[ModelStatus, ...]] = {}
        self._seen_at = float("-inf")
        self._in_flight: dict[tuple[PeerId, str], int] = {}

    async def summaries(self) -> tuple[ModelSummary, ...]:
        """Every model of the live cluster."""
        await self._refresh()
        return summarise(self._views, self._node_names)

    async def place(self, model: str) -> PeerId:
        """The node that shall run a request for a model.

        Raises:
            CallError: `not_found` (`model_not_found`); `unreachable` where no inference node is live.
        """
        await self._refresh()
        chosen = choose(
            Candidate(peer, status, self._in_flight.get((peer, model), 0))
            for peer, statuses in self._views.items()
            for status in statuses
            if status.name == model
        )
        if chosen is not None:
            return chosen.peer
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

    async def default_model(self) -> str:
        """The model for a request that names none: the first that can answer."""
        ready = [one for one in await self.summaries() if one.state in ("loaded", "remote", "on_disk")]
        models = ready or list(await self.summaries())
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
        now = trio.current_time()
        peers = self._bus.serving(CHAT)
        if now - self._seen_at < FRESH_SECONDS and set(peers) == set(self._views):
            return
        views: dict[PeerId, tuple[ModelStatus, ...]] = {}

        async def ask(peer: PeerId) -> None:
            try:
                views[peer] = (await self._bus.call(MODELS, Nothing(), to=peer)).models
            except CallError:
                # It cannot be asked, so it cannot be given work; the next refresh tries again.
                views.pop(peer, None)

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(ask, peer)
        self._views = {peer: views[peer] for peer in peers if peer in views}
        self._seen_at = now
