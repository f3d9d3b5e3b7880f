"""Whose entries count, and who is a member no more. Pure.

A removal is one author's word about another, and its author may be removed as well. Which removals stand is a function
of the *set* of what was said, in whatever order a node hears of it:

- A removal is *attacked* by another one that cuts its entry off: that names its author, with a cutoff before it.
- A removal whose attackers all fall stands; one that a standing removal attacks falls; and so on from those that
  nobody attacks (the grounded extension of Dung, "On the acceptability of arguments", 1995).
- What is left attacks each other in a circle: two who remove each other. Of these all take effect: denials win, and
  both are out until the network's recovery key, which nobody can attack, removes one of them. Then the other is back.

An admission counts where its entry does. An author who signed two entries for one place is frozen before it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import msgspec

from covey.store.entries import FeedId

NO_LIMIT = 2**63 - 1
"""Of a feed all of whose entries count."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something was said. `author`: of the feed."""

    feed: str
    author: str
    seq: int


@dataclass(frozen=True, slots=True)
class Removal:
    """`cutoffs`: the last sequence number that still counts, of each of the target's feeds; none of the others."""

    place: Place
    target: str
    cutoffs: Mapping[str, int]

    def cuts_off(self, place: Place) -> bool:
        """Whether this removal, where it stands, voids that place."""
        return place.author == self.target and place.seq > self.cutoffs.get(place.feed, 0)


@dataclass(frozen=True, slots=True)
class Authorship:
    """Somebody was made an auth node."""

    place: Place
    peer: str


class Verdict(msgspec.Struct, frozen=True):
    """What follows. `authors`: who may ever have written, with the cutoffs of those who are removed (`None`: none is).

    `removed`: every machine that is out. `frozen`: per feed with two entries for one place, the last common one.
    """

    authors: dict[str, dict[str, int] | None] = {}
    removed: tuple[str, ...] = ()
    frozen: dict[str, int] = {}

    def limit(self, feed: FeedId) -> int:
        """The last sequence number of a feed that counts."""
        if feed.author not in self.authors:
            return 0
        cutoffs = self.authors[feed.author]
        name = str(feed)
        limit = NO_LIMIT if cutoffs is None else cutoffs.get(name, 0)
        return min(limit, self.frozen.get(name, NO_LIMIT))

    def may_write(self, peer: str) -> bool:
        """Whether what this author writes next will count."""
        return peer in self.authors and self.authors[peer] is None


class _Label(IntEnum):
    OUT = 0
    OPEN = 1
    IN = 2


def settle(
    removals: Sequence[Removal],
    authorships: Iterable[Authorship],
    *,
    founder: str,
    recovery: str,
    frozen: Mapping[str, int],
) -> Verdict:
    """The verdict on everything that was said.

    Args:
        removals: all of them, also those in entries that turn out not to count.
        authorships: all of them, likewise.
        founder: the author by the genesis.
        recovery: the peer id of the recovery key, whose word nobody can take away.
        frozen: per feed whose author equivocated, the last common entry.
    """
    court = _Court(removals, authorships, founder, recovery, frozen)
    court.label()
    standing = [removal for removal, label in zip(removals, court.labels, strict=True) if label is not _Label.OUT]
    # From here on, what was left open stands: what it cuts off is out.
    court.labels = [_Label.OUT if label is _Label.OUT else _Label.IN for label in court.labels]
    authors = {
        peer: None if peer == recovery else _cutoffs(peer, standing)
        for peer in (founder, recovery, *court.admitted)
        if court.author(peer, frozenset()) is _Label.IN
    }
    removed = {removal.target for removal in standing} - {recovery}
    return Verdict(authors, tuple(sorted(removed)), dict(sorted(frozen.items())))


class _Court:
    """Labels removals: IN stands, OUT falls, OPEN is not settled (yet)."""

    def __init__(
        self,
        removals: Sequence[Removal],
        authorships: Iterable[Authorship],
        founder: str,
        recovery: str,
        frozen: Mapping[str, int],
    ) -> None:
        self._removals = removals
        self._of_target: dict[str, list[int]] = {}
        for number, removal in enumerate(removals):
            self._of_target.setdefault(removal.target, []).append(number)
        self.admitted: dict[str, list[Place]] = {}
        for authorship in authorships:
            self.admitted.setdefault(authorship.peer, []).append(authorship.place)
        self._founder = founder
        self._recovery = recovery
        self._frozen = frozen
        self.labels = [_Label.OPEN] * len(removals)

    def label(self) -> None:
        """Until nothing more follows. A label once given stays, so this ends."""
        changed = True
        while changed:
            changed = False
            for number, removal in enumerate(self._removals):
                if self.labels[number] is not _Label.OPEN:
                    continue
                verdict = self.place(removal.place, frozenset())
                if verdict is not _Label.OPEN:
                    self.labels[number], changed = verdict, True

    def place(self, place: Place, asking: frozenset[str]) -> _Label:
        """Whether what was said there counts."""
        if place.author == self._recovery:
            return _Label.IN
        if place.seq > self._frozen.get(place.feed, NO_LIMIT):
            return _Label.OUT
        worst = self.author(place.author, asking)
        for number in self._of_target.get(place.author, ()):
            if self._removals[number].cuts_off(place):
                worst = min(worst, _Label(_Label.IN - self.labels[number]))
        return worst

    def author(self, peer: str, asking: frozenset[str]) -> _Label:
        """Whether somebody who counts made this peer an author. `asking`: whose own turn this is a part of."""
        if peer in (self._founder, self._recovery):
            return _Label.IN
        places = (place for place in self.admitted.get(peer, ()) if place.author not in asking)
        return max((self.place(place, asking | {peer}) for place in places), default=_Label.OUT)


def _cutoffs(peer: str, standing: Sequence[Removal]) -> dict[str, int] | None:
    """Of a removed author: what any removal cuts off is cut off."""
    mine = [removal.cutoffs for removal in standing if removal.target == peer]
    if not mine:
        return None
    common = set[str](mine[0]).intersection(*mine[1:])
    return {feed: min(cutoffs[feed] for cutoffs in mine) for feed in sorted(common)}
