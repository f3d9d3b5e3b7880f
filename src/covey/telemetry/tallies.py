"""Counters and histograms for what happens at every request, in prometheus-client's families.

Its own take a lock and a dozen calls for every count: together a twentieth of a request. These are counted on the event
loop alone, and need none (docs/adr/0002-dependencies.md). The thread that renders reads each number as it is.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Count:
    """One series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Some more. `ValueError` for fewer: whoever reads it would take that for a restart."""
        if amount < 0:
            raise ValueError("a counter only goes up")
        self.value += amount


class Spread:
    """One series of a histogram.

    Args:
        bounds: of its buckets, rising; each value up to a bound is in its bucket, the rest in one more.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """For the exposition: how many there are up to each bound; and the sum of all."""
        counts, total, found = list(self._counts), 0, list[tuple[str, float]]()
        for bound, count in zip([*map(str, map(float, self._bounds)), "+Inf"], counts, strict=True):
            total += count
            found.append((bound, total))
        return found, self._sum


Child = TypeVar("Child")


class _Family(Collector, Generic[Child]):
    """The series of one name, by the values of their labels."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        self.name = name
        self.documentation = documentation
        self.label_names = tuple(labels)
        self.series: list[tuple[tuple[str, ...], Child]] = []
        """All of them, as they were made. A dictionary must not grow while the thread that renders goes through it."""
        self._known: dict[tuple[str, ...], Child] = {}
        registry.register(self)

    def labels(self, *values: str) -> Child:
        """The series with these values, made where there is none."""
        child = self._known.get(values)
        if child is None:
            if len(values) != len(self.label_names):
                raise ValueError(f"{self.name} has the labels {', '.join(self.label_names) or 'none'}")
            child = self._known[values] = self.new()
            self.series.append((values, child))
        return child

    def new(self) -> Child:
        """A series with nothing in it."""
        raise NotImplementedError


class Counts(_Family[Count]):
    """As prometheus-client's `Counter`."""

    def new(self) -> Count:
        """See `_Family`."""
        return Count()

    def collect(self) -> Iterator[Metric]:
        """The family."""
        family = CounterMetricFamily(self.name, self.documentation, labels=self.label_names)
        for values, child in self.series:
            family.add_metric([*map(str, values)], child.value)
        yield family


class Spreads(_Family[Spread]):
    """As prometheus-client's `Histogram`."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._bounds = bounds
        super().__init__(name, documentation, labels, registry=registry)

    def new(self) -> Spread:
        """See `_Family`."""
        return Spread(self._bounds)

    def collect(self) -> Iterator[Metric]:
        """The family."""
        family = HistogramMetricFamily(self.name, self.documentation, labels=self.label_names)
        for values, child in self.series:
            buckets, total = child.buckets()
            family.add_metric([*map(str, values)], buckets, total)
        yield family
