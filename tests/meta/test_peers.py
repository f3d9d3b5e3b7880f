"""The comparison with peers: nothing is started here but the parts that judge what was measured."""

import re
import selectors
import socket
from pathlib import Path

import pytest
from bench.__main__ import ASKED_FOR
from bench.peers.__main__ import arguments_of
from bench.peers.answers import Answer, words
from bench.peers.comparing import ENVIRONMENT
from bench.peers.load import Client, Load, Question
from bench.peers.machine import MARK, litellm_version, write_between
from bench.peers.measuring import MORE_IS_BETTER, UNITS
from bench.peers.rows import Row, markdown, percentile, rows
from bench.peers.upstream import Asked, answer_head, events, whole
from documents import ROOT, read

WHOLE = Asked("fast", 3)
BODY = whole(WHOLE)
WHOLE_ANSWER = answer_head(b"application/json", b"content-length: %d" % len(BODY)) + BODY
STREAM_ANSWER = answer_head(b"text/event-stream", b"transfer-encoding: chunked") + b"".join(
    events(Asked("fast", 3, stream=True))
)


def read_whole(data: bytes) -> str:
    answer = Answer()
    assert answer.receive(data)
    return answer.text()


def test_make_has_it_in_an_environment_of_its_own() -> None:
    _, _, recipe = read("Makefile").partition("\nbench-peers: ")
    recipe = recipe.partition("\n\n")[0]
    assert f"venv {ENVIRONMENT}" in recipe
    assert "--require-hashes" in recipe
    assert "python -m bench.peers $(ARGS)" in recipe
    assert "/build/" in read(".gitignore")


def test_the_lock_has_the_version_that_is_asked_for() -> None:
    asked = re.search(r"^litellm\[proxy\]==[\d.]+$", read("requirements/peers.in"), re.MULTILINE)
    assert asked is not None
    assert f"\n{asked[0]} \\\n    --hash=sha256:" in read("requirements/peers.lock")


def test_the_other_measurements_leave_it_out() -> None:
    assert "peers" in ASKED_FOR
    assert (ROOT / "bench" / "peers" / "__init__.py").exists()


def test_arguments() -> None:
    arguments = arguments_of([])
    assert (arguments.litellm, arguments.write) == (ENVIRONMENT, None)
    assert arguments_of(["--rounds", "5", "--write", "x.md"]).rounds == 5
    with pytest.raises(SystemExit):
        arguments_of(["--rounds", "0"])


def test_who_has_no_litellm_is_told_by_none(tmp_path: Path) -> None:
    assert litellm_version(tmp_path) is None


@pytest.mark.parametrize("size", [1, 2, 7, 100_000])
@pytest.mark.parametrize("data", [WHOLE_ANSWER, STREAM_ANSWER])
def test_an_answer_is_the_same_however_it_comes(data: bytes, size: int) -> None:
    answer = Answer()
    *most, last = (data[start : start + size] for start in range(0, len(data), size))
    for part in most:
        assert not answer.receive(part)
    assert answer.receive(last)
    assert answer.begun
    assert answer.text() == "".join(words(3))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (WHOLE_ANSWER.replace(b"200 OK", b"500 Oh!"), "HTTP 500"),
        (STREAM_ANSWER.replace(b"[DONE]", b'{"choices":[]}').replace(b"\r\ne\r\n", b"\r\n16\r\n"), "before its end"),
        (WHOLE_ANSWER.replace(b"content-length", b"content-height"), "neither a length nor chunks"),
    ],
)
def test_a_wrong_answer_is_none(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_whole(data)


def test_a_finished_connection_is_listened_to_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, selectors.DefaultSelector() as selector:
        url, question = f"http://127.0.0.1:{server.getsockname()[1]}", Question("fast", 3)
        load, client = Load(url, "key", question), Client(url, question.request(url, "key"))
        accepted, _ = server.accept()
        with accepted, client.socket:
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.ask()
            accepted.sendall(WHOLE_ANSWER)
            assert load._turn(client, selector, until=0)
            assert not selector.get_map()


def test_what_a_gateway_adds_is_its_figure_less_the_bare_one() -> None:
    name = "latency p50, 1 connection"
    bare, covey, peer = ({name: value} for value in (1.0, 3.0, 5.0))
    table = list(rows({"bare": bare, "Covey": covey, "peer": peer}, {name: "ms"}, (), bare="bare"))
    assert [row.values for row in table] == [
        {"bare": 1.0, "Covey": 3.0, "peer": 5.0},
        {"bare": None, "Covey": 2.0, "peer": 4.0},
    ]
    assert table[1].ratio("Covey", "peer") == 0.5
    assert table[1].ratio("Covey", "bare") is None
    assert markdown(table[1:], ["bare", "Covey", "peer"], ours="Covey", theirs="peer")[2:] == [
        "| added: latency p50, 1 connection, ms |  | 2 | 4 | 0.50 × | less |"
    ]
    assert "×" not in "".join(markdown(table, ["bare", "Covey"], ours="Covey", theirs="peer"))


def test_figures_have_units_and_directions() -> None:
    assert set(UNITS) >= MORE_IS_BETTER
    assert all(unit for unit in UNITS.values())
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert Row("x", "ms", {"a": 1.0, "b": 0.0}).ratio("a", "b") is None


def test_the_table_goes_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARK}\nold\n{MARK}\nafter\n", encoding="utf-8")
    write_between(page, ["new", "lines"])
    assert page.read_text(encoding="utf-8") == f"before\n{MARK}\nnew\nlines\n{MARK}\nafter\n"
    page.write_text("before and after\n", encoding="utf-8")
    with pytest.raises(ValueError, match="twice"):
        write_between(page, ["new"])
