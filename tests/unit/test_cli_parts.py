"""The command line's pure parts."""

import io
import math
import os
import time
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.cli import examination, output, values
from covey.cli.app import run
from covey.cli.changing import Change, say_spread
from covey.cli.configuration import effective, without_secrets
from covey.cli.nodes import minted_lines
from covey.cli.progress import Lines, Step
from covey.cli.toml import to_toml
from covey.config import build
from covey.contracts.auth import Account, NewKey
from covey.contracts.membership import Made, Minted
from covey.errors import CallError

# Values


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("45m", 2_700), ("12h", 43_200), ("30d", 2_592_000)])
def test_durations(text: str, seconds: int) -> None:
    assert values.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "d", "0d", "-1d", "1.5h", "1 d", "9" * 10 + "s", "1w", "30d\n", "٣d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(click.BadParameter, match="30d, 12h"):
        values.duration(text)


def read(path: Path) -> str:
    return values.read_secret("password", str(path), "--password-file", confirm=False)


def test_a_secret_is_the_only_line_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    for content in (b"a secret", b"a secret\n", b"a secret\r\n"):
        file.write_bytes(content)
        assert read(file) == "a secret"
    file.write_bytes(b"  spaces are its own \n")
    assert read(file) == "  spaces are its own "
    for content in (b"", b"\n", b"two\nlines", b"\xff\xfe", b"x" * 5_000):
        file.write_bytes(content)
        with pytest.raises(CallError) as refused:
            read(file)
        assert "x" * 100 not in refused.value.message
    with pytest.raises(CallError, match="No such file"):
        read(tmp_path / "none")


# Output


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert output.plain("a\x1b[2Jb\x07c\u202ed") == "a\ufffd[2Jb\ufffdc\ufffdd"
    assert output.plain("zwei\tWörter\n日本") == "zwei\tWörter\n日本"


@given(st.text())
def test_whatever_is_said_is_printable(text: str) -> None:
    assert all(one.isprintable() or one in "\n\t" for one in output.plain(text))


def test_times_and_sizes() -> None:
    assert [output.span(seconds) for seconds in (0, 8.9, 60, 3_725, 90_000)] == [
        "0 s", "8 s", "1 min", "1 h 2 min", "1 d 1 h",
    ]  # fmt: skip
    assert [output.size(count) for count in (0, 999, 1_500, 98_362_432, 2e9, 3e12)] == [
        "0 B", "999 B", "1.5 kB", "98.4 MB", "2.0 GB", "3.0 TB",
    ]  # fmt: skip
    assert output.moment(None) == "never"
    assert output.moment(0) == time.strftime("%Y-%m-%d %H:%M", time.localtime(0))


def test_a_table_that_is_piped_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["name", "label"], [("x" * 150, "[bold]")], empty="nothing")
    shown = capsys.readouterr().out
    assert "x" * 150 in shown
    assert "[bold]" in shown
    output.print_table(["name"], [], empty="nothing")
    assert capsys.readouterr() == ("", "nothing\n")


def test_plain_progress_says_each_tenth_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines() as lines:
        for percent in range(101):
            lines.show(Step("big", "fetching", percent / 100, 1_000))
        lines.show(Step("big", "verifying"))
        lines.show(Step("big", "done", 1.0))
        lines.show(Step("small", "done", 1.0, already=True))
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 14
    assert shown[0] == "big: fetching 0% of 1.0 kB"
    assert shown[-3:] == ["big: verifying ...", "big: done", "small: in place already, and verified"]


# TOML

SCALARS: Any = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text(st.characters(codec="utf-8"))
)
TABLES: Any = st.recursive(
    st.dictionaries(
        st.text(st.characters(codec="utf-8")), st.one_of(SCALARS, st.lists(SCALARS, max_size=3)), max_size=4
    ),
    lambda inner: st.dictionaries(
        st.text(st.characters(codec="utf-8")),
        st.one_of(SCALARS, inner, st.lists(inner, max_size=3)),
        max_size=4,
    ),
    max_leaves=12,
)


@given(TABLES)
def test_toml_comes_back_as_it_was(tables: dict[str, Any]) -> None:
    # A value at the top stands before the first table.
    assert tomllib.loads(to_toml({"top": tables})) == {"top": tables}


def test_toml_leaves_out_what_it_cannot_say() -> None:
    assert to_toml({"a": {"x": None, "y": math.inf}}) == "[a]\ny = inf\n"
    with pytest.raises(TypeError):
        to_toml({"a": {"x": object()}})


def test_secrets_of_the_configuration_are_not_shown() -> None:
    tables = {"openai": [{"api_key": "sk-1234", "api_key_env": "NAME", "keys_max": 7, "token": ""}], "password": "pw"}
    assert without_secrets(tables) == {
        "openai": [{"api_key": "[hidden]", "api_key_env": "NAME", "keys_max": 7, "token": ""}],
        "password": "[hidden]",
    }


def test_the_effective_configuration_makes_the_same_one_again() -> None:
    upstream = {"name": "one", "base_url": "http://127.0.0.1:1/v1"}
    before = build({"inference": {"backends": ["openai"]}, "backends": {"openai": {"upstreams": [upstream]}}})
    again = build(tomllib.loads(to_toml(effective(before))), source=before.source)
    assert again == before


# What the doctor looks at


def test_the_doctor_on_pythons() -> None:
    assert examination.look_at_python((3, 12, 4)).level == "ok"
    assert examination.look_at_python((3, 10, 1)).level == "fail"
    assert examination.look_at_python((3, 14, 0)).level == "fail"


