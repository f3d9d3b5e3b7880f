"""The freshness lease's rules: nobody vouches for a revoked key for longer than the lease after a majority knew it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.cluster.boot_clock import boot_seconds
from covey.cluster.lease import Deadlines, Freshness, LeasePolicy, no_lease, quorum

LEASE_SECONDS = 300.0
HALF = LEASE_SECONDS / 2


@pytest.mark.parametrize(
    ("members", "policy", "expected"),
    [(1, "auto", 1), (2, "auto", 1), (2, "majority", 2), (3, "auto", 2), (4, "majority", 3), (5, "auto", 3)],
)
def test_how_many_must_be_heard(members: int, policy: LeasePolicy, expected: int) -> None:
    assert quorum(members, policy) == expected


@given(st.integers(1, 60), st.sampled_from(["auto", "majority"]))
def test_two_majorities_have_a_member_in_common(members: int, policy: LeasePolicy) -> None:
    """Mutation: `members // 2`."""
    if (members, policy) != (2, "auto"):
        assert 2 * quorum(members, policy) > members


def test_one_that_needs_nobody_always_knows() -> None:
    fresh = Freshness[str]()
    assert fresh.since((), "majority") == math.inf
    assert fresh.since(("bob",), "auto") == math.inf
    assert fresh.since(("bob",), "majority") == -math.inf


def test_what_counts_is_the_oldest_of_the_youngest_majority() -> None:
    fresh = Freshness[str]()
    for member, asked_at in (("b", 5.0), ("c", 9.0), ("d", 1.0), ("gone", 99.0), ("c", 3.0)):
        fresh.applied(member, asked_at)
    assert fresh.since(("b", "c", "d", "e"), "auto") == 5.0
    assert fresh.heard(("b", "c", "d", "e"), 4.0) == 2


def test_a_grant_never_shortens_and_is_forgotten_when_it_is_over() -> None:
    held = Deadlines[str]()
    assert not held.holds("g", 0.0)
    held.extend("g", 10.0)
    held.extend("g", 5.0)
    held.extend("h", 7.0)
    assert held.holds("g", 9.9)
    assert not held.holds("g", 10.0)
    assert held.seconds_left(8.0) == {"g": 2.0}
    assert held.seconds_left(10.0) == {}


def test_without_one_a_retry_is_worth_it() -> None:
    error = no_lease("Why.")
    assert (error.code, error.reason, error.message) == ("unreachable", "no_lease", "Why.")
    assert error.retry_after_seconds


def test_the_boot_clock_goes_on() -> None:
    before = boot_seconds()
    assert boot_seconds() >= before


@dataclass
class World:
    """Auth nodes, one of which revokes a key, and a gateway; every message takes as long as it likes."""

    members: int
    now: float = 0.0
    fresh: list[Freshness[int]] = field(default_factory=list)
    knows: list[bool] = field(default_factory=list)
    gateway_knows: bool = False
    lease_until: float = -math.inf
    settled_at: float = math.inf
    """When a majority knew."""
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)

    scheduled: int = 0

    def __post_init__(self) -> None:
        self.fresh = [Freshness[int]() for _ in range(self.members)]
        self.knows = [False] * self.members

    def at(self, time: float, event: Callable[[], None]) -> None:
        self.scheduled += 1
        heappush(self.events, (time, self.scheduled, event))

    def run(self) -> None:
        while self.events:
            time, _, event = heappop(self.events)
            self.assert_bound(time)
            self.now = time
            event()
        self.assert_bound(math.inf)

    def assert_bound(self, until: float) -> None:
        """From now to that moment, in which nothing happens, nobody vouches for longer than allowed."""
        end = self.settled_at + LEASE_SECONDS
        assert self.gateway_knows or min(until, self.lease_until) <= end
        for member in range(self.members):
            assert self.knows[member] or min(until, self.vouches_until(member)) <= end

    def vouches_until(self, member: int) -> float:
        others = [other for other in range(self.members) if other != member]
        return self.fresh[member].since(others, "majority") + HALF

    def learn(self, member: int, *, knows: bool) -> None:
        self.knows[member] = self.knows[member] or knows
        if self.settled_at == math.inf and sum(self.knows) >= quorum(self.members, "majority"):
            self.settled_at = self.now

    def ask(self, one: int, other: int, there_seconds: float, back_seconds: float) -> None:
        """An auth node asks another one for its heads, and applies them."""
        asked_at = self.now

        def answer() -> None:
            known = self.knows[other]

            def apply() -> None:
                self.learn(one, knows=known)
                self.fresh[one].applied(other, asked_at)

            self.at(self.now + back_seconds, apply)

        self.at(asked_at + there_seconds, answer)

    def renew(self, member: int, there_seconds: float, back_seconds: float) -> None:
        """The gateway asks an auth node for a lease, and applies what comes with it."""
        asked_at = self.now

        def grant() -> None:
            if self.now >= self.vouches_until(member):
                return
            known = self.knows[member]

            def hold() -> None:
                self.gateway_knows = self.gateway_knows or known
                self.lease_until = max(self.lease_until, asked_at + HALF)

            self.at(self.now + back_seconds, hold)

        self.at(asked_at + there_seconds, grant)


Talk = tuple[float, int, int, float, float]
"""When, after the revocation; two members; how long it takes there, and back."""
REVOKED_AT = 1_000.0
DELAYS = st.sampled_from([0.0, 0.0, 1.0, 60.0, 140.0])


def talks(*when: float) -> st.SearchStrategy[list[Talk]]:
    numbers = st.integers(0, 4)
    return st.lists(st.tuples(st.sampled_from(when), numbers, numbers, DELAYS, DELAYS), min_size=1, max_size=5)


@settings(max_examples=1_000)
@given(
    st.sampled_from([2, 3, 3, 4, 5]),
    talks(-170, -149, -120, -90, -61, -30, -2, -1, 0, 1, 30, 120),
    talks(-1, 30, 61, 90, 120, 147, 149, 151, 170, 200, 290),
)
def test_nobody_vouches_beyond_the_lease_for_what_a_majority_knew(
    members: int, asked: list[Talk], renewed: list[Talk]
) -> None:
    """A majority learns of it at once; the others from whom they ask, and the gateway from those others alone.

    Each of these mutations is found: half of the members as a quorum; counting from the answer, or from its
    application, instead of the question; a gateway's lease counted from when it has it; a grant whatever the auth node
    knows; either half of the lease made longer.
    """
    world, know = World(members), quorum(members, "majority")
    others = range(know, members) or range(members)

    def revoke() -> None:
        for member in range(know):
            world.learn(member, knows=True)

    world.at(REVOKED_AT, revoke)
    for when, one, other, there_seconds, back_seconds in asked:
        asker, answerer = others[one % len(others)], other % members
        if asker != answerer:
            world.at(REVOKED_AT + when, partial(world.ask, asker, answerer, there_seconds, back_seconds))
    for when, one, _, there_seconds, back_seconds in renewed:
        world.at(REVOKED_AT + when, partial(world.renew, others[one % len(others)], there_seconds, back_seconds))
    world.run()
