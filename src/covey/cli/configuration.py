"""`covey config`: what the node is told, and where."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from covey.cli.output import print_json
from covey.cli.values import FILE_PATH
from covey.cli.verbs import Verbs, json_option
from covey.folders import default_config_path

if TYPE_CHECKING:
    from covey.config import Config

DEFAULTS = "the defaults"
"""What `Config.source` says where there is no file."""
SECRET_WORDS = ("key", "token", "secret", "password")


@click.group("config", cls=Verbs)
def config() -> None:
    """Check and show the configuration."""


@config.command("check")
@click.argument("file", required=False, type=FILE_PATH)
@json_option
def check(file: Path | None, *, as_json: bool) -> None:
    """Check FILE, or the user's own file: every key, every value."""
    from covey.config import load

    loaded = load(file)
    if as_json:
        print_json({"source": loaded.source, "roles": loaded.node.roles, "backends": list(loaded.backends)})
        return
    backends = f"; back ends: {', '.join(loaded.backends)}" if loaded.backends else ""
    roles = ", ".join(loaded.node.roles) or "all, or those that this machine was invited for"
    click.echo(f"{_named(loaded)}: all is well. Roles: {roles}{backends}.")


@config.command("show")
@click.argument("file", required=False, type=FILE_PATH)
@json_option
def show(file: Path | None, *, as_json: bool) -> None:
    """Show every key with the value in effect, as TOML. Secrets are left out."""
    from covey.cli.toml import to_toml
    from covey.config import load

    loaded = load(file)
    tables = effective(loaded)
    if as_json:
        print_json(tables)
        return
    click.echo(f"# {_named(loaded)}" + ("" if loaded.source == DEFAULTS else ", completed with the defaults"))
    click.echo(to_toml(tables), nl=False)


@config.command("path")
@json_option
def path(*, as_json: bool) -> None:
    """Print where the user's own file is looked for."""
    place = default_config_path()
    if as_json:
        print_json({"path": str(place), "exists": place.is_file()})
        return
    click.echo(place)
    if not place.is_file():
        click.echo("There is none yet: the defaults hold.", err=True)


def effective(loaded: "Config") -> dict[str, Any]:
    """Every table with all its keys, as they are in effect; secrets only as set or not."""
    import msgspec

    tables: dict[str, Any] = {
        "node": msgspec.to_builtins(loaded.node),
        "http": msgspec.to_builtins(loaded.http),
        "telemetry": msgspec.to_builtins(loaded.telemetry),
        "network": msgspec.to_builtins(loaded.network),
    }
    for name, (_, settings) in loaded.roles.items():
        tables[name] = msgspec.to_builtins(settings)
    tables["backends"] = {name: msgspec.to_builtins(plugged.config) for name, plugged in loaded.backends.items()}
    hidden: dict[str, Any] = without_secrets(tables)
    return hidden


def without_secrets(value: object) -> Any:
    """Plain tables with the strings hidden whose key ends in a word for a secret. Covey's own name files and variables
    instead; a plug-in may do worse.
    """
    if isinstance(value, dict):
        return {key: _hide(key, inner) for key, inner in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [without_secrets(inner) for inner in cast("list[object]", value)]
    return value


def _hide(key: str, value: Any) -> Any:
    # By whole words of the key's name: `api_key` is one, `keys_per_account_max` is not.
    if isinstance(value, str) and value and key.rpartition("_")[2] in SECRET_WORDS:
        return "[hidden]"
    return without_secrets(value)


def _named(loaded: "Config") -> str:
    return loaded.source[0].upper() + loaded.source[1:] if loaded.source == DEFAULTS else loaded.source
