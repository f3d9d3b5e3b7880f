"""The freshness lease's rules: nobody vouches for a revoked key for longer than the lease after a majority knew it."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
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
class Question:
    """From one auth node, or the gateway, to an auth node."""

    asked_at: float
    asker: int
    asked: int
    knows: bool | None = None


@dataclass
class World:
    """Auth nodes, one of which revokes a key, and a gateway; every message takes as long as it likes, or is lost."""

    members: int
    now: float = 0.0
    fresh: list[Freshness[int]] = field(default_factory=list)
    knows: list[bool] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    requests: list[Question] = field(default_factory=list)
    gateway_knows: bool = False
    lease_until: float = -math.inf
    settled_at: float | None = None
    """When a majority knew."""

    def __post_init__(self) -> None:
        self.fresh = [Freshness[int]() for _ in range(self.members)]
        self.knows = [False] * self.members

    def others(self, member: int) -> list[int]:
        return [other for other in range(self.members) if other != member]

    def vouches(self, member: int) -> bool:
        return self.fresh[member].since(self.others(member), "majority") + HALF > self.now

    def learn(self, member: int, *, knows: bool) -> None:
        self.knows[member] = self.knows[member] or knows
        if self.settled_at is None and sum(self.knows) >= quorum(self.members, "majority"):
            self.settled_at = self.now

    def step(self, what: str, one: int, other: int) -> None:
        one, other = one % self.members, other % self.members
        match what:
            case "revoke":
                self.learn(one, knows=True)
            case "ask" if one != other:
                self.questions.append(Question(self.now, one, other))
            case "answer" if self.questions:
                question = self.questions[one % len(self.questions)]
                question.knows = self.knows[question.asked]
            case "apply" if self.questions:
                question = self.questions.pop(one % len(self.questions))
                if question.knows is not None:
                    self.learn(question.asker, knows=question.knows)
                    self.fresh[question.asker].applied(question.asked, question.asked_at)
            case "request":
                self.requests.append(Question(self.now, -1, one))
            case "grant" if self.requests:
                request = self.requests[one % len(self.requests)]
                if self.vouches(request.asked):
                    request.knows = self.knows[request.asked]
            case "hold" if self.requests:
                request = self.requests.pop(one % len(self.requests))
                if request.knows is not None:
                    self.gateway_knows = self.gateway_knows or request.knows
                    self.lease_until = max(self.lease_until, request.asked_at + HALF)
            case _:
                pass


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["revoke", "ask", "answer", "apply", "request", "grant", "hold", "ask", "answer", "apply"]),
        st.integers(0, 20),
        st.integers(0, 20),
        st.sampled_from([0.0, 0.0, 1.0, 40.0, 149.0, 151.0]),
    ),
    max_size=80,
)


@given(st.sampled_from([1, 2, 3, 4, 5]), STEPS)
def test_nobody_vouches_beyond_the_lease_for_what_a_majority_knew(
    members: int, steps: list[tuple[str, int, int, float]]
) -> None:
    """Each of these mutations is found: half of the members as a quorum; counting from the answer, or from its
    application, instead of the question; a gateway's lease counted from its grant; either half made whole.
    """
    world = World(members)
    for what, one, other, seconds in steps:
        world.now += seconds
        world.step(what, one, other)
        if world.settled_at is None or world.now < world.settled_at + LEASE_SECONDS:
            continue
        assert world.gateway_knows or world.now >= world.lease_until
        for member in range(members):
            assert world.knows[member] or not world.vouches(member)
