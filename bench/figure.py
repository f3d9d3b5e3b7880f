"""What every module here measures, and how it is shown. `python -m bench` runs them all.

A module has `def run(seconds: float) -> Iterable[Figure]`.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measurement beside its baseline, taken in the same run; absolute figures are this machine's.

    Args:
        name: what was measured.
        value: in `unit`.
        baseline: the same work by the plainest means, in `unit`; `None` where there is none.
        baseline_name: what that is.
        goal_max, goal_min: what it should be, where there is a goal.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    baseline_name: str = ""
    goal_max: float | None = None
    goal_min: float | None = None

    @property
    def ratio(self) -> float | None:
        """`value` over `baseline`."""
        return self.value / self.baseline if self.baseline else None

    @property
    def ok(self) -> bool | None:
        """Whether the goal is met; `None` without one."""
        if self.goal_max is None and self.goal_min is None:
            return None
        below = self.goal_max is None or self.value <= self.goal_max
        return below and (self.goal_min is None or self.value >= self.goal_min)

    @property
    def goal(self) -> str:
        """As people read it."""
        parts = [f"≤ {self.goal_max:g}"] if self.goal_max is not None else []
        return ", ".join([*parts, f"≥ {self.goal_min:g}"] if self.goal_min is not None else parts)


def show(title: str, figures: Iterable[Figure]) -> bool:
    """Print a table; whether every goal is met."""
    print(title)
    met = True
    for one in figures:
        ratio = "" if one.ratio is None else f"{one.ratio:.2f} × {one.baseline_name} ({one.baseline:,.4g})"
        verdict = {None: "", True: f"goal {one.goal}", False: f"goal {one.goal}: MISSED"}[one.ok]
        print(f"  {one.name:<46}{one.value:>14,.4g} {one.unit:<9} {ratio:<34} {verdict}".rstrip(), flush=True)
        met = met and one.ok is not False
    return met
