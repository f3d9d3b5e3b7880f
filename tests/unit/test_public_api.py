"""`import covey`: what embedders get, and what it costs."""

import subprocess
import sys
from importlib import import_module

import pytest

import covey


def test_every_public_name_is_what_it_says() -> None:
    for name in covey.__all__:
        value = getattr(covey, name)
        home = covey._HOMES.get(name)
        if home is not None:
            assert value is getattr(import_module(home), name)
    assert set(covey.__all__) <= set(dir(covey))
    assert set(covey._HOMES) | {"__version__"} == set(covey.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nosuch"):
        covey.nosuch  # noqa: B018


def loaded_by(program: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_package_imports_nothing_else() -> None:
    loaded = loaded_by("import covey")
    assert {name for name in loaded if name.startswith("covey")} == {"covey", "covey.version"}
    assert "msgspec" not in loaded


def test_help_needs_no_event_loop() -> None:
    loaded = loaded_by("from covey.cli.app import run\nrun(['--help'])")
    assert not loaded & {"trio", "rich", "hypercorn", "plyvel", "prometheus_client", "quart"}


def test_a_verb_that_asks_the_node_does_not_load_a_node() -> None:
    loaded = loaded_by("from covey.cli.app import run\nrun(['status', '--data', '/nonexistent'])")
    assert "trio" in loaded
    assert not loaded & {"hypercorn", "plyvel", "quart", "libp2p", "httpx", "nacl", "argon2"}
