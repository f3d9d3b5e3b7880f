"""docs/metrics.md names every family, with its labels, and no other."""

import re
from pathlib import Path

from prometheus_client import Metric

from covey.telemetry.metrics import Metrics

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")


def documented() -> set[str]:
    return set(re.findall(r"^\| `(covey_\w+)` \|", PAGE, re.MULTILINE))


def exported() -> set[str]:
    def scraped(family: Metric) -> str:
        return family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")

    return {scraped(one) for one in Metrics().registry.collect() if one.name.startswith("covey_")}


def test_every_family_is_documented() -> None:
    assert exported() == documented()
