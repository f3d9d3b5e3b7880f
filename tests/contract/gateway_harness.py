"""The real gateway role behind a real listener, with an honest stand-in for auth and the echo back end for a model."""

import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import trio
from http_harness import Answer, RawClient, Served, serving
from msgspec.structs import replace

from covey.backends.echo import EchoBackend, EchoConfig
from covey.bus.background import open_background
from covey.bus.bus import Bus
from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.bus.session import acceptor, open_session
from covey.contracts.auth import AUTHORIZE, KEY_USED, VERIFY, AuthorizeActor, Identity, KeyLimits, KeyUsed, VerifyKey
from covey.contracts.inference import (
    CHAT,
    EMBED,
    MODELS,
    ChatDelta,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    Models,
    ModelStatus,
)
from covey.contracts.keys import INVALID_KEY, MINT_BYTES, MintedKey, mint, parse
from covey.contracts.limits import LEASE_LIMITS, LeaseLimits, LimitGrant, LimitGrants, LimitsLeased, LimitUse
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.http.health import PATHS, HealthApp
from covey.http.router import Router
from covey.roles.auth.limits import Budget, Quota, Rate
from covey.roles.base import Lifecycle, NodeInfo, Parts
from covey.roles.gateway.role import GatewayConfig, open_gateway
from covey.store.identity import Identity as NodeIdentity
from covey.store.memory import MemoryStore
from covey.store.writer import open_store
from covey.telemetry.metrics import Metrics
from covey.testing import ALICE, BOB, MEMBER
from covey.transport.base import PeerId
from covey.transport.memory import MemoryNetwork

Script = Callable[[ChatRequest, Emit[ChatDelta]], Awaitable[None]]


class FixedClock:
    """Wall time stands still."""

    def now(self) -> float:
        return 1_700_000_000.0


class Auth:
    """Knows keys by their digest, as the auth role does."""

    def __init__(self) -> None:
        self._identities: dict[str, tuple[bytes, Identity]] = {}
        self.used_at: dict[str, int] = {}
        self.verified = 0

    def key(self, **fields: Any) -> str:
        made = mint(secrets.token_bytes(MINT_BYTES))
        self.know(made, **fields)
        return made.text

    def know(self, made: MintedKey, **fields: Any) -> None:
        limits = KeyLimits(**{name: fields.pop(name, None) for name in KeyLimits.__struct_fields__})
        self._identities[made.key_id] = made.digest, Identity(made.key_id, "ada", limits=limits, **fields)

    def revoke(self, key: str) -> None:
        parsed = parse(key)
        assert parsed
        del self._identities[parsed.key_id]

    async def verify(self, caller: Caller, request: VerifyKey) -> Identity:
        self.verified += 1
        digest, identity = self._identities.get(request.key_id, (b"", None))
        if identity is None or digest != request.digest:
            raise CallError("unauthenticated", INVALID_KEY, reason="invalid_api_key")
        return identity

    async def authorize(self, caller: Caller, request: AuthorizeActor) -> Identity:
        parsed = parse(request.actor.key)
        assert parsed
        return await self.verify(caller, VerifyKey(parsed.key_id, parsed.digest))

    async def used(self, caller: Caller, request: KeyUsed) -> Nothing:
        self.used_at.update(request.used_at)
        return Nothing()


class LimitOwner:
    """Lends as the auth role's does to the only gateway there is."""

    def __init__(self) -> None:
        self._rates: dict[tuple[str, str], Rate] = {}
        self._running: dict[str, Quota] = {}
        self._budgets: dict[tuple[str, str], Budget] = {}

    async def lease(self, caller: Caller, request: LeaseLimits) -> LimitsLeased:
        return LimitsLeased(
            1,
            tuple(
                LimitGrants(
                    one.id, owned=True, grants=tuple(self._grant(one.id, request.term, use) for use in one.uses)
                )
                for one in request.reports
            ),
        )

    def _grant(self, limit_id: str, term: int, use: LimitUse) -> LimitGrant:
        now = trio.current_time()
        if use.kind == "requests" or use.kind == "tokens":
            rate = self._rates.setdefault((limit_id, use.kind), Rate(use.limit, now, since=float("-inf")))
            rate.advance(use.limit, 1.0, now)
            return rate.lease("g", term, use, now)
        if use.kind == "concurrency":
            return self._running.setdefault(limit_id, Quota()).lease("g", term, use, now, capacity=use.limit)
        budget = self._budgets.setdefault((limit_id, use.period), Budget())
        base, left = budget.note("g", use), max(use.limit - budget.spent, 0)
        grant = budget.quota.lease("g", term, use, now, capacity=left)
        is_spent = grant.granted < use.needed and left - use.held < use.needed
        return replace(grant, base=base, retry_after_seconds=3600.0 if is_spent else grant.retry_after_seconds)


