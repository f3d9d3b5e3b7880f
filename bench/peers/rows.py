"""The figures of a run, subject by subject, and the table that shows them. Pure."""

import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

Round = dict[str, float]
"""What one round at one subject gave, by the name of the figure."""
ADDED = ("latency p50, 1 connection", "latency p99, 1 connection", "first token p50, 1 stream")
"""Figures that the upstream has too: what a gateway adds is what is interesting."""


@dataclass(frozen=True)
class Row:
    """One figure.

    Args:
        values: by subject; `None` where it makes no sense.
        more_is_better: rates and shares.
    """

    name: str
    unit: str
    values: dict[str, float | None]
    more_is_better: bool = False

    def ratio(self, one: str, other: str) -> float | None:
        """One subject's value over another's; `None` where either has none, or the other is nothing."""
        value, baseline = self.values.get(one), self.values.get(other)
        return None if value is None or not baseline else value / baseline


def medians(rounds: Sequence[Round]) -> Round:
    """Over the rounds, figure by figure."""
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def rows(
    figures: dict[str, Round], units: dict[str, str], more_is_better: Collection[str], *, bare: str
) -> Iterator[Row]:
    """A row for each figure, and after those of `ADDED` one of what is added to the bare upstream's.

    Args:
        figures: by subject.
        units: of every figure, in the order of the table.
        more_is_better: the names of figures.
        bare: the subject that all are measured against.
    """
    for name, unit in units.items():
        values = {subject: one.get(name) for subject, one in figures.items()}
        yield Row(name, unit, values, more_is_better=name in more_is_better)
        base = values[bare]
        if name in ADDED and base is not None:
            added = {one: value - base for one, value in values.items() if one != bare and value is not None}
            yield Row(f"added: {name}", unit, {bare: None, **added})


def markdown(table: Sequence[Row], subjects: Sequence[str], *, ours: str, theirs: str) -> list[str]:
    """The lines of a table, with the ratio of two subjects where both are in it."""
    with_ratio = theirs in subjects
    head = ["", *subjects, *([f"{ours} / {theirs}", "better is"] if with_ratio else [])]
    lines = [_line(head), _line(["---", *["---:"] * (len(head) - 1)])]
    for row in table:
        cells = [
            f"{row.name}, {row.unit}",
            *(_cell(row.values.get(one)) for one in subjects),
        ]
        if with_ratio:
            ratio = row.ratio(ours, theirs)
            cells += ["" if ratio is None else f"{ratio:.2f} ×", "more" if row.more_is_better else "less"]
        lines.append(_line(cells))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
