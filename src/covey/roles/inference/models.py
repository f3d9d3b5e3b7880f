"""Which back end answers for which model."""

from collections import Counter
from collections.abc import Sequence

from covey.backends.base import Backend, Remover, Report
from covey.backends.catalogue import find as find_entry
from covey.contracts.inference import ModelStatus, RemovedModel
from covey.errors import CallError


class ModelTable:
    """The models of a node's back ends; where two have the same one, the first configured answers.

    Args:
        backends: open, in the configuration's order.
    """

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = tuple(backends)

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Every model once, sorted by name."""
        found: dict[str, ModelStatus] = {}
        for backend in self._backends:
            for status in backend.models():
                found.setdefault(status.name, status)
        return tuple(found[name] for name in sorted(found))

    def counts(self) -> Counter[tuple[str, str]]:
        """How many models there are, by back end and state."""
        return Counter((backend.name, status.state) for backend in self._backends for status in backend.models())

    def find(self, model: str) -> tuple[Backend, ModelStatus]:
        """Who answers for a model, by its name or an alias of the catalogue, and its state.

        Raises:
            CallError: `not_found` (`model_not_found`).
        """
        names = [model]
        if entry := find_entry(model):
            names.append(entry.name)
        for name in names:
            for backend in self._backends:
                for status in backend.models():
                    if status.name == name:
                        return backend, status
        raise CallError(
            "not_found",
            f"No model {model[:200]!r} on this node; `covey models list` shows what there is.",
            reason="model_not_found",
            param="model",
        )

    def missing(self, default_model: str) -> str:
        """Why the node cannot answer yet; "" if it can.

        A default model that no back end knows is no hindrance as long as there is another.
        """
        statuses = self.statuses()
        default = next((status for status in statuses if status.name == default_model), None)
        if default is not None and default.state in {"loading", "failed"}:
            share = "" if default.progress is None else f" ({default.progress:.0%})"
            return f"{default.name} is {default.state}{share}: {default.detail}"
        answering = (status for status in statuses if "chat" in status.capabilities)
        if default is None and all(status.state in {"loading", "failed"} for status in answering):
            return "no back end has a model"
        return ""

    async def pull(self, model: str, report: Report) -> None:
        """Have the first back end that can do so fetch a model.

        Raises:
            CallError: what that back end says; `unsupported` where none can.
        """
        refusal = CallError("unsupported", f"No back end of this node can fetch {model[:200]!r}.", param="model")
        for backend in self._backends:
            try:
                await backend.pull(model, report)
                return
            except CallError as error:
                if error.code != "unsupported":
                    raise
                # One that says what there is to fetch is worth more than one that cannot fetch at all.
                refusal = refusal if refusal.reason else error
        raise refusal

    async def remove(self, model: str) -> RemovedModel:
        """Have the back end that answers for a model remove it.

        Raises:
            CallError: `not_found`; `unsupported` where that back end removes none; what it says.
        """
        backend, status = self.find(model)
        if not isinstance(backend, Remover):
            raise CallError(
                "unsupported",
                f"{status.name} is of the back end {backend.name}, which removes no models: remove it where it lies.",
                param="model",
            )
        return RemovedModel(status.name, backend.name, await backend.remove(status.name))
