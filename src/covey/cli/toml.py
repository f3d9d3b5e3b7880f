"""Plain tables to TOML 1.0 text; Python reads TOML and does not write it. Pure."""

import json
import re
from collections.abc import Mapping
from typing import Any, cast

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(tables: Mapping[str, Any]) -> str:
    """Tables of tables, down to strings, numbers, booleans and lists. A key that is `None` is left out."""
    return "\n".join(_tables((), tables))


def _tables(path: tuple[str, ...], table: Mapping[str, Any]) -> list[str]:
    plain = {key: value for key, value in table.items() if not isinstance(value, Mapping) and value is not None}
    inner = {key: cast("Mapping[str, Any]", value) for key, value in table.items() if isinstance(value, Mapping)}
    blocks: list[str] = []
    if path and (plain or not inner):
        lines = [f"[{'.'.join(map(_key, path))}]", *(f"{_key(key)} = {_value(value)}" for key, value in plain.items())]
        blocks.append("\n".join(lines) + "\n")
    for key, value in inner.items():
        blocks += _tables((*path, key), value)
    return blocks


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)  # `inf` and `nan` are written alike
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, Any]", value)
        return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in pairs.items() if v is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, cast("list[Any]", value))) + "]"
    raise TypeError(f"{type(value).__name__} has no form in TOML")


def _text(text: str) -> str:
    # JSON's strings are TOML's basic strings, but for one character: TOML wants DEL escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
