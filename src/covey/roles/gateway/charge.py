"""What a request was admitted with, what is settled at its end, and how it is refused."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import trio

from covey.contracts.limits import LEASE_SECONDS, LimitKind
from covey.errors import CallError
from covey.http.asgi import Headers
from covey.roles.gateway.limit_groups import Group
from covey.roles.gateway.limits import Lease, Standing, limit_headers


@dataclass(frozen=True, slots=True)
class Take:
    """What a request takes of one limit. `alone_share`: as `Lease.fits`."""

    group: Group
    lease: Lease
    amount: int
    alone_share: float | None

    def fits(self, now: float) -> bool:
        """Whether it can be had now."""
        return self.lease.fits(self.amount, now, alone_share=self.alone_share)


class Charge:
    """What one request was admitted with, or why it was not.

    Args:
        refusal: `rate_limited` with the reason `requests`, `tokens`, `concurrency` or `insufficient_quota`; `None`:
            admitted.
        answer_tokens_max: what the engine may produce at most; `None`: no limit counts tokens.
        takes: what it counts against.
        standings: for the headers.
        nudge: called when something is given back that others wait for.
    """

    __slots__ = ("_nudge", "_standings", "_takes", "answer_tokens_max", "refusal")

    def __init__(
        self,
        refusal: CallError | None = None,
        answer_tokens_max: int | None = None,
        takes: tuple[Take, ...] = (),
        standings: tuple[Standing, ...] = (),
        nudge: Callable[[], None] | None = None,
    ) -> None:
        self.refusal = refusal
        self.answer_tokens_max = answer_tokens_max
        self._takes = takes
        self._standings = standings
        self._nudge = nudge

    @classmethod
    def of(cls, takes: list[Take], answer_tokens_max: int | None, now: float, nudge: Callable[[], None]) -> Self:
        """Take it all: it fits."""
        for one in takes:
            one.lease.take(one.amount, now, alone_share=one.alone_share)
            if one.lease.kind == "tokens":
                one.lease.reserve(one.amount)
        return cls(None, answer_tokens_max, tuple(takes), _standings(takes, now), nudge)

    @classmethod
    def refused(cls, takes: list[Take], refusal: CallError, now: float) -> Self:
        """Nothing is taken."""
        return cls(refusal, None, (), _standings(takes, now))

    def headers(self) -> Headers:
        """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}` as of the admission; none where no such limit is."""
        return limit_headers(self._standings)

    def settle(self, tokens: int) -> None:
        """Say at the end what was really used, of prompt and answer together; what was reserved beyond it comes back,
        and the request counts as running no more. Only the first time; nothing for who was refused.
        """
        takes, self._takes = self._takes, ()
        now = trio.current_time() if takes else 0.0
        for one in takes:
            if one.lease.kind != "requests":
                one.lease.settle(one.amount, max(tokens, 0), now)
                if one.lease.kind == "concurrency" and one.lease.left == 0 and self._nudge is not None:
                    self._nudge()


UNLIMITED = Charge()
"""Of a request that no limit applies to: it holds nothing."""


def _standings(takes: list[Take], now: float) -> tuple[Standing, ...]:
    return tuple(one.lease.standing(now, one.alone_share) for one in takes if one.lease.kind in ("requests", "tokens"))


def refusal(short: Take, now: float, unix_now: float) -> CallError:
    """The error of a request beyond a limit."""
    lease = short.lease
    whose = "key" if short.group.id.startswith("key:") else "person"
    wait_seconds = lease.retry_seconds(short.amount, now, short.alone_share)
    again = f"Try again in {max(wait_seconds, 0.1):.1f} s."
    reason: str = lease.kind
    if lease.kind == "requests":
        message = f"The {whose}'s limit of {lease.limit} requests a minute is reached. {again}"
    elif lease.kind == "concurrency":
        message = f"The {whose}'s limit of {lease.limit} requests at once is reached. {again}"
    elif lease.kind == "tokens" and short.amount > lease.limit:
        message = (
            f"The request is larger than the {whose}'s limit of {lease.limit} tokens a minute: send a shorter prompt,"
            " or ask for fewer tokens."
        )
    elif lease.kind == "tokens":
        message = f"The {whose}'s limit of {lease.limit} tokens a minute is reached. {again}"
    elif wait_seconds <= LEASE_SECONDS or lease.in_use:
        wait_seconds, reason = min(wait_seconds, LEASE_SECONDS), "tokens"
        again = f"Try again in {max(wait_seconds, 0.1):.1f} s."
        message = f"What is left of the {whose}'s budget of {lease.limit} tokens is reserved just now. {again}"
    else:
        wait_seconds, reason = period_ends_in(lease.kind, unix_now), "insufficient_quota"
        message = (
            f"The {whose}'s budget of {lease.limit} tokens a {lease.kind} is spent. The next {lease.kind} begins at"
            " midnight UTC; an administrator can raise it."
        )
    # One that never fits is not to be sent again.
    never = lease.kind == "tokens" and short.amount > lease.limit
    return CallError("rate_limited", message, reason=reason, retry_after_seconds=None if never else wait_seconds)


def period_ends_in(kind: LimitKind, unix_now: float) -> float:
    """Seconds until the day, or the month, of UTC ends."""
    left = 86_400 - unix_now % 86_400
    if kind == "month":
        today = time.gmtime(unix_now)
        month = today.tm_mon
        at = unix_now + left
        while time.gmtime(at).tm_mon == month:
            at, left = at + 86_400, left + 86_400
    return left
