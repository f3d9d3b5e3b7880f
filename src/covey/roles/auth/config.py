"""The `[auth]` table of the configuration."""

from typing import Annotated

import msgspec
from msgspec import Meta

from covey.cluster.lease import LeasePolicy
from covey.contracts.auth import LIST_MAX, RegistrationMode
from covey.roles.auth.backoff import Pace
from covey.roles.auth.passwords import HashCost

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Seconds = Annotated[int, Meta(ge=60, le=10 * 366 * 24 * 3600)]


class AuthConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may come in, for how long, and what it costs to guess."""

    registration: RegistrationMode = "invite"
    """`invite`: with an administrator's one-time link. `approval`: anybody, once an administrator agrees. `open`."""
    registrations_per_address_max: Count = 10
    """Attempts to register from one address within an hour, before each next one takes longer."""
    accounts_max: Annotated[int, Meta(ge=1, le=LIST_MAX)] = LIST_MAX
    invitation_seconds_max: Seconds = 30 * 24 * 3600
    invitations_open_max: Count = 1_000

    lease_seconds: Annotated[int, Meta(ge=10, le=24 * 3600)] = 300
    """No gateway goes on vouching for a key for longer, once a majority of the auth nodes knows that it is revoked."""
    lease_policy: LeasePolicy = "auto"

    session_seconds: Seconds = 7 * 24 * 3600
    sessions_per_account_max: Annotated[int, Meta(ge=1, le=1_000)] = 16
    """The one that began first ends when another begins."""

    keys_per_account_max: Annotated[int, Meta(ge=1, le=LIST_MAX)] = 100
    """Those that are revoked or expired do not count."""
    key_seconds_max: Seconds = 10 * 366 * 24 * 3600
    """The longest life that a key which expires may be given."""
    key_use_flush_seconds: Annotated[int, Meta(ge=1, le=3600)] = 60
    """How often the keys' last use goes to this node's disk."""

    argon2_memory_kibibytes: Annotated[int, Meta(ge=8, le=4 * 1024 * 1024)] = 19 * 1024
    argon2_passes: Annotated[int, Meta(ge=1, le=100)] = 2
    argon2_lanes: Annotated[int, Meta(ge=1, le=64)] = 1
    password_threads: Annotated[int, Meta(ge=1, le=64)] = 1
    """How many passwords are checked at once."""
    password_queue_max: Annotated[int, Meta(ge=1, le=10_000)] = 64

    log_in_free_failures: Annotated[int, Meta(ge=1, le=1_000)] = 5
    """Failures, by account and by address, before the waits begin. They double up to the longest."""
    log_in_wait_first_seconds: Annotated[float, Meta(gt=0, le=3600)] = 1.0
    log_in_wait_seconds_max: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    log_in_forget_seconds: Annotated[float, Meta(gt=0, le=7 * 24 * 3600)] = 900.0
    log_in_remembered_max: Count = 10_000
    """How many names and addresses are remembered; the ones that were longest silent are forgotten first."""

    @property
    def hash_cost(self) -> HashCost:
        """What hashing a password takes."""
        return HashCost(
            memory_kibibytes=max(self.argon2_memory_kibibytes, 8 * self.argon2_lanes),  # RFC 9106, 3.1
            passes=self.argon2_passes,
            lanes=self.argon2_lanes,
            threads=self.password_threads,
            queue_max=self.password_queue_max,
        )

    @property
    def log_in_pace(self) -> Pace:
        """How failures to log in are held back."""
        return Pace(
            free_failures=self.log_in_free_failures,
            first_seconds=self.log_in_wait_first_seconds,
            seconds_max=self.log_in_wait_seconds_max,
            forget_seconds=self.log_in_forget_seconds,
            entries_max=self.log_in_remembered_max,
        )

    @property
    def registration_pace(self) -> Pace:
        """How registrations are held back, by address."""
        return Pace(
            free_failures=self.registrations_per_address_max,
            first_seconds=60.0,
            seconds_max=3600.0,
            forget_seconds=3600.0,
            entries_max=self.log_in_remembered_max,
        )
