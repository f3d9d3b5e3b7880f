"""Which node runs a request: the least loaded that has the model and may run it. Prefix affinity comes later."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import trio

from covey.bus.bus import BusHandle
from covey.contracts.auth import Identity
from covey.contracts.gateway import ModelSummary
from covey.contracts.inference import CHAT, MODELS, Capability, ModelState, ModelStatus
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


LATEST = ":latest"
"""What Ollama's clients put behind a name that has no tag."""
_WORDS: Mapping[Capability, str] = {
    "chat": "chat",
    "completion": "go on from a raw prompt",
    "embed": "make embeddings",
    "tools": "call tools",
    "vision": "see pictures",
    "json": "keep to JSON or a schema",
    "logprobs": "tell its tokens' probabilities",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request needs of a node.

    `needs`: each capability with the field that asked for it. `labels`: the node must carry one of these; none: any.
    """

    model: str
    needs: Mapping[Capability, str] = field(default_factory=dict[Capability, str])
    labels: frozenset[str] = frozenset()


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


def lacking(wanted: Wanted, statuses: Collection[ModelStatus]) -> CallError | None:
    """Why none of those that have the model can do what is asked; `None` where one can. Pure."""
    for capability, param in wanted.needs.items():
        if not any(capability in status.capabilities for status in statuses):
            asked = f"{param}: t" if param else "T"
            return CallError(
                "unsupported", f"{asked}he model {wanted.model!r} cannot {_WORDS[capability]}.", param=param
            )
    return None


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
    """The gateway's view of who has which model, and of its own requests in flight.

    Args:
        bus: to the inference nodes.
        labels_of: what an administrator has labelled a node with.
    """

    def __init__(self, bus: BusHandle, labels_of: Callable[[PeerId], frozenset[str]]) -> None:
        self._bus = bus
        self._labels_of = labels_of
        self._views: dict[PeerId, tuple[ModelStatus, ...]] = {}
        self._asked: tuple[PeerId, ...] = ()
        self._asked_at = float("-inf")
        self._asking = trio.Lock()
        self._silent_until: dict[PeerId, float] = {}
        self._in_flight: dict[tuple[PeerId, str], int] = {}

    async def summaries(self, identity: Identity | None = None) -> tuple[ModelSummary, ...]:
        """Every model of the live cluster; of those that `identity` may use, where one is given."""
        await self._refresh()
        views = self._views
        if identity is not None and identity.node_labels:
            views = {peer: view for peer, view in views.items() if self._is_labelled(peer, identity.node_labels)}
        models = summarise(views, {peer: self._bus.name_of(peer) for peer in views})
        if identity is None or not identity.models:
            return models
        return tuple(model for model in models if model.name in identity.models)

    def _is_labelled(self, peer: PeerId, labels: Collection[str]) -> bool:
        return not self._labels_of(peer).isdisjoint(labels)

    async def place(self, wanted: Wanted, tried: Collection[PeerId] = ()) -> PeerId | None:
        """The node that shall run a request for a model; `None` where all that can were `tried` in vain.

        Raises:
            CallError: `not_found` (`model_not_found`); `unsupported` where the model cannot do what is asked;
                `forbidden` (`node_not_allowed`) where only nodes have it that the key may not use; `unreachable` where
                no inference node is live.
        """
        await self._refresh()
        having = [
            Candidate(peer, status, self._in_flight.get((peer, wanted.model), 0))
            for peer, statuses in self._views.items()
            for status in statuses
            if status.name == wanted.model
        ]
        if not having:
            if tried:
                return None
            raise self._absent(wanted.model)
        if wanted.labels and not (having := [one for one in having if self._is_labelled(one.peer, wanted.labels)]):
            labels = ", ".join(sorted(wanted.labels))
            raise CallError(
                "forbidden",
                f"No machine that this key may use (labelled {labels}) has the model {wanted.model!r}.",
                reason="node_not_allowed",
                param="model",
            )
        if wanted.needs:
            if (error := lacking(wanted, [one.status for one in having])) is not None:
                raise error
            if len(having) > 1:
                having = [one for one in having if wanted.needs.keys() <= set(one.status.capabilities)]
        chosen = choose(one for one in having if one.peer not in tried)
        return None if chosen is None else chosen.peer

    def _absent(self, model: str) -> CallError:
        if not self._views:
            return CallError(
                "unreachable",
                "No inference node is running. Start one with: covey up --role inference",
                reason="no_capacity",
                retry_after_seconds=2.0,
            )
        return CallError(
            "not_found",
            f"The model {model!r} was not found here. GET /v1/models lists those that do.",
            reason="model_not_found",
            param="model",
        )

    async def name_of(self, model: str, identity: Identity) -> str:
        """The model's name here for what a client wrote: "" is the first that can answer.

        Raises:
            CallError: `not_found` (`model_not_found`).
        """
        if not model:
            return await self._default_model(identity)
        if model.endswith(LATEST):
            bare = model.removesuffix(LATEST)
            await self._refresh()
            names = {status.name for statuses in self._views.values() for status in statuses}
            return bare if model not in names and bare in names else model
        return model

    async def _default_model(self, identity: Identity) -> str:
        models = await self.summaries(identity)
        chatting = [one for one in models if "chat" in one.capabilities] or models
        chatting = [one for one in chatting if one.state in ("loaded", "remote", "on_disk")] or chatting
        if not chatting:
            raise CallError(
                "not_found", "There is no model yet. Fetch one with: covey models pull NAME", reason="model_not_found"
            )
        return chatting[0].name

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