class Inference:
    """The echo back end as `echo`; `script` answers for the model `scripted`."""

    def __init__(self) -> None:
        self.echo = EchoBackend(EchoConfig())
        self.script: Script | None = None
        self.running = 0
        self.requests: list[ChatRequest] = []

    async def chat(self, caller: Caller, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        self.running += 1
        self.requests.append(request)
        try:
            if request.model == "echo":
                await self.echo.generate(request, emit)
            elif self.script is not None:
                await self.script(request, emit)
        finally:
            self.running -= 1

    async def embed(self, caller: Caller, request: EmbedRequest, emit: Emit[Embeddings]) -> None:
        self.running += 1
        try:
            await self.echo.embed(request, emit)
        finally:
            self.running -= 1

    def serve(self, bus: Bus) -> None:
        handle = bus.stamped("inference")
        handle.serve_stream(CHAT, self.chat)
        handle.serve_stream(EMBED, self.embed)
        handle.serve(MODELS, self.models)

    async def models(self, caller: Caller, request: Nothing) -> Models:
        return Models((*self.echo.models(), ModelStatus("scripted", "script", "loaded", created_at=7)))


class Gateway:
    """Everything that a test touches."""

    def __init__(self, served: Served, auth: Auth, inference: Inference, parts: Parts, bus: Bus) -> None:
        self.served = served
        self.auth = auth
        self.inference = inference
        self.parts = parts
        self.bus = bus
        self.key = auth.key()

    def request(self, path: str, body: Any = None, *, headers: str | None = None, method: str = "") -> bytes:
        """A request's bytes; `headers` None: with a valid key."""
        data = b"" if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
        lines = f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1\r\nHost: localhost\r\n"
        if body is not None:
            lines += f"Content-Length: {len(data)}\r\n"
            if "content-type" not in (headers or "").lower():
                lines += "Content-Type: application/json\r\n"
        lines += f"Authorization: Bearer {self.key}\r\n" if headers is None else headers
        return lines.encode() + b"\r\n" + data

    async def ask(self, path: str, body: Any = None, **more: Any) -> Answer:
        async with self.served.client() as client:
            await client.send(self.request(path, body, **more))
            return await client.answer()

    @asynccontextmanager
    async def asking(self, body: Any, **more: Any) -> AsyncGenerator[RawClient, None]:
        async with self.served.client() as client:
            await client.send(self.request("/v1/chat/completions", body, **more))
            yield client

    def sample(self, name: str, **labels: str) -> float:
        return self.parts.metrics.registry.get_sample_value(name, labels) or 0.0


def chat_body(text: str = "one two three", model: str = "echo", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


@asynccontextmanager
async def models_on(bus: Bus, inference: Inference, network: MemoryNetwork) -> AsyncGenerator[None, None]:
    """Another machine that has the models, linked to `bus`."""
    other = Bus(BOB, Metrics(), name="bob")
    inference.serve(other)
    async with other.open(), open_background() as nursery:
        await nursery.start(network.join(BOB).serve, acceptor(other, lambda _: MEMBER))
        stream = await network.join(ALICE).dial(BOB)
        async with open_session(bus, stream, peer=BOB, granted=MEMBER, dialer=True):
            yield


@asynccontextmanager
async def gateway(
    *,
    auth: bool = True,
    inference: bool = True,
    drain_seconds: float = 2.0,
    http: dict[str, Any] | None = None,
    serve: Callable[[Bus, Metrics], None] = lambda bus, metrics: None,
    far: MemoryNetwork | None = None,
    **keys: Any,
) -> AsyncGenerator[Gateway, None]:
    """A node of one gateway.

    Args:
        auth, inference: whether somebody knows keys, and models.
        drain_seconds: of the listener.
        http: settings of the listener.
        serve: what else its bus is to have, before the gateway opens.
        far: models are on another machine, over this network.
        keys: the gateway's configuration.
    """
    metrics, lifecycle = Metrics(), Lifecycle()
    bus = Bus(PeerId("alice"), metrics)
    fake_auth, fake_inference = Auth(), Inference()
    if auth:
        bus.stamped("auth").serve(VERIFY, fake_auth.verify)
        bus.stamped("auth").serve(AUTHORIZE, fake_auth.authorize)
        bus.stamped("auth").serve(KEY_USED, fake_auth.used)
        bus.stamped("auth").serve(LEASE_LIMITS, LimitOwner().lease)
    if inference and far is None:
        fake_inference.serve(bus)
    serve(bus, metrics)
    router = Router()
    async with open_store(MemoryStore(), Metrics()) as store:
        parts = Parts(
            node=NodeInfo("alice", "0", 0),
            identity=NodeIdentity.generate(),
            bus=bus.stamped("gateway"),
            store=store,
            http=router,
            metrics=metrics,
            clock=FixedClock(),
            lifecycle=lifecycle,
            folder=Path("/nowhere"),
            assets=Path("/nowhere"),
            backends=(),
        )

        async def guard(scope: Any) -> None:
            pass

        health = HealthApp(metrics, lambda: dict(lifecycle.missing), guard)
        for path in PATHS:
            router.mount(path, health)
        async with (
            bus.open(),
            nullcontext() if far is None else models_on(bus, fake_inference, far),
            open_gateway(GatewayConfig(**keys), parts),
            serving(router, drain_seconds=drain_seconds, metrics=metrics, **(http or {})) as served,
        ):
            yield Gateway(served, fake_auth, fake_inference, parts, bus)
    assert fake_inference.running == fake_inference.echo.running == 0


async def pause() -> None:
    await trio.sleep_forever()
