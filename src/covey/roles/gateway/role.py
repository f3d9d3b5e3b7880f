"""Opens the gateway: its HTTP application and its methods on the bus."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import trio
from msgspec.structs import replace

from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.contracts.auth import Actor, Identity
from covey.contracts.gateway import COMPLETE, LIST_MODELS, STATS, GatewayStats, ListModels, ModelSummaries
from covey.contracts.gateway import Completion as CompletionRequest
from covey.contracts.inference import ChatDelta
from covey.contracts.method import Nothing
from covey.roles.base import Parts, Role
from covey.roles.gateway.admission import OPERATOR, Admission, asked_key, refusal
from covey.roles.gateway.completions import Completions
from covey.roles.gateway.live import LiveRequests
from covey.roles.gateway.placement import Fleet
from covey.roles.gateway.routes import Api
from covey.roles.gateway.stats import Tally

FLUSH_SECONDS = 5.0


class GatewayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[gateway]`."""

    body_bytes_max: int = 8 * 1024 * 1024
    body_seconds_max: float = 30.0
    request_seconds_max: float = 600.0
    requests_in_flight_max: int = 512
    ping_seconds: float = 10.0
    key_use_report_seconds: float = 30.0


class Gateway:
    """The methods that other roles and the operator call."""

    def __init__(
        self, admission: Admission, completions: Completions, fleet: Fleet, tally: Tally, requests: LiveRequests
    ) -> None:
        self._requests = requests
        self._admission = admission
        self._completions = completions
        self._fleet = fleet
        self._tally = tally

    async def complete(self, caller: Caller, request: CompletionRequest, emit: Emit[ChatDelta]) -> None:
        """Serve COMPLETE."""
        key = asked_key(request.actor.key) if request.actor.key else None
        with self._requests.watch(key) as live:
            identity = await self._identify(caller, request.actor)
            live.belongs_to(identity.owner)
            decision = self._admission.admit(identity)
            if decision is not None and not decision.allowed:
                raise refusal(decision)
            async with self._completions.open(
                identity, request.chat, live, route=COMPLETE.name, started_at=trio.current_time()
            ) as completion:
                while deltas := await completion.batch():
                    for delta in deltas:
                        await emit(delta if delta.finish is None else replace(delta, model=completion.model))

    async def list_models(self, caller: Caller, request: ListModels) -> ModelSummaries:
        """Serve LIST_MODELS."""
        identity = await self._identify(caller, request.actor)
        models = await self._fleet.summaries()
        return ModelSummaries(tuple(one for one in models if not identity.models or one.name in identity.models))

    async def stats(self, caller: Caller, request: Nothing) -> GatewayStats:
        """Serve STATS."""
        return self._tally.read(trio.current_time())

    async def _identify(self, caller: Caller, actor: Actor) -> Identity:
        if caller.stamp == "operator" and not actor.session and not actor.key:
            return OPERATOR
        return await self._admission.identify_actor(actor)


@asynccontextmanager
async def open_gateway(config: GatewayConfig, parts: Parts) -> AsyncGenerator[None, None]:
    """Serve the API until the block is left; running requests have ended by then, or are cancelled."""
    tally = Tally()
    fleet = Fleet(parts.bus)
    admission = Admission(parts.bus, parts.clock, parts.lifecycle, parts.metrics)
    completions = Completions(
        parts.bus,
        fleet,
        tally,
        parts.metrics,
        in_flight_max=config.requests_in_flight_max,
        request_seconds_max=config.request_seconds_max,
    )
    requests = LiveRequests(parts.bus)
    gateway = Gateway(admission, completions, fleet, tally, requests)
    parts.bus.serve_stream(COMPLETE, gateway.complete)
    parts.bus.serve(LIST_MODELS, gateway.list_models)
    parts.bus.serve(STATS, gateway.stats)
    api = Api(
        admission,
        completions,
        fleet,
        requests,
        body_bytes_max=config.body_bytes_max,
        body_seconds_max=config.body_seconds_max,
        ping_seconds=config.ping_seconds,
    )
    parts.http.mount("/v1", api)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(requests.follow)
        nursery.start_soon(partial(admission.report_use, every_seconds=config.key_use_report_seconds))
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
            parts.http.unmount("/v1")
            with trio.move_on_after(FLUSH_SECONDS, shield=True):
                await admission.flush_use()


ROLE = Role("gateway", GatewayConfig, open_gateway, after=("auth", "inference"))
