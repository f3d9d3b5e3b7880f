"""How long requests wait, by model. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import msgspec

KNOWN_MAX = 1_000


class Timeouts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[[gateway.timeouts]]`: for the models that one of the patterns names; what is left out is as for all models."""

    models: tuple[str, ...]
    total_seconds: float | None = None
    first_token_seconds: float | None = None
    idle_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Patience:
    """For the first token (from when it is asked for), for each next one, and for the whole answer."""

    total_seconds: float
    first_seconds: float
    idle_seconds: float


class Patiences:
    """The first table whose pattern names a model holds for it.

    Args:
        default: for every other model.
        tables: in the configuration's order.
    """

    def __init__(self, default: Patience, tables: Sequence[Timeouts] = ()) -> None:
        self._default = default
        self._tables = tuple(tables)
        self._known: dict[str, Patience] = {}

    def of(self, model: str) -> Patience:
        """The patience with a model."""
        found = self._known.get(model)
        if found is None:
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            found = self._known[model] = self._find(model)
        return found

    def _find(self, model: str) -> Patience:
        for table in self._tables:
            if any(fnmatchcase(model, pattern) for pattern in table.models):
                default = self._default
                return Patience(
                    default.total_seconds if table.total_seconds is None else table.total_seconds,
                    default.first_seconds if table.first_token_seconds is None else table.first_token_seconds,
                    default.idle_seconds if table.idle_seconds is None else table.idle_seconds,
                )
        return self._default
