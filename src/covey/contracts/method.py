"""A method of the bus is a constant: its name, the types of both sides, who may call it, and how long it may take."""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import msgspec

Party = Literal["gateway", "auth", "inference", "web", "member", "operator"]
"""Who may call. The four roles; `member`: any admitted node, whatever its roles; `operator`: who holds the node itself
(its Unix socket, or the process that embeds it)."""

Req = TypeVar("Req", bound=msgspec.Struct)
Res = TypeVar("Res", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Unary(Generic[Req, Res]):
    """One request, one response, within `timeout_seconds`.

    `idempotent` calls may be sent again to another peer when the first was lost.
    """

    name: str
    request: type[Req]
    response: type[Res]
    access: frozenset[Party]
    timeout_seconds: float = 10.0
    idempotent: bool = False


@dataclass(frozen=True, slots=True)
class Streaming(Generic[Req, Res]):
    """One request, many responses in order; `idle_seconds` bounds the wait for each next one, not the whole."""

    name: str
    request: type[Req]
    response: type[Res]
    access: frozenset[Party]
    idle_seconds: float = 30.0


class Nothing(msgspec.Struct, frozen=True):
    """The empty message."""
