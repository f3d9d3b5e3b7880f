"""Counts requests against limits."""

import trio

from covey.contracts.auth import Identity
from covey.errors import CallError
from covey.http.asgi import Headers
from covey.roles.gateway.limits import Decision, RequestLimiter
from covey.roles.gateway.limits import headers as limit_headers


class Charge:
    """What the limits say to one request."""

    answer_tokens_max: int | None = None

    def __init__(self, decision: Decision | None) -> None:
        self._decision = decision
        self.refusal = None if decision is None or decision.allowed else _refusal(decision)

    def headers(self) -> Headers:
        """The `x-ratelimit-*` headers."""
        return limit_headers(self._decision)

    def settle(self, tokens: int) -> None:
        """The request has ended."""


class Limiter:
    """Of one gateway."""

    def __init__(self) -> None:
        self._limiter = RequestLimiter()

    async def admit(self, identity: Identity, *, prompt_tokens: int, answer_tokens_max: int | None) -> Charge:
        """Count a request."""
        per_minute = identity.limits.requests_per_minute
        if per_minute is None:
            return Charge(None)
        return Charge(self._limiter.take(identity.key_id, per_minute, trio.current_time()))


def _refusal(decision: Decision) -> CallError:
    return CallError(
        "rate_limited",
        f"The key's limit of {decision.limit} requests a minute is reached."
        f" Try again in {max(decision.retry_after_seconds, 0.1):.1f} s.",
        reason="requests",
        retry_after_seconds=decision.retry_after_seconds,
    )
