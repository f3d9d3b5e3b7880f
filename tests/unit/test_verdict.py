"""Who is removed, and whose entries count: a function of the set of what was said, whoever hears of it first.

Mutations that these tests catch: a removal that counts although its own entry is cut off (`place` without its loop),
one of two mutual removals winning by order, an admission that outlives the entry it was made in, a recovery key that
can be removed.
"""

from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from covey.store.entries import FeedId
from covey.store.identity import Identity
from covey.store.verdict import NO_LIMIT, Authorship, Place, Removal, Verdict, settle

PEERS = {name: Identity(name.encode() * 32).peer_id for name in "abcdr"}
NAMES = {peer: name for name, peer in PEERS.items()}


def feed(name: str) -> FeedId:
    return FeedId("members", PEERS[name], "0" * 16)


def at(name: str, seq: int) -> Place:
    return Place(str(feed(name)), PEERS[name], seq)


def removes(author: str, seq: int, target: str, cutoff: int) -> Removal:
    return Removal(at(author, seq), PEERS[target], {str(feed(target)): cutoff})


def admits(author: str, seq: int, peer: str) -> Authorship:
    return Authorship(at(author, seq), PEERS[peer])


EVERYBODY = [admits("a", 1, "a"), admits("a", 2, "b"), admits("a", 3, "c"), admits("a", 4, "d")]


def judged(
    removals: list[Removal], authorships: list[Authorship] = EVERYBODY, frozen: dict[str, int] | None = None
) -> Verdict:
    verdicts = [
        settle(list(order), authorships, founder=PEERS["a"], recovery=PEERS["r"], frozen=frozen or {})
        for order in permutations(removals)
    ]
    assert all(one == verdicts[0] for one in verdicts)
    return verdicts[0]


def out(verdict: Verdict) -> str:
    return "".join(sorted(NAMES[peer] for peer in verdict.removed))


def limits(verdict: Verdict) -> dict[str, int]:
    return {name: limit for name in "abcd" if (limit := verdict.limit(feed(name))) != NO_LIMIT}


def test_without_removals_all_authors_count_and_nobody_else() -> None:
    verdict = judged([])
    assert (out(verdict), limits(verdict)) == ("", {})
    assert verdict.may_write(PEERS["b"])
    assert not Verdict().may_write(PEERS["a"])
    assert Verdict().limit(feed("a")) == 0


def test_a_removed_author_counts_up_to_the_cutoff() -> None:
    verdict = judged([removes("a", 5, "b", 3)])
    assert (out(verdict), limits(verdict)) == ("b", {"b": 3})
    assert not verdict.may_write(PEERS["b"])
    assert verdict.limit(FeedId("keys", PEERS["b"], "0" * 16)) == 0  # of a feed that no cutoff names


def test_of_two_removals_of_one_author_the_stricter_counts_of_each_feed() -> None:
    other = Removal(at("c", 1), PEERS["b"], {str(feed("b")): 2, "keys/x": 9})
    assert limits(judged([removes("a", 5, "b", 3), other])) == {"b": 2}


def test_what_a_removed_author_removes_afterwards_stays() -> None:
    verdict = judged([removes("a", 5, "b", 3), removes("b", 4, "c", 0)])
    assert (out(verdict), limits(verdict)) == ("b", {"b": 3})


def test_what_it_removed_before_is_removed() -> None:
    assert out(judged([removes("a", 5, "b", 3), removes("b", 3, "c", 0)])) == "bc"


def test_two_that_remove_each_other_are_both_out() -> None:
    verdict = judged([removes("b", 3, "c", 2), removes("c", 3, "b", 2)])
    assert (out(verdict), limits(verdict)) == ("bc", {"b": 2, "c": 2})


def test_so_are_three_in_a_circle() -> None:
    circle = [removes("b", 3, "c", 2), removes("c", 3, "d", 2), removes("d", 3, "b", 2)]
    assert out(judged(circle)) == "bcd"


