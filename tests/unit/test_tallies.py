"""Our counters and histograms show what prometheus-client's own would."""

import gc
import math
from collections.abc import Iterator
from itertools import islice
from typing import cast

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from covey.telemetry.tallies import Counts, Spreads

BOUNDS = (0.1, 1, 2.5)


def shown(registry: CollectorRegistry) -> list[str]:
    """The exposition, but for when each series was made."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@pytest.mark.parametrize("values", [(), (0.0,), (0.1, 0.1000001, 1, 2.5, 3e9), (math.inf, 0.5), (2.0,) * 1000])
def test_they_show_what_the_librarys_own_do(values: tuple[float, ...]) -> None:
    """Mutation: `bisect_right`, which puts a value that is a bound into the next bucket."""
    theirs, ours = CollectorRegistry(auto_describe=True), CollectorRegistry(auto_describe=True)
    library = (
        Counter("c", "Counted", ["x", "y"], registry=theirs),
        Histogram("h", "Spread", buckets=BOUNDS, registry=theirs),
    )
    own = Counts("c", "Counted", ["x", "y"], registry=ours), Spreads("h", "Spread", bounds=BOUNDS, registry=ours)
    for counter, histogram in (library, (own[0], own[1].labels())):
        for value in values:
            histogram.observe(value)
            counter.labels('a"\n', "b").inc()
            counter.labels("a", "c").inc(value if math.isfinite(value) else 2)
    assert shown(ours) == shown(theirs)


def test_a_series_has_all_of_its_labels() -> None:
    counts = Counts("c", "Counted", ["x", "y"], registry=CollectorRegistry())
    with pytest.raises(ValueError, match="c has the labels x, y"):
        counts.labels("a")
    assert counts.labels("a", "b") is counts.labels("a", "b")


def test_a_counter_never_goes_down() -> None:
    """Prometheus would take it for a restart, and show a rate that never was."""
    count = Counts("c", "Counted", registry=CollectorRegistry()).labels()
    count.inc(100)
    with pytest.raises(ValueError, match="only goes up"):
        count.inc(-60)
    assert count.value == 100


def test_a_plug_ins_label_may_be_a_number() -> None:
    registry = CollectorRegistry()
    Counts("c", "Counted", ["status"], registry=registry).labels(cast("str", 3)).inc()
    assert 'c_total{status="3"} 1.0' in shown(registry)


def test_a_name_is_taken_once() -> None:
    registry = CollectorRegistry(auto_describe=True)
    Counts("c", "Counted", registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Spreads("c", "Spread", bounds=BOUNDS, registry=registry)


@pytest.fixture
def eager_collector() -> Iterator[None]:
    """Python's garbage collector, as often as can be."""
    before = gc.get_threshold()
    gc.set_threshold(5)
    yield
    gc.set_threshold(*before)


def test_they_are_shown_while_new_series_come(eager_collector: None) -> None:
    """Rendering runs in a thread, and any garbage collection may let the event loop's have its turn.

    Mutation: go through `list(dictionary.items())`, which is one step only where nothing is collected meanwhile.
    """
    registry = CollectorRegistry()
    counts = Counts("c", "Counted", ["x"], registry=registry)
    for number in range(1_000):
        counts.labels(f"known {number}").inc()
    new = iter(range(500))

    def meanwhile(phase: str, info: object) -> None:
        for number in islice(new, 1):
            counts.labels(f"new {number}").inc()

    gc.callbacks.append(meanwhile)
    try:
        while next(new, None) is not None:
            shown(registry)
    finally:
        gc.callbacks.remove(meanwhile)
    assert len([line for line in shown(registry) if line.startswith('c_total{x="known')]) == 1_000
