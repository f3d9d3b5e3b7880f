"""What a role is, and what it is given."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trio

from covey.backends.base import Plugged
from covey.bus.bus import BusHandle
from covey.cluster.lease import LeasePolicy
from covey.contracts.joining import JoinAnswer, JoinRequest
from covey.errors import CallError
from covey.http.router import Router
from covey.store.identity import Identity
from covey.store.writer import Store
from covey.telemetry.metrics import Metrics
from covey.transport.base import PeerId


class Clock(Protocol):
    """Wall time, for what is written down and what expires; intervals are measured with `trio.current_time()`."""

    def now(self) -> float:
        """Unix seconds."""
        ...


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Who this node is. `started_at` in Unix seconds. `roles` in starting order."""

    name: str
    version: str
    started_at: int
    roles: tuple[str, ...] = ()


@dataclass(slots=True)
class Lifecycle:
    """Whether the node still takes new work, and what keeps it from being ready."""

    draining: bool = False
    stop: trio.Event = field(default_factory=trio.Event)
    """Set when the node has been asked to stop."""
    drain_until: float = float("-inf")
    """Trio's time until which running requests may finish; set with `stop`."""
    missing: dict[str, str] = field(default_factory=dict[str, str])
    """Why `/readyz` says no, by part: a role that is open but cannot do its work yet (a model still loading)."""


Welcomer = Callable[[PeerId, JoinRequest], Awaitable[JoinAnswer]]
"""Answers a machine that wants to become a member; the peer id is the one that the transport has proved."""


class LeaseDoor(Protocol):
    """What a role may ask about leases: who may vouch for keys now (replication.md)."""

    def grant(self, *, lease_seconds: float, policy: LeasePolicy) -> None:
        """Vouch and grant leases by this node's own word from now on; only an auth role does, once."""
        ...

    def check(self) -> None:
        """Raise `unreachable` (`no_lease`) unless this node may vouch for keys now."""
        ...

    async def check_gateway(self, peer: PeerId) -> None:
        """The same, about the gateway that asks for work. This very process is never refused."""
        ...


class NoBound:
    """The lease of a node that cannot have a cluster: nobody can have revoked anything elsewhere."""

    def grant(self, *, lease_seconds: float, policy: LeasePolicy) -> None:
        """There is nobody to grant one to."""

    def check(self) -> None:
        """Always."""

    async def check_gateway(self, peer: PeerId) -> None:
        """Always."""


class ClusterDoor(Protocol):
    """What a role may ask of the node's links to other machines."""

    @property
    def lease(self) -> LeaseDoor:
        """Who may vouch for keys now."""
        ...

    async def open(self) -> tuple[str, ...]:
        """Listen for other machines, from now on and after every restart; returns the announced addresses."""
        ...

    def serve_joins(self, welcome: Welcomer) -> None:
        """Who answers machines that are not members yet; only an auth role does."""
        ...

    def addresses(self) -> dict[str, tuple[str, ...]]:
        """Where members were last reached, by peer id, this node included."""
        ...

    def labels(self, peer: PeerId) -> frozenset[str]:
        """What an administrator labelled a member with, this node included; nothing for others."""
        ...

    async def hear_all(self, *, but: str) -> None:
        """Take in what every other auth node but one holds that is linked and answers; for some seconds at most."""
        ...

    async def caught_up(self) -> None:
        """Until this node has heard, since it started, what another auth node holds; for some seconds at most. At once
        where there is no other.
        """
        ...

    @property
    def is_complete(self) -> bool:
        """Whether this node's store has ever held all that its network's did: it founded it, or has caught up once."""
        ...

    async def complete(self) -> None:
        """Until that is so."""
        ...


class Alone:
    """The door of a node that cannot have a cluster, as in tests of a single role."""

    lease = NoBound()

    async def open(self) -> tuple[str, ...]:
        """Always refuses."""
        raise CallError("unsupported", "This node cannot be linked to others.")

    def serve_joins(self, welcome: Welcomer) -> None:
        """Nobody will ever ask."""

    def addresses(self) -> dict[str, tuple[str, ...]]:
        """None."""
        return {}

    def labels(self, peer: PeerId) -> frozenset[str]:
        """None."""
        return frozenset()

    async def hear_all(self, *, but: str) -> None:
        """There is nobody to ask."""

    async def caught_up(self) -> None:
        """There is nobody to ask."""

    @property
    def is_complete(self) -> bool:
        """There is nothing but its own."""
        return True

    async def complete(self) -> None:
        """At once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Everything a role may touch. Nobody asks whether it runs alone or in a cluster."""

    node: NodeInfo
    identity: Identity
    bus: BusHandle
    store: Store
    http: Router
    metrics: Metrics
    clock: Clock
    lifecycle: Lifecycle
    folder: Path
    """The node's data folder, private to its user."""
    assets: Path
    """The folder that holds `templates/` and `static/`."""
    backends: tuple[Plugged, ...]
    """The back ends that the configuration names, with their settings."""
    cluster: ClusterDoor = field(default_factory=Alone)


OpenRole = Callable[[Any, Parts], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class Role:
    """A role: `open(config, parts)` yields once it is ready, and drains and closes on its way out.

    Args:
        name: as in `--role` and the configuration's table of that name.
        config: the type of that table, a frozen msgspec Struct whose every field has a default.
        open: an async context manager; what it raises, or what crashes inside, ends the node with its cause.
        after: roles that must be ready first, where they run in the same node.
    """

    name: str
    config: type[msgspec.Struct]
    open: OpenRole
    after: tuple[str, ...] = ()
