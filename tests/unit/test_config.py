"""Configuration: what is wrong is refused with the file, the key and the nearest known one."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from covey import config
from covey.config import build, load, read
from covey.errors import CallError


def refusal(tables: Any, **more: Any) -> str:
    with pytest.raises(CallError) as caught:
        build(tables, source="roles.toml", **more)
    assert caught.value.code == "invalid"
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith("roles.toml: ")
    assert ".." not in caught.value.message.replace("...", "")
    return caught.value.message


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"htpp": {}}, ["[htpp]", "http"]),
        ({"zzzzzz": {}}, ["[zzzzzz]"]),
        ({"http": {"lisen": "x"}}, ["[http]", "lisen", "listen"]),
        ({"http": {"": "x"}}, ["[http]"]),
        ({"gateway": {"ping_second": 1}}, ["[gateway]", "ping_second", "ping_seconds"]),
        ({"backends": {"echo": {"slot": 1}}}, ["[backends.echo]", "slot", "slots"]),
        ({"backends": {"ecko": {}}}, ["ecko", "echo"]),
        ({"backends": {"echo": 5}}, ["echo", "table"]),
        ({"backends": 5}, ["backends", "table"]),
        ({"http": 5}, ["http", "table"]),
        ({"http": []}, ["http", "table"]),
        ({"http": {"listen": 5}}, ["[http]", "listen", "str"]),
        ({"http": {"host_names": ["a", 5]}}, ["[http]", "host_names[1]"]),
        ({"http": {"host_names": "a"}}, ["[http]", "host_names"]),
        ({"http": {"connections_max": 1.5}}, ["[http]", "connections_max"]),
        ({"http": {"connections_max": True}}, ["[http]", "connections_max"]),
        ({"http": {"connections_max": -1}}, ["[http]", "connections_max", "negative"]),
        ({"http": {"write_seconds_max": -0.5}}, ["[http]", "write_seconds_max", "negative"]),
        ({"http": {"keep_alive_seconds": 0}}, ["[http]", "keep_alive_seconds", "> 0"]),
        ({"http": {"write_seconds_max": float("nan")}}, ["[http]", "write_seconds_max"]),
        ({"http": {"write_seconds_max": 10**400}}, ["[http]", "write_seconds_max"]),
        ({"http": {"allow_plain_http": "yes"}}, ["[http]", "allow_plain_http"]),
        ({"telemetry": {"log_level": "loud"}}, ["[telemetry]", "log_level", "loud", "debug, info, warning or error"]),
        ({"node": {"roles": ["gateway", "gateway"]}}, ["[node]", "roles"]),
        ({"node": {"roles": ["gatewya"]}}, ["[node] roles", "gatewya", "gateway"]),
        ({"inference": {"backends": ["ecko"]}}, ["[inference] backends", "ecko", "echo"]),
        ({"http": {"listen": ""}}, ["[http] listen", "host:port"]),
        ({"http": {"listen": "here:99999"}}, ["[http] listen", "host:port"]),
        ({"telemetry": {"listen": "9100"}}, ["[telemetry] listen", "host:port"]),
        ({"network": {"listen": "here"}}, ["[network] listen", "0.0.0.0:26840"]),
        (
            {"network": {"announce": ["/ip4/10.0.0.1/tcp/1", "10.0.0.1:1"]}},
            ["[network] announce", "10.0.0.1:1", "/ip4/"],
        ),
        ({"node": {"roles": [""]}}, ["role"]),
        ({"node": {"name": "a b"}}, ["[node]", "name"]),
        ({"node": {"name": "../x"}}, ["[node]", "name"]),
        ({"node": {"name": "x" * 64}}, ["[node]", "name"]),
        ({"node": {"name": "x\n"}}, ["[node]", "name"]),
    ],
)
def test_what_is_wrong_is_named(tables: Any, words: list[str]) -> None:
    message = refusal(tables)
    for word in words:
        assert word in message


def test_addresses_that_can_be_used_are_taken() -> None:
    built = build(
        {
            "http": {"listen": ":0"},
            "telemetry": {"listen": "[::1]:9100"},
            "network": {"listen": "none", "announce": ["/dns4/example.org/tcp/26840"]},
        }
    )
    assert built.network.listen == "none"
    assert build({"network": {"listen": "[::]:26840"}}).telemetry.listen == ""


def test_overrides_go_on_top_key_by_key() -> None:
    tables = {"node": {"name": "a", "roles": ["gateway"]}, "http": {"listen": ":1"}}
    built = build(tables, overrides={"node": {"name": "b"}, "telemetry": {"log_level": "debug"}})
    assert (built.node.name, built.node.roles, built.http.listen) == ("b", ("gateway",), ":1")
    assert built.telemetry.log_level == "debug"
    assert tables["node"] == {"name": "a", "roles": ["gateway"]}
    assert "table" in refusal({"node": 5}, overrides={"node": {"name": "b"}})
    assert "nmae" in refusal({}, overrides={"node": {"nmae": "b"}})


def test_only_what_is_named_is_loaded() -> None:
    built = build({"node": {"roles": ["gateway"]}})
    assert set(built.roles) == {"gateway"}
    assert built.backends == {}


def test_a_table_of_a_role_that_does_not_run_is_checked_too() -> None:
    message = refusal({"node": {"roles": ["web"]}, "gateway": {"nonsense": 1}})
    assert "[gateway] nonsense" in message


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    toml, plain = tmp_path / "roles.toml", tmp_path / "roles.json"
    toml.write_text('[node]\nname = "a"\nroles = ["gateway"]\n[http]\nhost_names = ["x"]\n')
    plain.write_text(json.dumps({"node": {"name": "a", "roles": ["gateway"]}, "http": {"host_names": ["x"]}}))
    assert read(toml) == read(plain)
    assert load(toml).node == load(plain).node
    assert load(toml).source == str(toml)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.toml", b"[node", ["TOML", "end of document"]),
        ("a.toml", b'[node]\nname = "a"\nname = "b"\n', ["TOML"]),
        ("a.toml", b"\xff", ["UTF-8"]),
        ("a.toml", b"x = " + b"[" * 20_000, ["TOML"]),
        ("a.json", b"{", ["JSON", "line 1"]),
        ("a.json", b"[]", ["tables"]),
        ("a.json", b"null", ["tables"]),
        ("a.json", b"", ["JSON"]),
        ("a.json", b"[" * 200_000, ["JSON"]),
        ("a.toml", b"#" * (1024 * 1024 + 1), ["larger"]),
    ],
)
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, text: bytes, words: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(text)
    with pytest.raises(CallError) as caught:
        read(path)
    assert caught.value.code == "invalid"
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    for word in words:
        assert word in caught.value.message


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing.toml", tmp_path / "pipe"):
        with pytest.raises(CallError, match="cannot be read") as caught:
            read(path)
        assert caught.value.code == "invalid"


def test_the_users_own_file_is_found_and_needed_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "roles.toml"
    monkeypatch.setattr(config, "default_config_path", lambda: own)
    assert load().source == "the defaults"
    own.write_text('[node]\nname = "mine"\n')
    assert load().node.name == "mine"
    assert load(overrides={"node": {"name": "theirs"}}).node.name == "theirs"
