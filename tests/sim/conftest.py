"""Every test here runs once for each seed, and a seed gives one run, trio's scheduling included.

`SEEDS` says how many, `SEED` names one to repeat: `make sim SEEDS=200`, `make sim SEED=17 ARGS='-k faults'`.
"""

import os
from collections.abc import Generator

import pytest
import trio

SEEDS = int(os.environ.get("SEEDS", "2"))
SEED = os.environ.get("SEED")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seed" in metafunc.fixturenames:
        slow = metafunc.definition.get_closest_marker("slow")
        seeds = [int(SEED)] if SEED else range(max(1, SEEDS // 10) if slow else SEEDS)
        metafunc.parametrize("seed", seeds, ids=[f"seed={seed}" for seed in seeds])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    seed = getattr(item, "callspec", None) and item.callspec.params.get("seed")  # type: ignore[attr-defined]
    if report.failed and seed is not None:
        name = getattr(item, "originalname", item.name)
        report.sections.append(("to repeat it", f"make sim SEED={seed} ARGS='-k {name}'"))
    return report


@pytest.fixture(autouse=True)
def _one_run_for_a_seed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it trio runs ready tasks in an order of its own choice, every time another."""
    run = trio._core._run  # type: ignore[attr-defined]
    monkeypatch.setattr(run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
    if "seed" in request.fixturenames:
        run._r.seed(request.getfixturevalue("seed"))
