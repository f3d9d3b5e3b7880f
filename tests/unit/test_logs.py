"""Logs: no secret gets out, whatever way it comes, and logging never breaks what logs."""

import io
import json
import logging
import secrets
import traceback
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.contracts.keys import MINT_BYTES, mint
from covey.telemetry import logs

KEY = mint(secrets.token_bytes(MINT_BYTES)).text
SECRETS = {
    "key": KEY,
    "old key": "cvy_abcdefghijkl_" + "A" * 32 + "_abcdef",
    "invite": "covey1" + "abcdefghijklmnopqrstuvwxyz234567" * 4,
    "OpenAI's": "sk-proj-" + "a1B2" * 10,
    "Hugging Face's": "hf_" + "a1B2" * 8,
    "argon2": "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ$aGFzaGhhc2hoYXNo",
    "session in a fragment": "http://localhost:26839/setup#" + "k3J_-" * 8,
}
HEADERS = ["Bearer {}", "bearer {}", "BEARER {}", "authorization: Bearer {}", "(b'authorization', b'Bearer {}')"]
OPAQUE = "Zm9vYmFyLWJhei5xdXV4" * 2


@pytest.fixture(params=["text", "json"])
def stream(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    covey_logger = logging.getLogger("covey")
    before = list(root.handlers), root.level, covey_logger.level
    out = io.StringIO()
    logs.configure(level="debug", style=request.param, tracebacks=True, stream=out)
    yield out
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in before[0]:
        root.addHandler(handler)
    root.setLevel(before[1])
    covey_logger.setLevel(before[2])


log = logging.getLogger("covey.test")


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_secrets_are_taken_out_wherever_they_are(stream: io.StringIO, secret: str) -> None:
    bare = secret.rpartition("#")[2]
    log.warning("said %s here", secret)  # in the arguments
    log.warning(f"said {secret} here")  # in the text
    log.warning("a mapping %(it)s", {"it": secret})
    log.warning("%r", {"deep": [secret]})
    log.warning("%s", secret.encode())
    try:
        raise ValueError(f"refused {secret}")
    except ValueError:
        log.exception("It failed.")
    try:
        try:
            raise KeyError(secret)
        except KeyError as inner:
            raise RuntimeError("outer") from inner
    except RuntimeError:
        log.exception("It failed.")
    assert bare not in stream.getvalue()
    assert stream.getvalue().count("[redacted]") >= 7


@pytest.mark.parametrize("shape", HEADERS)
def test_a_bearer_token_of_any_kind_is_taken_out(stream: io.StringIO, shape: str) -> None:
    log.warning("sent %s to them", shape.format(OPAQUE))
    assert OPAQUE not in stream.getvalue()
    assert "to them" in stream.getvalue()


def test_what_another_handler_formatted_first_is_redacted_too(stream: io.StringIO) -> None:
    class Embedder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            logging.Formatter().format(record)  # caches exc_text in the record

    embedder = Embedder()
    log.addHandler(embedder)
    try:
        raise ValueError(KEY)
    except ValueError:
        log.exception("It failed.")
    finally:
        log.removeHandler(embedder)
    assert KEY not in stream.getvalue()


@pytest.mark.parametrize("args", [("one",), ("a", "b", "c"), ({"x": 1},)])
def test_a_log_call_with_the_wrong_arguments_breaks_nothing(stream: io.StringIO, args: tuple[object, ...]) -> None:
    log.warning("%d and %d", *args)
    assert "%d and %d (not formatted: TypeError)" in stream.getvalue()


def test_an_argument_that_cannot_be_shown_breaks_nothing(stream: io.StringIO) -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    log.warning("it is %s", Broken())
    log.warning("%d", Broken())
    assert "it is" in stream.getvalue()


def test_ordinary_text_is_left_alone(stream: io.StringIO) -> None:
    text = (
        "GET /v1/models by cvy_user took 12 ms #3 issue, the bearer of news, covey1 is a name, sk-short, page.html#top"
    )
    log.warning(text)
    assert "#3 issue, the bearer of" in stream.getvalue()
    assert "covey1 is a name, sk-short, page.html#top" in stream.getvalue()


def test_a_record_is_one_line(stream: io.StringIO) -> None:
    log.warning("model %s asked", "x\n12:00:00 info gateway: forged\r\x1b[31m\u2028")
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


@given(st.text())
def test_any_text_can_be_logged(text: str) -> None:
    record = logging.LogRecord("covey.x", logging.INFO, "", 0, "%s", (text,), None)
    assert logs.RedactingFilter().filter(record)
    line = logs.JsonFormatter().format(record)
    assert json.loads(line)["level"] == "info"
    line.encode()
    assert len(logs.TextFormatter(tracebacks=False).format(record).splitlines()) == 1


def test_a_line_of_json_says_everything() -> None:
    record = logging.LogRecord("covey.roles.gateway", logging.WARNING, "", 0, "é %s", (1,), None)
    logs.RedactingFilter().filter(record)
    logs.set_request_id("req_1")
    entry = json.loads(logs.JsonFormatter().format(record))
    logs.set_request_id("")
    assert entry == {
        "ts": round(record.created, 3),
        "level": "warning",
        "logger": "roles.gateway",
        "message": "é 1",
        "request_id": "req_1",
    }


@pytest.mark.parametrize("said", ["", "a b", "x" * 65, "x\n", "ré", 'a"b', "\x1b[31m"])
def test_what_is_no_request_id_does_not_become_one(said: str) -> None:
    assert logs.sane_request_id(said) == ""


def test_a_request_id_of_ours_is_one() -> None:
    made = logs.new_request_id()
    assert logs.sane_request_id(made) == made != logs.new_request_id()
    assert logs.sane_request_id("Client-7_a.b") == "Client-7_a.b"


def test_text_has_tracebacks_only_where_asked_for() -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    for tracebacks in (True, False):
        record = logging.LogRecord("covey.x", logging.ERROR, "", 0, "It failed.", (), info)
        logs.RedactingFilter().filter(record)
        lines = logs.TextFormatter(tracebacks=tracebacks).format(record).splitlines()
        assert (len(lines) > 1) == tracebacks
        assert "ValueError: why" in lines[-1]


def test_of_a_group_the_last_exception_is_told_in_a_line() -> None:
    def fall() -> None:
        raise ExceptionGroup("several", [ValueError("first"), ExceptionGroup("more", [KeyError("the cable")])])

    record = logging.LogRecord("covey.gateway", logging.ERROR, __file__, 1, "It failed.", (), None)
    try:
        fall()
    except ExceptionGroup as group:
        record.exc_text = "".join(traceback.format_exception(group)).rstrip()
    line = logs.TextFormatter(tracebacks=False).format(record)
    assert line.endswith("gateway: It failed. — KeyError: 'the cable'")
