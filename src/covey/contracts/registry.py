"""Every contract of this version, by name: read off the modules, so that none can be forgotten."""

from types import ModuleType
from typing import Any

from covey.contracts import (
    audit,
    auth,
    cluster,
    gateway,
    inference,
    leases,
    membership,
    recovery,
    replication,
    store,
    usage,
)
from covey.contracts.method import Streaming, Unary

AnyMethod = Unary[Any, Any] | Streaming[Any, Any]
MODULES: tuple[ModuleType, ...] = (
    audit,
    auth,
    cluster,
    gateway,
    inference,
    leases,
    membership,
    recovery,
    replication,
    store,
    usage,
)


def contracts() -> dict[str, AnyMethod]:
    """By the name that travels."""
    found: dict[str, AnyMethod] = {}
    for module in MODULES:
        for value in vars(module).values():
            if isinstance(value, Unary | Streaming):
                found[value.name] = value
    return found
