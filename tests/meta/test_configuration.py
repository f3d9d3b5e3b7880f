"""The commented roles.toml and the code agree on every key and its default."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest

from covey import plugins
from covey.cluster.cluster import NetworkConfig
from covey.config import NodeConfig, TelemetryConfig, build
from covey.http.server import HttpConfig
from covey.roles import BUILT_IN

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "roles.toml").read_text(encoding="utf-8")
TABLES = tomllib.loads(TEXT)


def kinds() -> dict[str, type[msgspec.Struct]]:
    """Every table of the built-in roles and back ends, by its dotted name."""
    found: dict[str, type[msgspec.Struct]] = {
        "node": NodeConfig,
        "http": HttpConfig,
        "telemetry": TelemetryConfig,
        "network": NetworkConfig,
    }
    for name in BUILT_IN:
        found[name] = plugins.load_role(name).config
    for name in plugins.backend_names():
        found[f"backends.{name}"] = plugins.load_backend(name).config
    return found


def table(name: str) -> dict[str, object]:
    found = TABLES
    for part in name.split("."):
        found = found[part]
    return found


@pytest.mark.parametrize("name", sorted(kinds()))
def test_every_key_is_documented_with_its_default(name: str) -> None:
    defaults = msgspec.json.decode(msgspec.json.encode(kinds()[name]()))
    assert table(name) == defaults


@pytest.mark.parametrize("name", sorted(kinds()))
def test_every_table_explains_itself(name: str) -> None:
    block = TEXT.split(f"[{name}]\n", 1)[1].split("\n[", 1)[0]
    assert re.search(r"^# \w", block, re.MULTILINE), f"[{name}] has no comment"


def test_the_packaged_defaults_are_a_valid_configuration() -> None:
    assert set(build(TABLES).roles) == set(BUILT_IN)


def test_the_table_of_roles_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["covey.roles"] == BUILT_IN


def test_roles_start_in_the_table_s_order() -> None:
    seen: set[str] = set()
    for name in BUILT_IN:
        assert set(plugins.load_role(name).after) <= seen, f"{name} needs a role that the table starts later"
        seen.add(name)
