"""Hashing passwords with argon2id, in threads, a bounded number at a time and with a bounded queue."""

import secrets
from collections.abc import Callable
from typing import TypeVar

import argon2
import argon2.exceptions
import msgspec
import trio

from covey.errors import CallError
from covey.roles.auth.strength import normalised

T = TypeVar("T")


class HashCost(msgspec.Struct, frozen=True):
    """argon2id's parameters: by default OWASP's minimum, about 20 ms of one core. At most `queue_max` log-ins wait."""

    memory_kibibytes: int = 19 * 1024
    passes: int = 2
    lanes: int = 1
    threads: int = 1
    queue_max: int = 64


class Passwords:
    """Makes and checks hashes. Whether an account exists must not show: a check without a hash takes as long.

    Args:
        cost: the parameters of new hashes; older ones say their own.
    """

    def __init__(self, cost: HashCost) -> None:
        self._hasher = argon2.PasswordHasher(
            time_cost=cost.passes, memory_cost=cost.memory_kibibytes, parallelism=cost.lanes
        )
        self._limiter = trio.CapacityLimiter(cost.threads)
        self._queue_max = cost.queue_max
        self._dummy = ""

    async def open(self) -> None:
        """Make the hash that stands in for those that do not exist."""
        self._dummy = await self.hash(secrets.token_urlsafe())

    async def hash(self, password: str) -> str:
        """The password's hash in argon2's own encoded form.

        Raises:
            CallError: `no_capacity` while too many others wait.
        """
        return await self._in_thread(lambda: self._hasher.hash(_encoded(password)))

    async def verify(self, stored: str, password: str) -> bool:
        """Whether the password is the one behind a stored hash. "" is nobody's: it takes one check too, and fails.

        Raises:
            CallError: `no_capacity` while too many others wait.
        """
        matches = await self._in_thread(lambda: self._matches(stored or self._dummy, password))
        return matches and bool(stored)

    def outdated(self, stored: str) -> bool:
        """Whether a hash was made with other parameters than today's."""
        return self._hasher.check_needs_rehash(stored)

    def _matches(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, _encoded(password))
        except argon2.exceptions.VerifyMismatchError:
            return False

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._limiter.statistics().tasks_waiting >= self._queue_max:
            raise CallError(
                "no_capacity",
                "Too many people are logging in at this moment; try again in a few seconds.",
                reason="log_ins",
                retry_after_seconds=2.0,
            )
        return await trio.to_thread.run_sync(work, limiter=self._limiter)


def _encoded(password: str) -> bytes:
    # Lone surrogates cannot come over HTTP, but an embedder may pass them: they are characters like any other here.
    return normalised(password).encode("utf-8", "surrogatepass")
