"""Who may ask, and how often. One credential extractor for every path and every spelling."""

import logging

import trio

from covey.bus.bus import BusHandle
from covey.contracts.auth import AUTHORIZE, KEY_USED, VERIFY, Actor, AuthorizeActor, Identity, KeyUsed, VerifyKey
from covey.contracts.keys import INVALID_KEY
from covey.contracts.keys import parse as parse_key
from covey.errors import CallError
from covey.roles.base import Clock, Lifecycle
from covey.roles.gateway.limits import Decision, RequestLimiter
from covey.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

USED_KEYS_MAX = 10_000
"""How many keys' use is remembered between two reports."""

OPERATOR = Identity(key_id="operator", owner="operator", role="admin")
"""Who calls through the node's own door: an embedding program, or `covey chat` over the Unix socket."""


class Admission:
    """Verifies credentials through the auth role, wherever it is, and counts requests against limits."""

    def __init__(self, bus: BusHandle, clock: Clock, lifecycle: Lifecycle, metrics: Metrics) -> None:
        self._bus = bus
        self._clock = clock
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._limiter = RequestLimiter()
        self._used_at: dict[str, int] = {}

    async def identify(self, key: VerifyKey) -> Identity:
        """Whom a key speaks for. Only its id and hash leave this node.

        Raises:
            CallError: `unauthenticated`; `unreachable` (`no_lease`) and the like where nobody can say.
        """
        identity = await self._bus.call(VERIFY, key)
        if identity.key_id in self._used_at or len(self._used_at) < USED_KEYS_MAX:
            self._used_at[identity.key_id] = int(self._clock.now())
        return identity

    async def identify_actor(self, actor: Actor) -> Identity:
        """Whom a session or a key speaks for, asked for by the dashboard."""
        return await self._bus.call(AUTHORIZE, AuthorizeActor(actor))

    def admit(self, identity: Identity) -> Decision | None:
        """Count a request; what the limiter said, or `None` where no limit is set. Refuse while draining.

        The decision may be a refusal: turn it into an error with `refusal`, and show its headers either way.
        """
        if self._lifecycle.draining:
            raise CallError("draining", "This node is stopping; ask another.", retry_after_seconds=1.0)
        per_minute = identity.limits.requests_per_minute
        if per_minute is None:
            return None
        return self._limiter.take(identity.key_id, per_minute, trio.current_time())

    async def report_use(self, *, every_seconds: float) -> None:
        """Tell the auth role now and then which keys were used; runs until cancelled."""
        while True:
            await trio.sleep(every_seconds)
            await self.flush_use()

    async def flush_use(self) -> None:
        """Tell it now. What cannot be told is kept for the next time."""
        if not self._used_at:
            return
        batch, self._used_at = self._used_at, {}
        told = False
        try:
            await self._bus.call(KEY_USED, KeyUsed(batch))
            told = True
        except CallError as error:
            log.info("The use of keys could not be reported; it is kept for the next time: %s", error)
        finally:
            if not told:  # cancelled, too
                self._used_at = {**batch, **self._used_at}


def asked_key(text: str) -> VerifyKey:
    """What is asked about a key: `unauthenticated` for a text that cannot be one."""
    parsed = parse_key(text)
    if parsed is None:
        raise CallError("unauthenticated", INVALID_KEY, reason="invalid_api_key")
    return VerifyKey(parsed.key_id, parsed.digest)


def refusal(decision: Decision) -> CallError:
    """The error of a request beyond its limit."""
    return CallError(
        "rate_limited",
        f"The key's limit of {decision.limit} requests a minute is reached."
        f" Try again in {max(decision.retry_after_seconds, 0.1):.1f} s.",
        reason="requests",
        retry_after_seconds=decision.retry_after_seconds,
    )


def check_model(identity: Identity, model: str) -> None:
    """Raise `forbidden` where the key may not use a model."""
    if identity.models and model not in identity.models:
        raise CallError(
            "forbidden", f"This key may not use the model {model!r}.", reason="model_not_allowed", param="model"
        )
