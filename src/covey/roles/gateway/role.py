"""Opens the gateway: its HTTP application and its methods on the bus."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

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
from covey.dialects.operations import OPERATIONS
from covey.errors import CallError
from covey.roles.base import Parts, Role
from covey.roles.gateway.admission import OPERATOR, Admission, asked_key, check_route
from covey.roles.gateway.books import Asked, Books
from covey.roles.gateway.chats import Answering
from covey.roles.gateway.completions import Completions
from covey.roles.gateway.limiting import Limiter
from covey.roles.gateway.listing import Description, Listing
from covey.roles.gateway.live import LiveRequests
from covey.roles.gateway.loopback import read_loopback_key
from covey.roles.gateway.patience import Patience, Patiences, Timeouts
from covey.roles.gateway.placement import Fleet
from covey.roles.gateway.routes import MOUNTS, Api
from covey.roles.gateway.stats import Tally
from covey.roles.gateway.table import Table
from covey.roles.gateway.usage import UsageBook
from covey.roles.gateway.usage_rows import Retention
from covey.roles.gateway.usage_service import UsageService
from covey.telemetry.logs import current_request_id, new_request_id, set_request_id

FLUSH_SECONDS = 5.0


class GatewayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[gateway]`."""

    body_bytes_max: int = 8 * 1024 * 1024
    bodies_bytes_max: int = 512 * 1024 * 1024
    body_seconds_max: float = 30.0
    request_seconds_max: float = 600.0
    first_token_seconds_max: float = 360.0
    idle_seconds_max: float = 90.0
    timeouts: tuple[Timeouts, ...] = ()
    requests_in_flight_max: int = 512
    answer_tokens_default: int = 1024
    ping_seconds: float = 10.0
    key_use_report_seconds: float = 30.0
    loopback_key_file: str = ""
    loopback_key_env: str = ""
    node_header: bool = False
    usage_records_days: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    usage_days: Annotated[float, msgspec.Meta(ge=0)] = 400.0
    usage_records_max: Annotated[int, msgspec.Meta(ge=0)] = 500_000
    usage_totals_max: Annotated[int, msgspec.Meta(ge=0)] = 200_000
    usage_flush_seconds: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 1.0

    @property
    def usage_retention(self) -> Retention:
        """What the book of usage keeps."""
        return Retention(self.usage_records_days, self.usage_days, self.usage_records_max, self.usage_totals_max)


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
        if not current_request_id():
            set_request_id(new_request_id())
        key = asked_key(request.actor.key) if request.actor.key else None
        with self._requests.watch(key) as live:
            identity = await self._identify(caller, request.actor)
            check_route(identity, "/v1/chat/completions" if request.chat.prompt is None else "/v1/completions")
            if request.chat.max_tokens is not None and request.chat.max_tokens < 0:
                # To an engine that would be no limit at all, whatever was reserved.
                raise CallError("invalid", "max_tokens is a number of tokens, or none.", param="max_tokens")
            live.belongs_to(identity.owner)
            asked = Asked(identity, COMPLETE.name, live, trio.current_time())
            async with self._completions.open(asked, (request.chat,), {}, model=request.chat.model) as answers:
                while batch := await answers.batch():
                    for _, deltas in batch:
                        for delta in deltas:
                            await emit(delta if delta.finish is None else replace(delta, model=answers.model))

    async def list_models(self, caller: Caller, request: ListModels) -> ModelSummaries:
        """Serve LIST_MODELS."""
        identity = await self._identify(caller, request.actor)
        check_route(identity, "/v1/models")
        return ModelSummaries(await self._fleet.summaries(identity))

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
    loopback_key = read_loopback_key(config.loopback_key_file, config.loopback_key_env, os.environ)
    tally = Tally()
    fleet = Fleet(parts.bus, parts.cluster.labels)
    admission = Admission(parts.bus, parts.clock)
    limiter = Limiter(parts.bus, parts.clock, answer_tokens_default=config.answer_tokens_default)
    usage = UsageBook(
        parts.store, parts.clock, parts.metrics, config.usage_retention, flush_seconds=config.usage_flush_seconds
    )
    books = Books(
        tally,
        parts.metrics,
        parts.clock,
        parts.lifecycle,
        parts.bus.name_of,
        usage.record,
        in_flight_max=config.requests_in_flight_max,
    )
    patiences = Patiences(
        Patience(config.request_seconds_max, config.first_token_seconds_max, config.idle_seconds_max), config.timeouts
    )
    completions = Completions(parts.bus, fleet, limiter, books, patiences)
    requests = LiveRequests(parts.bus)
    gateway = Gateway(admission, completions, fleet, tally, requests)
    parts.bus.serve_stream(COMPLETE, gateway.complete)
    parts.bus.serve(LIST_MODELS, gateway.list_models)
    parts.bus.serve(STATS, gateway.stats)
    UsageService(parts.bus, usage).serve()
    answering = Answering(
        completions,
        bodies_bytes_max=config.bodies_bytes_max,
        body_bytes_max=config.body_bytes_max,
        body_seconds_max=config.body_seconds_max,
        ping_seconds=config.ping_seconds,
        name_of=parts.bus.name_of if config.node_header else None,
    )
    table = Table(answering, Listing(fleet, answering))
    api = Api(admission, table, Description(OPERATIONS), requests, loopback_key)
    for prefix in MOUNTS:
        parts.http.mount(prefix, api)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(usage.run)
        nursery.start_soon(requests.follow)
        nursery.start_soon(limiter.run)
        nursery.start_soon(partial(admission.report_use, every_seconds=config.key_use_report_seconds))
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
            for prefix in MOUNTS:
                parts.http.unmount(prefix)
            with trio.move_on_after(FLUSH_SECONDS, shield=True):
                await admission.flush_use()


ROLE = Role("gateway", GatewayConfig, open_gateway, after=("auth", "inference"))