def test_a_third_s_word_settles_it() -> None:
    mutual = [removes("b", 3, "c", 2), removes("c", 3, "b", 2)]
    verdict = judged([*mutual, removes("a", 9, "c", 2)])
    assert (out(verdict), limits(verdict)) == ("c", {"c": 2})


def test_the_recovery_key_settles_it_and_nobody_removes_it() -> None:
    mutual = [removes("a", 5, "b", 2), removes("b", 3, "a", 4)]
    assert out(judged(mutual)) == "ab"
    recovered = judged([*mutual, removes("r", 1, "b", 2), removes("b", 4, "r", 0)])
    assert (out(recovered), limits(recovered)) == ("b", {"b": 2})
    assert recovered.may_write(PEERS["a"])


def test_what_the_recovery_key_says_counts_whoever_claims_to_have_removed_it() -> None:
    verdict = judged([removes("b", 4, "r", 0), removes("r", 1, "b", 4)])
    assert verdict.may_write(PEERS["r"])
    assert verdict.limit(feed("r")) == NO_LIMIT
    assert out(verdict) == "b"


def test_the_recovery_key_can_make_the_next_auth_node_where_all_are_out() -> None:
    mutual = [removes("a", 5, "b", 2), removes("b", 3, "a", 1)]
    authorships = [admits("a", 1, "a"), admits("a", 2, "b"), admits("r", 1, "d")]
    verdict = judged(mutual, authorships)
    assert verdict.may_write(PEERS["d"])
    assert not verdict.may_write(PEERS["b"])


def test_an_admission_counts_where_its_entry_does() -> None:
    authorships = [admits("a", 1, "a"), admits("a", 2, "b"), admits("b", 5, "c")]
    assert judged([], authorships).may_write(PEERS["c"])
    verdict = judged([removes("a", 3, "b", 4)], authorships)
    assert PEERS["c"] not in verdict.authors
    assert verdict.limit(feed("c")) == 0
    # What it says falls with it, but for a word against whoever cut it off: as if the removed one had said it itself.
    assert out(judged([removes("a", 3, "b", 4), removes("c", 1, "a", 0)], authorships)) == "ab"
    assert out(judged([removes("a", 3, "b", 4), removes("c", 1, "d", 0)], authorships)) == "b"
    twice = [*authorships, admits("a", 9, "c")]
    assert judged([removes("a", 3, "b", 4)], twice).may_write(PEERS["c"])


def test_strangers_that_admit_each_other_are_nobody() -> None:
    authorships = [admits("a", 1, "a"), admits("c", 1, "d"), admits("d", 1, "c")]
    verdict = judged([removes("c", 2, "a", 0)], authorships)
    assert (out(verdict), set(verdict.authors)) == ("", {PEERS["a"], PEERS["r"]})


def test_an_author_who_wrote_two_entries_for_one_place_is_frozen_before_it() -> None:
    frozen = {str(feed("b")): 3}
    verdict = judged([removes("b", 4, "c", 0), removes("b", 3, "d", 0)], frozen=frozen)
    assert (out(verdict), limits(verdict)) == ("d", {"b": 3, "d": 0})
    assert verdict.may_write(PEERS["b"])  # in another incarnation


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_order_of_what_was_said_does_not_matter(
    data: st.DataObject,
) -> None:
    names = st.sampled_from("abcd")
    removals = [
        removes(data.draw(names), data.draw(st.integers(1, 5)), data.draw(names), data.draw(st.integers(0, 5)))
        for _ in range(data.draw(st.integers(0, 5)))
    ]
    shuffled = data.draw(st.permutations(removals))
    expected = settle(removals, EVERYBODY, founder=PEERS["a"], recovery=PEERS["r"], frozen={})
    assert settle(shuffled, EVERYBODY, founder=PEERS["a"], recovery=PEERS["r"], frozen={}) == expected
    # Whoever is not removed can write, and whoever writes was not removed.
    for name in "abcd":
        assert expected.may_write(PEERS[name]) <= (PEERS[name] not in expected.removed)
