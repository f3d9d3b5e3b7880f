"""Who must wait before the next attempt. Pure: time, in seconds of any steady clock, is an argument.

Every wait is bounded, so that nobody is ever locked out for good; and so is the memory: the entries that were touched
longest ago are forgotten first.
"""

from collections import OrderedDict

import msgspec

from covey.errors import CallError


class Pace(msgspec.Struct, frozen=True):
    """How fast a wait grows: nothing for the first `free_failures`, then `first_seconds`, doubling up to `seconds_max`.

    Failures older than `forget_seconds` count no more. At most `entries_max` names or addresses are remembered.
    """

    free_failures: int = 5
    first_seconds: float = 1.0
    seconds_max: float = 60.0
    forget_seconds: float = 900.0
    entries_max: int = 10_000


class _Entry(msgspec.Struct):
    failures: int = 0
    blocked_until: float = float("-inf")
    touched_at: float = float("-inf")


class Backoff:
    """Waits by key. An attempt is charged before its outcome is known, or a thousand at once would all be free."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def wait_seconds(self, key: str, now: float) -> float:
        """How long this key must still wait; 0 if it may go."""
        entry = self._entries.get(key)
        return 0.0 if entry is None else max(0.0, entry.blocked_until - now)

    def charge(self, key: str, now: float) -> None:
        """Count an attempt as a failure; `clear` or `forgive` takes that back."""
        entry = self._entries.setdefault(key, _Entry())
        self._entries.move_to_end(key)
        if now - entry.touched_at > self._pace.forget_seconds:
            entry.failures = 0
        entry.failures += 1
        entry.touched_at = now
        if (over := entry.failures - self._pace.free_failures) > 0:
            growth = 2.0 ** min(over - 1, 64)
            entry.blocked_until = now + min(self._pace.first_seconds * growth, self._pace.seconds_max)
        while len(self._entries) > self._pace.entries_max:
            self._entries.popitem(last=False)

    def forgive(self, key: str) -> None:
        """Take back one charge, and its wait: that attempt was no failure. The earlier ones stay."""
        if entry := self._entries.get(key):
            entry.failures = max(0, entry.failures - 1)
            entry.blocked_until = float("-inf")

    def clear(self, key: str) -> None:
        """Forget all about a key."""
        self._entries.pop(key, None)


class LogInGuard:
    """Holds back guessing, by account and by address.

    Names that nobody has are treated like any other. An address from which a person has logged in before is held to
    its own failures alone: whoever hammers an account from elsewhere keeps its owner from nothing. ("Device cookies",
    OWASP, with the address in the cookie's place.)
    """

    def __init__(self, pace: Pace) -> None:
        self._names = Backoff(pace)
        self._known_names = Backoff(pace)
        self._addresses = Backoff(pace)
        self._known: OrderedDict[str, None] = OrderedDict()
        self._known_max = pace.entries_max

    def admit(self, name: str, address: str, now: float) -> None:
        """Charge an attempt, or raise `rate_limited`.

        Say afterwards how it went: `succeeded` or `withdrawn`, or nothing for a failure. An `address` of "" is
        unknown, and not held back.
        """
        lane, key = self._lane(name, address)
        wait_seconds = max(lane.wait_seconds(key, now), self._addresses.wait_seconds(address, now))
        if wait_seconds > 0:
            raise too_many(wait_seconds, "log-ins")
        lane.charge(key, now)
        if address:
            self._addresses.charge(address, now)

    def succeeded(self, name: str, address: str) -> None:
        """The attempt was the person's own. The address's earlier failures stay: it may be guessing others'."""
        lane, key = self._lane(name, address)
        lane.clear(key)
        self._addresses.forgive(address)
        if address:
            self._known[_pair(name, address)] = None
            self._known.move_to_end(_pair(name, address))
            while len(self._known) > self._known_max:
                self._known.popitem(last=False)

    def withdrawn(self, name: str, address: str) -> None:
        """The attempt was refused unheard, for a reason of our own."""
        lane, key = self._lane(name, address)
        lane.forgive(key)
        self._addresses.forgive(address)

    def _lane(self, name: str, address: str) -> tuple[Backoff, str]:
        if _pair(name, address) in self._known:
            return self._known_names, _pair(name, address)
        return self._names, name


def too_many(wait_seconds: float, what: str) -> CallError:
    """The refusal of an attempt that came too soon."""
    seconds = max(1, round(wait_seconds + 0.5))
    return CallError(
        "rate_limited",
        f"Too many {what}: try again in {seconds} s.",
        reason=what.replace("-", "_"),
        retry_after_seconds=wait_seconds,
    )


def _pair(name: str, address: str) -> str:
    return f"{address}\n{name}"
