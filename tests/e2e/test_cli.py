"""The command line, as a person meets it: the real program, real processes, the echo back end."""

import json
import os
import shlex
import signal
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from running import COVEY, ECHO, PASSWORD, NodeProcess, Place, place_for, running_node, wait_for


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with running_node(tmp_path_factory.mktemp("node"), config=ECHO + "[backends.echo]\ntoken_seconds = 0.002\n") as one:
        one.add_user("ann")
        yield one


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with place_for(tmp_path) as one:
        yield one


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The error that a command printed: exactly one line, and no traceback."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("covey: ")
    return lines[0]


# A node's life


def test_a_node_from_its_start_to_its_end(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        first = node.said()
        assert f"{node.url}/setup#" in first
        assert "recovery key" in first
        assert node.stop() == 0
        assert not node.ready_file.exists()

        again = node.place.start().wait_ready()
        try:
            assert "recovery key" not in again.said()  # once, ever
            assert again.peer_id == node.peer_id
            assert again.stop(signal.SIGINT) == 0
        finally:
            again.end()


def test_the_first_administrator_ends_the_set_up_link(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        node.add_user()
        assert node.stop() == 0
        again = node.place.start().wait_ready()
        try:
            assert "/setup#" not in again.said()
        finally:
            again.end()


def test_one_role_alone_has_no_url(tmp_path: Path) -> None:
    with running_node(tmp_path, "--wtype", "auth", "--name", "alone") as node:
        assert node.url == ""
        status = node.json("status")
        assert (status["node"], status["roles"], status["urls"], status["models"]) == ("alone", ["auth"], [], [])
        assert "no models" in node.covey("models", "list").stderr
        assert node.stop() == 0


def test_a_machine_of_no_network_is_told_how_to_join_one(place: Place) -> None:
    assert "covey join" in one_line(place.covey("up", "--role", "inference", "--listen", "127.0.0.1:0", code=1))


def test_a_second_node_on_one_folder_is_refused_by_name(node: NodeProcess) -> None:
    line = one_line(node.covey("up", "--listen", "127.0.0.1:0", code=1))
    assert str(node.data) in line
    assert f"process {node.process.pid}" in line


def test_a_taken_port_is_one_line(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        listen = f"127.0.0.1:{holder.getsockname()[1]}"
        line = one_line(place.covey("up", "--listen", listen, "--config", str(place.config), code=1))
    assert listen in line


def test_a_folder_that_is_a_file_is_one_line(place: Place) -> None:
    place.data.write_text("not a folder")
    assert str(place.data) in one_line(place.covey("up", "--listen", "127.0.0.1:0", code=1))


def test_an_empty_path_is_not_the_folder_one_is_in(place: Place) -> None:
    for option in ("--data", "--config", "--ready-file"):
        assert "name a path" in one_line(place.covey("up", option, "", code=2))


@pytest.mark.parametrize("runtime", ["missing", "relative", "a file", "too long", "unset"])
def test_a_runtime_folder_that_does_not_serve_is_done_without(tmp_path: Path, runtime: str) -> None:
    """`su`, cron, containers: XDG_RUNTIME_DIR may name a folder that is not there, or is somebody else's."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / ("l" * 120)).mkdir()
    folders = {
        "missing": str(tmp_path / "missing"),
        "relative": "run",
        "a file": str(tmp_path / "file"),
        "too long": str(tmp_path / ("l" * 120)),
        "unset": "",
    }
    with running_node(tmp_path / "node", environment={"XDG_RUNTIME_DIR": folders[runtime]}) as node:
        assert node.json("status")["peer_id"] == node.peer_id
    assert not (tmp_path / "missing").exists()


def test_closed_standard_streams_are_no_bug(node: NodeProcess) -> None:
    for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f"exec {shlex.join([*COVEY, 'users', 'list'])} {closed}"],
            capture_output=True,
            text=True,
            env=node.place.environment,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_a_public_address_is_refused_without_tls(place: Place) -> None:
    line = one_line(place.covey("up", "--listen", "0.0.0.0:0", "--config", str(place.config), code=1))
    assert "--allow-plain-http" in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[node]\nrolls = []\n", 'did you mean "roles"'),
        ("[gatway]\n", 'did you mean "gateway"'),
        ("[node\n", "not valid TOML"),
        ('[http]\nconnections_max = "many"\n', "connections_max"),
        ('[node]\nroles = ["auht"]\n', 'did you mean "auth"'),
    ],
)
def test_a_broken_configuration_names_the_place(place: Place, text: str, says: str) -> None:
    place.config.write_text(text)
    for verb in (("up",), ("config", "check")):
        file = ("--config", str(place.config)) if verb == ("up",) else (str(place.config),)
        line = one_line(place.covey(*verb, *file, code=1))
        assert says in line
        assert not place.data.exists()


# What is asked of it


def test_status(node: NodeProcess) -> None:
    status = node.json("status")
    assert status["urls"] == [node.url]
    assert status["peer_id"] == node.peer_id
    assert sorted(status["roles"]) == ["auth", "gateway", "inference", "web"]
    assert status["versions"].keys() == {"covey", "python"}
    assert status["memory_bytes"] > 1_000_000
    assert [(one["name"], one["state"]) for one in status["models"]] == [("echo", "loaded")]
    shown = node.covey("status").stdout
    assert node.url in shown
    assert "echo (loaded)" in shown


def test_models(node: NodeProcess) -> None:
    (model,) = node.json("models", "list")
    assert (model["name"], model["state"]) == ("echo", "loaded")
    assert {"chat", "tools", "embed"} <= set(model["capabilities"])
    assert model["nodes"] == [node.json("status")["node"]]
    assert "echo" in node.covey("models", "list").stdout
    assert "cannot" in one_line(node.covey("models", "pull", "nothing-of-that-name", code=1))


def test_removing_a_model(node: NodeProcess, tmp_path: Path) -> None:
    assert "removes no models" in one_line(node.covey("models", "remove", "echo", code=1))
    assert "No model 'nothing'" in one_line(node.covey("models", "remove", "nothing", code=1))
    config = '[inference]\nbackends = ["embedded"]\ndefault_model = ""\n[backends.embedded]\ndefault_model = ""\n'
    folder = tmp_path / "data" / "models"
    folder.mkdir(parents=True)
    for name in ("first", "second"):
        (folder / f"{name}.gguf").write_bytes(b"GGUF" + b"x" * 996)
    with running_node(tmp_path, config=config) as other:
        assert [one["name"] for one in other.json("models", "list")] == ["first", "second"]
        said = other.covey("models", "remove", "first").stdout
        assert said == "first is removed from embedded, which frees 1.0 kB.\n"
        assert other.json("models", "remove", "second") == {
            "model": "second",
            "backend": "embedded",
            "bytes_freed": 1000,
        }
        assert other.json("models", "list") == []
        assert [*folder.iterdir()] == []


def test_people(node: NodeProcess) -> None:
    node.covey("users", "add", "bob", "--password-file", "-", typed=PASSWORD + "\n")
    people = {one["name"]: one for one in node.json("users", "list")}
    assert people["ann"]["role"] == "admin"
    assert people["bob"]["role"] == "user"
    assert node.json("users", "disable", "bob")["state"] == "disabled"
    assert "disabled" in node.covey("users", "list").stdout
    assert node.json("users", "enable", "bob")["state"] == "active"
    assert node.json("users", "approve", "bob")["state"] == "active"
    assert "new password" in node.covey("users", "passwd", "bob", "--password-file", "-", typed=PASSWORD + "8").stdout
    assert "bob" in one_line(node.covey("users", "add", "bob", "--password-file", "-", typed=PASSWORD, code=1))
    one_line(node.covey("users", "disable", "nobody", code=1))
    assert node.covey("users", "rename", "bob", "robert").stdout == "bob logs in as robert now.\n"
    assert "ann" in one_line(node.covey("users", "rename", "robert", "ann", code=1))
    assert node.json("users", "rename", people["bob"]["id"], "bob")["name"] == "bob"
    invited = node.covey("users", "invite", "--expires", "2h")
    assert invited.stdout.startswith(f"{node.url}/register#")


def test_the_password_never_comes_as_an_argument(node: NodeProcess, tmp_path: Path) -> None:
    missing = node.covey("users", "add", "carl", code=2)
    assert "--password-file" in one_line(missing)
    one_line(node.covey("users", "add", "carl", "--password-file", str(tmp_path / "none"), code=1))
    file = tmp_path / "password"
    file.write_text("two\nlines\n")
    assert "only line" in one_line(node.covey("users", "add", "carl", "--password-file", str(file), code=1))
    file.write_text(PASSWORD + "\n")
    node.covey("users", "add", "carl", "--password-file", str(file))


def test_keys(node: NodeProcess) -> None:
    made = node.json("keys", "create", "--user", "ann", "--label", "laptop", "--model", "echo", "--expires", "30d")
    assert made.keys() == {"id", "key"}

    def models(key: str) -> int:
        return httpx.get(f"{node.url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code

    assert models(made["key"]) == 200
    (info,) = [one for one in node.json("keys", "list", "--user", "ann") if one["id"] == made["id"]]
    assert (info["label"], info["models"], info["state"]) == ("laptop", ["echo"], "active")
    assert info["expires_at"] - info["created_at"] == 30 * 24 * 3600
    assert "laptop" in node.covey("keys", "list").stdout
    assert "no longer works" in node.covey("keys", "revoke", made["id"]).stdout
    assert models(made["key"]) == 401

    plain = node.covey("keys", "create", "--user", "ann", "--requests-per-minute", "1")
    key = plain.stdout.strip()
    assert "only this once" in plain.stderr
    assert [models(key) for _ in range(2)].count(200) >= 1
    one_line(node.covey("keys", "create", "--user", "nobody", code=1))
    one_line(node.covey("keys", "revoke", "0" * 12, code=1))
    assert "duration" in one_line(node.covey("keys", "create", "--user", "ann", "--expires", "soon", code=2))


def test_the_audit(node: NodeProcess) -> None:
    made = node.json("keys", "create", "--user", "ann", "--label", "audited")
    node.covey("keys", "revoke", made["id"])
    revoked, created = node.json("audit", "--limit", "2")
    assert revoked["what"] == "The key “audited” of ann was revoked."
    assert created["what"] == "A key “audited” was made for ann."
    assert (created["by"], created["subject"], created["standing"]) == ("operator", made["id"], "counts")
    assert "The key “audited” of ann was revoked." in node.covey("audit", "--since", "1h").stdout
    assert node.json("audit", "--sessions", "--limit", "5000")[-1]["what"].startswith("The machine ")
    assert made["key"] not in node.covey("audit", "--json").stdout


def test_a_chat_from_arguments_and_from_a_pipe(node: NodeProcess) -> None:
    assert node.covey("chat", "echo", "hello there").stdout == "hello there\n"
    assert node.covey("chat", "a sole argument is a message").stdout == "a sole argument is a message\n"
    assert node.covey("chat", typed="from a pipe").stdout == "from a pipe\n"
    cut = node.covey("chat", "echo", "one two three", "--max-tokens", "2", "--system", "be brief")
    assert cut.stdout == "one two\n"
    assert "cut" in cut.stderr
    assert "nosuch" in one_line(node.covey("chat", "nosuch", "hello", code=1))
    assert "empty" in one_line(node.covey("chat", "echo", "", code=2))


def test_what_a_model_says_does_not_drive_the_terminal(node: NodeProcess) -> None:
    assert "\x1b" not in node.covey("chat", "echo", "a \x1b[2J b").stdout


# Errors, and everything around


def test_without_a_node_each_verb_says_how_to_start_one(place: Place) -> None:
    for verb in (("status",), ("users", "list"), ("keys", "list"), ("models", "list"), ("chat", "echo", "hi")):
        assert "covey up" in one_line(place.covey(*verb, code=1))


def test_a_crashed_node_leaves_a_clear_message(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        node.kill()
        assert "covey up" in one_line(node.covey("status", code=1))
        again = node.place.start().wait_ready()  # nothing that it left behind is in the way
        try:
            assert again.json("status")["peer_id"] == node.peer_id
        finally:
            again.end()


def test_a_node_that_hangs_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        node.process.send_signal(signal.SIGSTOP)
        try:
            line = one_line(node.covey("status", code=1))
        finally:
            node.process.send_signal(signal.SIGCONT)
        assert f"process {node.process.pid}" in line
        assert "does not answer" in line
        (node.data / "control.json").write_text("garbage")
        assert "restart the node" in one_line(node.covey("status", code=1))


def test_usage(place: Place) -> None:
    assert 'did you mean "status"' in one_line(place.covey("stauts", code=2))
    assert 'did you mean "create"' in one_line(place.covey("keys", "crate", code=2))
    assert "--user" in one_line(place.covey("keys", "create", code=2))
    assert "--nosuch" in one_line(place.covey("up", "--nosuch", code=2))
    assert place.covey("--version").stdout.startswith("covey 0.")
    for verb in ((), ("up",), ("keys",), ("keys", "create"), ("store", "backup"), ("completion",)):
        assert place.covey(*verb, "--help").stdout.startswith("Usage: covey")


def test_a_traceback_only_when_asked_for(place: Place) -> None:
    assert "Traceback" not in place.covey("status", code=1).stderr
    assert "Traceback" in place.covey("status", "--verbose", code=1).stderr
    assert "Traceback" in place.covey("--verbose", "status", code=1).stderr


def test_the_data_folder_may_be_said_before_and_after_the_verb(node: NodeProcess, tmp_path: Path) -> None:
    elsewhere = {"COVEY_DATA": str(tmp_path / "elsewhere")}
    data = str(node.data)
    assert node.place.covey("--data", data, "status", environment=elsewhere).returncode == 0
    assert node.place.covey("status", "--data", data, environment=elsewhere).returncode == 0
    assert "elsewhere" in one_line(node.place.covey("status", environment=elsewhere, code=1))


def test_a_reader_that_leaves_is_no_error_to_speak_of(node: NodeProcess) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COVEY, "users", "list"], stdout=writing, stderr=subprocess.PIPE, env=node.place.environment, check=False
    )
    os.close(writing)
    assert done.stderr == b""


def test_configuration_is_shown_as_it_is_in_effect(place: Place, tmp_path: Path) -> None:
    place.config.write_text('[backends.openai]\n[inference]\nbackends = ["echo"]\n[node]\nname = "näme"\n')
    one_line(place.covey("config", "show", str(place.config), code=1))  # a node's name has no umlaut
    place.config.write_text(ECHO + '[node]\nname = "one"\n')
    shown = place.covey("config", "show", str(place.config)).stdout
    tables = tomllib.loads(shown)
    assert tables == place.json("config", "show", str(place.config))
    assert tables["node"]["name"] == "one"
    assert tables["http"]["listen"] == "127.0.0.1:26839"
    again = tmp_path / "again.toml"
    again.write_text(shown)
    place.covey("config", "check", str(again))
    assert place.json("config", "path")["exists"] is False


def test_doctor(node: NodeProcess, place: Place) -> None:
    place.config.write_text(ECHO + '[http]\nlisten = "127.0.0.1:0"\n')  # the usual port may be somebody else's
    findings = {one["name"]: one for one in place.json("doctor", "--config", str(place.config))}
    assert findings["python"]["level"] == "ok"
    assert findings["node"]["level"] == "warn"
    assert "covey up" in findings["node"]["advice"]
    assert "ok" in node.covey("doctor", "--config", str(node.place.config)).stdout
    place.data.write_text("in the way")
    failing = place.covey("doctor", "--config", str(place.config), code=1)
    assert "data folder" in one_line(failing)


def test_a_backup_goes_out_and_comes_back(tmp_path: Path) -> None:
    backup, secret = tmp_path / "backup", tmp_path / "passphrase"
    secret.write_text("a long passphrase")
    with running_node(tmp_path) as node:
        key = node.create_key()
        assert node.stop() == 0
        place = node.place
        assert "sound" in place.covey("store", "check").stdout
        place.covey("store", "backup", str(backup), "--passphrase-file", str(secret))
        one_line(place.covey("store", "backup", str(backup), "--passphrase-file", str(secret), code=1))
        assert "passphrase" in one_line(
            place.covey("store", "restore", str(backup), "--passphrase-file", "-", "--data", str(tmp_path / "x"),
                        typed="another passphrase", code=1)
        )  # fmt: skip
        place.data.rename(tmp_path / "lost")
        place.covey("store", "restore", str(backup), "--passphrase-file", str(secret))
        again = place.start().wait_ready()
        try:
            headers = {"authorization": f"Bearer {key}"}
            assert httpx.get(f"{again.url}/v1/models", headers=headers).status_code == 200
            assert again.peer_id == node.peer_id
            assert "in use" in one_line(place.covey("store", "repair", code=1))
            assert "sound" in place.covey("store", "check").stdout
            live = tmp_path / "live"
            made = place.json("store", "backup", str(live), "--passphrase-file", str(secret))
            assert made["records"] > 0
            assert live.stat().st_mode & 0o777 == 0o600
            assert "exists" in one_line(
                place.covey("store", "backup", str(live), "--passphrase-file", str(secret), code=1)
            )
            place.covey(
                "store", "restore", str(live), "--passphrase-file", str(secret), "--data", str(tmp_path / "second")
            )
            assert again.stop() == 0
        finally:
            again.end()
        assert place.json("store", "repair")["check"]["problems"] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(place: Place, shell: str) -> None:
    assert "_COVEY_COMPLETE" in place.covey("completion", shell).stdout
    words = {
        "COMP_WORDS": "covey sta",
        "COMP_CWORD": "sta" if shell == "fish" else "1",
        "_COVEY_COMPLETE": f"{shell}_complete",
    }
    assert "status" in place.covey(environment=words).stdout


def test_a_stream_still_runs_when_the_node_is_asked_to_stop(tmp_path: Path) -> None:
    with running_node(tmp_path, config=ECHO + "[backends.echo]\ntoken_seconds = 0.05\n") as node:
        headers = {"authorization": f"Bearer {node.create_key()}"}
        body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "word " * 20}]}
        with httpx.stream("POST", f"{node.url}/v1/chat/completions", json=body, headers=headers) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            node.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert node.wait() == 0


def test_json_logs_are_objects(tmp_path: Path) -> None:
    with running_node(tmp_path, "--log-style", "json", "--log-level", "debug") as node:
        assert node.stop() == 0
        logged = [json.loads(line) for line in node.errors.read_text().splitlines() if line.startswith("{")]
        assert all(entry.keys() >= {"ts", "level", "logger", "message"} for entry in logged)
        assert logged


def test_wait_for_reports_what_it_waited_for() -> None:
    with pytest.raises(AssertionError, match="the reason"):
        wait_for(lambda: False, 0.02, lambda: "the reason")
