"""The door through which roles and back ends come in: entry points, by configured name only.

Built-ins use the same door as third parties. Nothing that the configuration does not name is ever imported.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from covey.backends.base import BackendPlugin
from covey.errors import CallError
from covey.nearest import suggestion
from covey.roles.base import Role

ROLES = "covey.roles"
BACKENDS = "covey.backends"
T = TypeVar("T")


def role_names() -> tuple[str, ...]:
    """Every installed role, sorted; none is imported."""
    return _names(ROLES)


def backend_names() -> tuple[str, ...]:
    """Every installed back end, sorted; none is imported."""
    return _names(BACKENDS)


def load_role(name: str) -> Role:
    """Import a role.

    Raises:
        CallError: `invalid` where there is none of that name, or it cannot be used.
    """
    return _load(ROLES, "role", name, Role)


def load_backend(name: str) -> BackendPlugin:
    """Import a back end.

    Raises:
        CallError: `invalid` where there is none of that name, or it cannot be used.
    """
    return _load(BACKENDS, "back end", name, BackendPlugin)


def _names(group: str) -> tuple[str, ...]:
    return tuple(sorted({entry.name for entry in entry_points(group=group)}))


def _load(group: str, kind: str, name: str, expected: type[T]) -> T:
    found: list[EntryPoint] = list(entry_points(group=group, name=name))
    if not found:
        raise CallError(
            "invalid",
            f"There is no {kind} {name!r}{suggestion(name, _names(group))}. Known: {', '.join(_names(group))}.",
        )
    try:
        loaded = found[0].load()
    except (ImportError, AttributeError) as error:
        raise CallError("invalid", f"The {kind} {name!r} cannot be loaded from {found[0].value}: {error}.") from error
    if not isinstance(loaded, expected):
        raise CallError("invalid", f"The {kind} {name!r} ({found[0].value}) is not a covey {expected.__name__}.")
    return loaded
