"""How many connections are let in before they are trusted. Pure: time is an argument."""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Protocol

ADDRESSES_MAX = 4_096
"""That are remembered; whoever comes from more than that is as good as everywhere."""


class Guest(Protocol):
    """A connection that has not proved who it is."""

    @property
    def heard_at(self) -> float:
        """When it last said something."""
        ...

    def abort(self) -> None:
        """Cut it."""
        ...


@dataclass(slots=True)
class Lobby:
    """Connections whose peer is not known yet, by address. Who is silent longest makes room for who comes.

    Refusing the newest instead would let a few thousand idle connections keep the members out. An honest handshake
    takes milliseconds, so it is never the one that has been silent longest.
    """

    guests_max: int
    per_address_max: int
    turned_out: int = 0
    """Connections that had to go, in all."""
    _guests: dict[str, OrderedDict[int, Guest]] = field(default_factory=dict[str, OrderedDict[int, Guest]])
    _count: int = 0

    def __len__(self) -> int:
        return self._count

    def enter(self, address: str, guest: Guest) -> Guest | None:
        """A guest comes; returns the one that has to go, already taken out."""
        leaving: Guest | None = None
        here = self._guests.get(address, OrderedDict[int, Guest]())
        if len(here) >= self.per_address_max:
            leaving = self._longest_silent(address)
        elif self._count >= self.guests_max:
            leaving = self._longest_silent(max(self._guests, key=lambda each: len(self._guests[each])))
        self._guests.setdefault(address, OrderedDict())[id(guest)] = guest
        self._count += 1
        return leaving

    def leave(self, address: str, guest: Guest) -> bool:
        """A guest goes, known or not; returns whether it was still here."""
        here = self._guests.get(address)
        if here is None or here.pop(id(guest), None) is None:
            return False
        self._count -= 1
        if not here:
            del self._guests[address]
        return True

    def _longest_silent(self, address: str) -> Guest:
        guest = min(self._guests[address].values(), key=lambda each: each.heard_at)
        self.leave(address, guest)
        self.turned_out += 1
        return guest


@dataclass(slots=True)
class Attempts:
    """At most so many events from one address within a time."""

    attempts_max: int
    seconds: float
    _times: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict[str, deque[float]])

    def allow(self, address: str, now: float) -> bool:
        """Whether one more may happen now; if so, it has."""
        times = self._times.setdefault(address, deque())
        self._times.move_to_end(address)
        if len(self._times) > ADDRESSES_MAX:
            self._times.popitem(last=False)
        while times and times[0] <= now - self.seconds:
            times.popleft()
        if len(times) >= self.attempts_max:
            return False
        times.append(now)
        return True


@dataclass(slots=True)
class Places:
    """At most so many at once, in all and for each key. The newest is refused."""

    places_max: int
    per_key_max: int
    _taken: dict[str, int] = field(default_factory=dict[str, int])
    _count: int = 0

    def __len__(self) -> int:
        return self._count

    def take(self, key: str) -> bool:
        """Take a place, if there is one."""
        taken = self._taken.get(key, 0)
        if self._count >= self.places_max or taken >= self.per_key_max:
            return False
        self._taken[key] = taken + 1
        self._count += 1
        return True

    def free(self, key: str) -> None:
        """Give a place back."""
        self._count -= 1
        if self._taken[key] == 1:
            del self._taken[key]
        else:
            self._taken[key] -= 1