def test_the_doctor_on_processors() -> None:
    assert examination.look_at_cpu("x86_64", "flags\t: fpu sse avx2\n").level == "ok"
    assert examination.look_at_cpu("x86_64", "flags\t: fpu sse\n").level == "warn"
    assert examination.look_at_cpu("x86_64", "").level == "ok"
    assert examination.look_at_cpu("aarch64", "").level == "ok"


def test_the_doctor_on_memory_and_disks(tmp_path: Path) -> None:
    assert examination.look_at_memory("MemAvailable:  4000000 kB\n").level == "ok"
    assert examination.look_at_memory("MemAvailable:  400000 kB\n").level == "warn"
    assert examination.look_at_memory("").level == "ok"
    assert str(tmp_path) in examination.look_at_disk(tmp_path / "not" / "there").message


def test_the_doctor_on_data_folders(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    assert examination.look_at_folder(folder).level == "ok"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    assert examination.look_at_folder(folder).level == "warn"
    folder.chmod(0o700)
    assert examination.look_at_folder(folder).level == "ok"
    key = folder / "identity.key"
    key.write_text("")
    key.chmod(0o644)
    finding = examination.look_at_folder(folder)
    assert (finding.level, finding.advice) == ("fail", f"chmod 600 {key}")
    assert examination.look_at_folder(key).level == "fail"


def test_the_doctor_on_addresses() -> None:
    assert examination.look_at_port("127.0.0.1:0").level == "ok"
    assert examination.look_at_port("nonsense").level == "fail"
    assert examination.look_at_port("203.0.113.1:80").level == "fail"  # not one of this machine's


def test_the_doctor_on_models(tmp_path: Path) -> None:
    name = "smollm2-135m-instruct"
    assert examination.look_at_model(name, tmp_path).level == "warn"
    (tmp_path / f"{name}.gguf").write_bytes(b"half of it")
    finding = examination.look_at_model(name, tmp_path)
    assert finding.level == "fail"
    assert "covey models pull" in finding.message
    assert examination.look_at_model("nosuch", tmp_path).level == "fail"


# The one place where errors become lines


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (CallError("invalid", "It is not right."), 1, "covey: It is not right.\n"),
        (ExceptionGroup("", [CallError("invalid", "It is not right.")]), 1, "covey: It is not right.\n"),
        (KeyboardInterrupt(), 130, ""),
        (BaseExceptionGroup("", [KeyboardInterrupt(), ValueError("x")]), 130, ""),
        (click.Abort(), 130, ""),
        (click.ClickException("It cannot be."), 1, "covey: It cannot be.\n"),
        (PermissionError(13, "Permission denied", "/a/file"), 1, "covey: /a/file: Permission denied.\n"),
        (ValueError("of\ntwo lines"), 1, "covey: This is a bug (ValueError: of two lines)."),
        (CallError("invalid", "Not with cvy_abcdefghijkl_secret."), 1, "covey: Not with [redacted]."),
    ],
)
def test_errors(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    says: str,
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("covey.cli.completion.completion.callback", fail)
    assert run(["completion", "bash"]) == code
    said = capsys.readouterr().err
    assert said.startswith(says)
    assert "Traceback" not in said


def test_standard_error_is_looked_up_when_it_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = output.CurrentStandardError()
    replaced = io.StringIO()
    monkeypatch.setattr("sys.stderr", replaced)
    stream.write("hello")
    stream.flush()
    assert replaced.getvalue() == "hello"


def test_nothing_of_the_machine_leaks_into_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from covey.cli.verbs import Settings

    monkeypatch.delenv("COVEY_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Settings().folder == tmp_path / "covey"
    monkeypatch.setenv("COVEY_DATA", os.fspath(tmp_path / "mine"))
    assert Settings().folder == tmp_path / "mine"
    assert Settings(data=tmp_path / "said").folder == tmp_path / "said"


# Who has it


def account(held_by: tuple[str, ...] = (), not_held_by: tuple[str, ...] = ()) -> Account:
    return Account("U1", "ann", "user", "disabled", 0, held_by=held_by, not_held_by=not_held_by)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (account(), ""),
        (account(("b", "gw1")), "On the node that answered, and on: b, gw1.\n"),
        (account(("b", "gw1"), ("c",)), "On the node that answered, and on: b, gw1. Not yet on: c.\n"),
        (account((), ("c",)), "On the node that answered alone. Not yet on: c.\n"),
    ],
)
def test_a_revocation_says_who_confirmed(answer: Account, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    say_spread(answer)
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("several", "held_by", "said"),
    [
        (False, (), ""),
        (True, ("b", "c"), "It is also on: b, c.\n"),
        (True, (), "No other node has it yet: it spreads once one is linked.\n"),
    ],
)
def test_a_change_says_who_has_it_where_there_are_several_auth_nodes(
    several: bool,
    held_by: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Change(NewKey("id", "key", held_by), several).say_who_has_it(err=True)
    assert capsys.readouterr() == ("", said)


def test_what_an_auth_node_made_is_a_line_for_each_kind() -> None:
    nothing = Made(0, ())
    minted = Minted(
        peer="12D3KooWbob",
        name="bob",
        roles=("auth",),
        keys=Made(7, ("laptop", "night job\x1b[2J")),
        accounts=Made(1, ("ann",)),
        invitations=nothing,
        machines=nothing,
    )
    keys, accounts = minted_lines(minted)
    assert keys == "bob made 7 API keys: laptop, night job\N{REPLACEMENT CHARACTER}[2J, ..."
    assert accounts == "bob made 1 account: ann"
