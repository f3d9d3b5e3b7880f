"""When a node asks for a relay, and which."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock

from covey.cluster.relaying import (
    AWAY_SECONDS,
    LOOK_SECONDS,
    RELAYS_MAX,
    RETRY_SECONDS,
    Neighbour,
    Relaying,
    relays_wanted,
)
from covey.errors import CallError
from covey.transport.base import PeerId

A, B, C, D = (PeerId(name) for name in "abcd")
NONE: frozenset[PeerId] = frozenset()


def linked(peer: PeerId, *, reachable: bool = True) -> Neighbour:
    return Neighbour(peer, 0.0, reachable)


def away(peer: PeerId, seconds: float = AWAY_SECONDS) -> Neighbour:
    return Neighbour(peer, seconds, reachable=False)


def test_nobody_away_needs_no_relay() -> None:
    assert relays_wanted([linked(A), linked(B)], NONE) == ()
    assert relays_wanted([linked(A), away(B, AWAY_SECONDS - 0.1)], NONE) == ()


def test_a_member_that_stays_away_is_to_come_through_one_that_this_node_can_dial() -> None:
    assert relays_wanted([linked(A), linked(B, reachable=False), away(C)], NONE) == (A,)
    assert relays_wanted([linked(B, reachable=False), away(C)], NONE) == ()


def test_a_place_that_is_held_is_kept_first() -> None:
    many = [linked(A), linked(B), linked(C), away(D)]
    assert len(relays_wanted(many, NONE)) == RELAYS_MAX
    assert relays_wanted(many, frozenset({C}))[0] == C


def test_a_place_is_kept_once_everybody_is_back() -> None:
    # Giving it back would cut the very link that it made possible.
    assert relays_wanted([linked(A), linked(C)], frozenset({A})) == (A,)


def test_a_place_at_a_node_that_is_gone_is_given_up() -> None:
    assert relays_wanted([away(A), linked(C)], frozenset({A})) == (C,)


async def test_a_relay_that_refuses_is_asked_again_and_hurts_nothing(autojump_clock: MockClock) -> None:
    asked: list[float] = []

    class Full:
        @asynccontextmanager
        async def reserve(self, relay: PeerId, addresses: tuple[str, ...]) -> AsyncGenerator[trio.Event, None]:
            asked.append(trio.current_time())
            if relay == A:
                raise CallError("no_capacity", "This relay is full.")
            yield trio.Event()

    with trio.move_on_after(2 * RETRY_SECONDS + 5 * LOOK_SECONDS):
        await Relaying(Full(), lambda: [linked(A), away(C)], lambda _: ()).run()
    assert len(asked) == 3
