"""Gateways that do nothing but count requests against limits, in a memory cluster; and how much they let in."""

import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import trio

from covey.bus.caller import Caller
from covey.bus.replies import Emit
from covey.contracts.auth import Identity
from covey.contracts.gateway import COMPLETE, Completion
from covey.contracts.inference import ChatDelta
from covey.contracts.limits import ranked
from covey.errors import CallError
from covey.roles.base import Parts, Role
from covey.roles.gateway.limiting import Limiter
from covey.testing.cluster import CHEAP_AUTH, MemoryCluster, MemoryNode


class CountingConfig(msgspec.Struct, frozen=True):
    """Nothing to set."""


@dataclass
class Counting:
    """The limiters by peer id, and a gateway role that makes them."""

    limiters: dict[str, Limiter] = field(default_factory=dict)

    @property
    def role(self) -> Role:
        @asynccontextmanager
        async def open_counting(config: CountingConfig, parts: Parts) -> AsyncGenerator[None, None]:
            async def complete(caller: Caller, request: Completion, emit: Emit[ChatDelta]) -> None:
                raise CallError("unsupported", "This gateway only counts.")

            parts.bus.serve_stream(COMPLETE, complete)
            limiter = self.limiters[str(parts.bus.me)] = Limiter(parts.bus, parts.clock)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(limiter.run)
                try:
                    yield
                finally:
                    nursery.cancel_scope.cancel()

        return Role("gateway", CountingConfig, open_counting)

    def of(self, node: MemoryNode) -> Limiter:
        return self.limiters[node.peer_id]


async def world(
    cluster: MemoryCluster, *, auths: int = 3, gateways: int = 4
) -> tuple[list[MemoryNode], list[MemoryNode], Counting]:
    """Auth nodes and gateways, linked, for so long that whatever begins with nothing is full."""
    counting = Counting()
    nodes = [await cluster.found("auth0")]
    for number in range(1, auths):
        nodes.append(await cluster.join(f"auth{number}", run=[CHEAP_AUTH]))
    doors = [
        await cluster.join(f"gateway{number}", run=[(counting.role, CountingConfig())]) for number in range(gateways)
    ]
    await cluster.linked()
    await trio.sleep(70)
    return nodes, doors, counting


def owner_of(limit_id: str, nodes: Sequence[MemoryNode]) -> MemoryNode:
    """Which of these owns a limit."""
    by_peer = {str(node.peer_id): node for node in nodes}
    return by_peer[ranked(limit_id, by_peer)[0]]


@dataclass
class Load:
    """Requests offered to gateways at random moments, and what became of them.

    `admitted`: when, by which gateway's name, for how many tokens in all.
    """

    identity: Identity
    admitted: list[tuple[float, str, int]] = field(default_factory=list)
    refused: int = 0
    reasons: set[str] = field(default_factory=set)

    async def offer(
        self,
        counting: Counting,
        door: MemoryNode,
        per_second: float,
        seconds: float,
        chance: random.Random,
        *,
        prompt: int = 1,
        answer: int | None = 1,
        lasts_seconds: float = 0.0,
        used: float = 1.0,
    ) -> None:
        """Poisson arrivals at one gateway. `used`: the part of the reserved answer that is delivered."""
        ends_at = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:

            async def request() -> None:
                charge = await counting.of(door).admit(self.identity, prompt_tokens=prompt, answer_tokens_max=answer)
                if charge.refusal is not None:
                    self.refused += 1
                    self.reasons.add(charge.refusal.reason)
                    assert charge.refusal.retry_after_seconds
                    return
                at, tokens = trio.current_time(), prompt + int((charge.answer_tokens_max or 0) * used)
                self.admitted.append((at, door.name, tokens))
                if lasts_seconds:
                    await trio.sleep(chance.uniform(0, 2 * lasts_seconds))
                charge.settle(tokens)

            while True:
                await trio.sleep(chance.expovariate(per_second))
                if trio.current_time() > ends_at:
                    return
                nursery.start_soon(request)

    async def offer_all(
        self, counting: Counting, doors: Sequence[MemoryNode], per_second: float, seconds: float, seed: int,
        **shape: float,
    ) -> None:  # fmt: skip
        """So many a second, over all of them."""
        async with trio.open_nursery() as nursery:
            for number, door in enumerate(doors):
                chance = random.Random(f"{seed} {number}")
                nursery.start_soon(
                    lambda door=door, chance=chance: self.offer(
                        counting, door, per_second / len(doors), seconds, chance, **shape
                    )
                )


def worst(events: Sequence[tuple[float, int]], limit: float, *, after: float = 0.0, at_least: float = 1.0) -> float:
    """The highest share of what is allowed, the burst and the rate for a window's length, over every window that is as
    long or longer. `events`: (when, how much); `limit`: a minute, and the burst.
    """
    events = sorted(event for event in events if event[0] >= after)
    highest = 0.0
    total_upto = [0]
    for _, amount in events:
        total_upto.append(total_upto[-1] + amount)
    for first, (begin, _) in enumerate(events):
        for last in range(first, len(events)):
            seconds = max(events[last][0] - begin, at_least)
            highest = max(highest, (total_upto[last + 1] - total_upto[first]) / (limit + limit / 60 * seconds))
    return highest
