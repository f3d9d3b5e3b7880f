"""The limits of keys and people, counted over the whole cluster: what is spent here was lent by each limit's owner.

With a lease at hand nothing leaves the process. The owner may be in this very process: then a lease costs microseconds.
`covey.contracts.limits` has the protocol, docs/adr/0009-limits.md the bounds and why they hold.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping

import trio

from covey.bus.bus import BusHandle
from covey.contracts.auth import Identity
from covey.contracts.limits import (
    BEAT_SECONDS,
    LEASE_LIMITS,
    REPORTS_MAX,
    LeaseLimits,
    LimitGrants,
    LimitReport,
    LimitsLeased,
)
from covey.errors import CallError
from covey.roles.base import Clock
from covey.roles.gateway.charge import UNLIMITED, Charge, Take, refusal
from covey.roles.gateway.limit_groups import NO_LIMITS, Group, Groups, Part
from covey.roles.gateway.limits import TOKEN_KINDS, Lease
from covey.transport.base import PeerId

__all__ = ["Charge", "Limiter"]

log = logging.getLogger(__name__)

NO_NEEDS: Mapping[int, int] = {}
ADMIT_SECONDS_MAX = 2.0
"""How long a request waits for what owners lend."""
ASK_AGAIN_SECONDS = 0.5
"""After an auth node said that it is not the owner."""
TICK_SECONDS = 0.5
LOOK_SECONDS = 0.25
"""Between two looks at which auth nodes there are."""
SETTLE_SECONDS = 0.01
"""What is given back in so short a time goes in one message."""


class _Node:
    """An auth node as this gateway finds it."""

    def __init__(self) -> None:
        self.answered_at = self.failed_at = self.beaten_at = float("-inf")
        self.beating = False

    @property
    def is_silent(self) -> bool:
        """Whether it failed to answer the last time."""
        return self.failed_at > self.answered_at


class Limiter:
    """Counts requests against every limit of their key and its owner. `run` is its task.

    Args:
        bus: stamped `gateway`.
        clock: wall time, by which a budget's day begins.
        answer_tokens_default: reserved for an answer whose client set no limit, where a token limit applies.
        groups_max: how many keys and people are remembered.
    """

    def __init__(
        self, bus: BusHandle, clock: Clock, *, answer_tokens_default: int = 1024, groups_max: int = 10_000
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._answer_tokens_default = answer_tokens_default
        self._groups = Groups(groups_max)
        self._nodes: dict[PeerId, _Node] = {}
        self._term = time.time_ns() // 1_000_000
        self._gateways = 0
        """How many share a limit, as an owner last said; 0: none has said it yet."""
        self._wake = trio.Event()

    async def admit(
        self, identity: Identity, *, prompt_tokens: int, answer_tokens_max: int | None, answers: int = 1
    ) -> Charge:
        """Count one request against every limit of the key and of its owner. Never raises for a limit.

        Args:
            identity: whose limits; already verified.
            prompt_tokens: an estimate.
            answer_tokens_max: what the client set, for all answers together; `None`: nothing.
            answers: how many there will be; each needs a token at least.

        Returns:
            What it was admitted with, or why it was refused (`Charge.refusal`). Settle it at the end.
        """
        if identity.limits == NO_LIMITS and identity.owner_limits == NO_LIMITS:
            return UNLIMITED
        now = trio.current_time()
        parts = self._groups.parts(identity, now, self._clock.now())
        deadline = now + ADMIT_SECONDS_MAX
        while True:
            now = trio.current_time()
            amount, answer = self._plan(parts, prompt_tokens, answer_tokens_max, answers, now)
            takes = [
                Take(group, lease, amount if lease.kind in TOKEN_KINDS else 1, self._alone_share(group, now))
                for group, lease in parts
            ]
            short = next((one for one in takes if not one.fits(now)), None)
            if short is None:
                return Charge.of(takes, answer, now, self.nudge)
            if not await self._fill(short.group, takes, deadline):
                return Charge.refused(takes, refusal(short, now, self._clock.now()), now)

    def _plan(
        self, parts: list[Part], prompt_tokens: int, asked: int | None, answers: int, now: float
    ) -> tuple[int, int | None]:
        """The tokens to reserve, and what the answers may have; `None` where no limit counts tokens."""
        limits = [lease for _, lease in parts if lease.kind in TOKEN_KINDS]
        if not limits:
            return 0, None
        answer = self._answer_tokens_default * answers if asked is None else asked
        for lease in limits:
            # What comes back by itself is worth waiting for; of a budget the rest is all there will be.
            most = lease.limit if asked is not None and lease.is_rate else lease.remaining(now)
            answer = min(answer, most - prompt_tokens)
        # What is short of it is refused, and the refusal says when to come.
        answer = max(answer, 0 if asked == 0 else answers)
        return max(prompt_tokens, 0) + answer, answer

    async def _fill(self, group: Group, takes: list[Take], deadline: float) -> bool:
        """Get what a group lacks of its owner. Whether there is a point in looking again."""
        now = trio.current_time()
        ours = [one for one in takes if one.group is group and not one.fits(now)]
        if now >= deadline or any(one.alone_share is not None or one.lease.is_blocked(one.amount, now) for one in ours):
            return False
        if group.asking is not None:
            for one in ours:
                one.lease.waiting += one.amount
            try:
                with trio.move_on_at(deadline):
                    await group.asking.wait()
            finally:
                for one in ours:
                    one.lease.waiting -= one.amount
            return True
        owner = group.owner(self._bus.serving(LEASE_LIMITS))
        if owner is None:
            return False
        heard = await self._ask(owner, [group], {id(one.lease): one.lease.lacks(one.amount, now) for one in ours})
        # An owner in this very process that refuses does so at once, as often as it is asked.
        return heard or owner != self._bus.me

    async def _ask(self, owner: PeerId, groups: list[Group], needs: Mapping[int, int]) -> bool:
        """Report groups to their owner, and take what it lends; whether it did answer. `needs`: by the lease's `id`."""
        groups = [group for group in groups if group.asking is None]
        for group in groups:
            group.forget_past(self._clock.now())
        asked_at = trio.current_time()
        events = [group.begin_asking() for group in groups]
        reports = tuple(_report(group, needs, asked_at) for group in groups)
        heard = False
        try:
            leased = await self._call(owner, reports)
            if leased is not None:
                self._hear(owner, groups, leased.limits, needs, asked_at)
                heard = True
        finally:
            for group, event in zip(groups, events, strict=True):
                group.end_asking(event, heard=heard)
        return heard

    async def _call(self, node: PeerId, reports: tuple[LimitReport, ...]) -> LimitsLeased | None:
        known = self._nodes.setdefault(node, _Node())
        sees = tuple(str(one) for one in self._bus.serving(LEASE_LIMITS))
        try:
            leased = await self._bus.call(LEASE_LIMITS, LeaseLimits(self._term, sees, reports), to=node)
        except CallError as error:
            known.failed_at = trio.current_time()
            log.debug("%s lent nothing: %s", node, error)
            return None
        known.answered_at = trio.current_time()
        self._gateways = max(leased.gateways, 1)
        return leased

    def _hear(
        self, owner: PeerId, groups: list[Group], answers: tuple[LimitGrants, ...], needs: Mapping[int, int], at: float
    ) -> None:
        now, told = trio.current_time(), {answer.id: answer for answer in answers}
        for group in groups:
            answer = told.get(group.id)
            if answer is None or not answer.owned or len(answer.grants) != len(group.reported):
                group.refused_by, group.refused_at = owner, now
                continue
            group.accepted(owner, now)
            for lease, grant in zip(group.reported, answer.grants, strict=True):
                lease.hear(grant, needs.get(id(lease), 0), at, now)

    def _alone_share(self, group: Group, now: float) -> float | None:
        """The part of a group's limits that is this gateway's own while it reaches no owner; `None`: it may."""
        owner = group.owner(self._bus.serving(LEASE_LIMITS))
        if owner is not None:
            node = self._nodes.get(owner)
            silent = owner != self._bus.me and node is not None and node.is_silent
            refused = group.refused_by == owner and now < group.refused_at + ASK_AGAIN_SECONDS
            if not silent and not refused:
                return None
        share = 1 / self._gateways if self._gateways else 0.0
        group.cut_off(share, now)
        return share

    def nudge(self) -> None:
        """Something was given back that others may wait for."""
        self._wake.set()

    async def run(self) -> None:
        """Show signs of life, renew what is used and give back what is not; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._show_life, nursery)
            while True:
                with trio.move_on_after(TICK_SECONDS):
                    await self._wake.wait()
                    await trio.sleep(SETTLE_SECONDS)
                self._wake = trio.Event()
                for owner, groups in self._business():
                    nursery.start_soon(self._ask, owner, groups, NO_NEEDS)

    def _business(self) -> Iterator[tuple[PeerId, list[Group]]]:
        """Whom to tell what now."""
        now, nodes = trio.current_time(), self._bus.serving(LEASE_LIMITS)
        by_owner: dict[PeerId, list[Group]] = {}
        for group in self._groups.all():
            owner = group.owner(nodes)
            if owner is not None and group.has_business(owner, now) and self._alone_share(group, now) is None:
                by_owner.setdefault(owner, []).append(group)
        for owner, groups in by_owner.items():
            for start in range(0, len(groups), REPORTS_MAX):
                yield owner, groups[start : start + REPORTS_MAX]

    async def _show_life(self, nursery: trio.Nursery) -> None:
        seen: tuple[PeerId, ...] = ()
        while True:
            nodes = self._bus.serving(LEASE_LIMITS)
            now, changed = trio.current_time(), nodes != seen
            seen = nodes
            self._forget(nodes)
            for peer in nodes:
                node = self._nodes.setdefault(peer, _Node())
                if not node.beating and (changed or now >= node.beaten_at + BEAT_SECONDS - LOOK_SECONDS / 2):
                    node.beating, node.beaten_at = True, now
                    nursery.start_soon(self._beat, peer, node)
            await trio.sleep(LOOK_SECONDS)

    async def _beat(self, peer: PeerId, node: _Node) -> None:
        try:
            await self._call(peer, ())
        finally:
            node.beating = False

    def _forget(self, nodes: Iterable[PeerId]) -> None:
        """Auth nodes that are no more."""
        for peer in self._nodes.keys() - set(nodes):
            if not self._nodes[peer].beating:
                del self._nodes[peer]


def _report(group: Group, needs: Mapping[int, int], now: float) -> LimitReport:
    group.reported = tuple(group.leases.values())
    group.sequence += 1
    uses = tuple(
        lease.report(now, needed=needs.get(id(lease), 0), give_back=_gives_back(lease, now)) for lease in group.reported
    )
    return LimitReport(group.id, group.sequence, uses)


def _gives_back(lease: Lease, now: float) -> bool:
    """Whether to keep nothing of a lease: it was not used lately, or others wait for what is at once."""
    return now - lease.taken_at > BEAT_SECONDS or (lease.kind == "concurrency" and lease.left == 0)
