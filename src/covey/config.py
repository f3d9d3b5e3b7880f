"""`roles.toml` to frozen Structs. Every key has its default in the Struct of its table; a file overrides key by key.

Looked for in `--config`, else the user's configuration folder, else nothing: the defaults, which the commented
`roles.toml` of the package repeats (a test holds the two together).
"""

import json
import re
import tomllib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

import msgspec

from covey import plugins
from covey.backends.base import Plugged
from covey.cluster.cluster import NetworkConfig
from covey.cluster.host import NOWHERE
from covey.errors import CallError
from covey.folders import default_config_path
from covey.http.server import HttpConfig, parse_listen
from covey.nearest import suggestion
from covey.roles.base import Role
from covey.transport.libp2p import addresses

FILE_BYTES_MAX = 1024 * 1024
DEFAULT_ROLES = ("auth", "inference", "gateway", "web")
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
S = TypeVar("S", bound=msgspec.Struct)
Tables = dict[str, dict[str, Any]]


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[node]`. `name` "" is the machine's host name; `roles` (): all, or those it joined with."""

    name: str = ""
    roles: tuple[str, ...] = ()
    shutdown_seconds: float = 10.0


class TelemetryConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[telemetry]`. `listen` "": health and metrics go on the listener of `[http]`, if any."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_style: Literal["text", "json"] = "text"
    access_log: bool = False
    listen: str = ""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a node is told. `roles` and `backends` hold a typed table for each that is configured."""

    node: NodeConfig = field(default_factory=NodeConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    roles: Mapping[str, tuple[Role, msgspec.Struct]] = field(default_factory=dict[str, tuple[Role, msgspec.Struct]])
    backends: Mapping[str, Plugged] = field(default_factory=dict[str, Plugged])
    source: str = "the defaults"


_BASE: dict[str, type[msgspec.Struct]] = {
    "node": NodeConfig,
    "http": HttpConfig,
    "telemetry": TelemetryConfig,
    "network": NetworkConfig,
}


def load(path: Path | None = None, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """Read a file (or the user's own, or none), lay the command line's values over it, and check it all.

    Raises:
        CallError: `invalid`, naming the file, the key and the nearest known one.
    """
    chosen = path or (default_config_path() if default_config_path().is_file() else None)
    tables = read(chosen) if chosen is not None else {}
    return build(tables, source=str(chosen) if chosen else "the defaults", overrides=overrides)


def read(path: Path) -> Tables:
    """A TOML or JSON file to plain tables.

    Raises:
        CallError: `invalid`.
    """
    try:
        if not path.is_file() and path.exists():
            raise CallError("invalid", f"{path} cannot be read: it is not a file.")
        if path.stat().st_size > FILE_BYTES_MAX:
            raise CallError("invalid", f"{path} is larger than {FILE_BYTES_MAX} bytes: is it a configuration?")
        text = path.read_text(encoding="utf-8")
        tables: object = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CallError("invalid", f"{path} cannot be read: {cause}.") from error
    except (ValueError, RecursionError) as error:  # both decoders' errors are ValueErrors that say line and column
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise CallError("invalid", f"{path} is not valid {kind}: {error}.") from error
    if not isinstance(tables, dict):
        raise CallError("invalid", f"{path} must hold tables like [node].")
    return cast(Tables, tables)


def build(
    tables: Mapping[str, Any],
    *,
    source: str = "the configuration",
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Plain tables to a checked configuration.

    Raises:
        CallError: `invalid`.
    """
    merged: dict[str, Any] = dict(tables)
    for name, values in (overrides or {}).items():
        merged[name] = {**_table(merged, name, source), **values}
    known = {*_BASE, "backends", *plugins.role_names()}
    for name in merged:
        if name not in known:
            raise CallError("invalid", f"{source}: [{name}] is not a known table{suggestion(name, known)}.")
    base = {name: _convert(_table(merged, name, source), kind, name, source) for name, kind in _BASE.items()}
    node = cast(NodeConfig, base["node"])
    if node.name and not re.fullmatch(NAME_PATTERN, node.name):
        raise CallError("invalid", f"{source}: [node] name takes letters, digits, '.', '_' and '-', up to 63 of them.")
    if len(set(node.roles)) != len(node.roles):
        raise CallError("invalid", f"{source}: [node] roles must name each role once.")
    for refused in _refused_addresses(base):
        raise CallError("invalid", f"{source}: {refused}")
    roles: dict[str, tuple[Role, msgspec.Struct]] = {}
    for name in dict.fromkeys(
        (*(node.roles or DEFAULT_ROLES), *(name for name in merged if name not in _BASE and name != "backends"))
    ):
        with _told_of(source, "[node] roles" if name in node.roles else f"[{name}]"):
            role = plugins.load_role(name)
        roles[name] = role, _convert(_table(merged, name, source), role.config, name, source)
    return Config(
        node=node,
        http=cast(HttpConfig, base["http"]),
        telemetry=cast(TelemetryConfig, base["telemetry"]),
        network=cast(NetworkConfig, base["network"]),
        roles=roles,
        backends=_backends(merged, roles.values(), source),
        source=source,
    )


def backends_of(config: msgspec.Struct) -> tuple[str, ...]:
    """The back ends that a role's table asks for, by its key `backends`; most roles have none."""
    return tuple(getattr(config, "backends", ()))


def _backends(
    merged: Mapping[str, Any], roles: Iterable[tuple[Role, msgspec.Struct]], source: str
) -> dict[str, Plugged]:
    tables = _table(merged, "backends", source)
    wanted = [name for _, config in roles for name in backends_of(config)]
    plugged: dict[str, Plugged] = {}
    for name in dict.fromkeys((*wanted, *tables)):
        with _told_of(source, f"[backends.{name}]" if name in tables else "[inference] backends"):
            plugin = plugins.load_backend(name)
        settings = _convert(_table(tables, name, source), plugin.config, f"backends.{name}", source)
        plugged[name] = Plugged(plugin, settings)
    return plugged


@contextmanager
def _told_of(source: str, where: str) -> Generator[None, None, None]:
    """Say in which file, and where in it, a name stands that is refused."""
    try:
        yield
    except CallError as error:
        raise CallError(error.code, f"{source}: {where}: {error.message}") from error


def _refused_addresses(base: Mapping[str, msgspec.Struct]) -> Iterator[str]:
    """What is wrong with the addresses, which would otherwise fail only once they are used: at the first invite."""
    network, telemetry = cast(NetworkConfig, base["network"]), cast(TelemetryConfig, base["telemetry"])
    places: list[tuple[str, Callable[[str], object], str]] = [
        ("[http] listen", parse_listen, cast(HttpConfig, base["http"]).listen),
        *(("[telemetry] listen", parse_listen, text) for text in (telemetry.listen,) if text),
        *(
            ("[network] listen", addresses.parse_listen, text)
            for text in (network.listen,)
            if text not in ("", NOWHERE)
        ),
        *(("[network] announce", addresses.parse_address, text) for text in network.announce),
    ]
    for where, parse, text in places:
        try:
            parse(text)
        except CallError as error:
            yield f"{where}: {error.message}"
        except ValueError as error:
            yield f"{where}: {error}."


def _table(tables: Mapping[str, Any], name: str, source: str) -> dict[str, Any]:
    table = tables.get(name, {})
    if not isinstance(table, dict):
        raise CallError("invalid", f"{source}: {name} must be a table: [{name}].")
    return cast("dict[str, Any]", table)


def _convert(table: dict[str, Any], kind: type[S], name: str, source: str) -> S:
    known = {one.encode_name for one in msgspec.structs.fields(kind)}
    for key in table:
        if key not in known:
            raise CallError("invalid", f"{source}: [{name}] {key} is not a known key{suggestion(key, known)}.")
    try:
        made = msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        key = path.rstrip("`").lstrip(".")
        if unknown := re.search(r"unknown field `([^`]+)`", message):
            near = suggestion(unknown[1], _nested_keys(kind))
            raise CallError("invalid", f"{source}: [{name}] {key}: {unknown[1]} is not a known key{near}.") from error
        chosen = next((one.type for one in msgspec.structs.fields(kind) if one.encode_name == key), None)
        if message.startswith("Invalid enum value") and (choices := get_args(chosen)):
            message = f"{message}: write {', '.join(map(str, choices[:-1]))} or {choices[-1]}"
        plain = message.replace("`", "")
        raise CallError("invalid", f"{source}: [{name}] {key}: {plain[0].lower()}{plain[1:]}.") from error
    _refuse_negative(made, name, source)
    return made


def _nested_keys(kind: Any) -> set[str]:
    """The keys of every Struct within a Struct's fields."""
    keys: set[str] = set()
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        for one in msgspec.structs.fields(kind):
            keys.add(one.encode_name)
            keys |= _nested_keys(one.type)
    for argument in get_args(kind):
        keys |= _nested_keys(argument)
    return keys


def _refuse_negative(made: msgspec.Struct, name: str, source: str) -> None:
    # Durations and sizes, which their names tell; NaN fails this too.
    for one in msgspec.structs.fields(made):
        value = getattr(made, one.name)
        if not one.name.endswith(("_seconds", "_seconds_max", "_max", "_bytes")):
            continue
        if isinstance(value, int | float) and not isinstance(value, bool) and not value >= 0:
            raise CallError("invalid", f"{source}: [{name}] {one.encode_name} must not be negative.")
