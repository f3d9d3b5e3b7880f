"""The access log: one line for each HTTP request, whatever becomes of it; and what is counted beside it."""

import io
import json
import logging
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
from trio.testing import MockClock

from covey.http.access import AccessLog
from covey.http.asgi import ClientGone, Message, Receive, Scope, Send, respond
from covey.telemetry import access, logs
from covey.telemetry.logs import current_request_id
from covey.telemetry.metrics import Metrics

KEY = "cvy_abcdefghijkl_" + "A" * 32 + "_abcdef"


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, object]]]]:
    root, ours = logging.getLogger(), logging.getLogger("covey")
    before = list(root.handlers), root.level, ours.level
    out = io.StringIO()
    logs.configure(level="info", style="json", stream=out)
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


def scope_of(method: str, path: str, *headers: tuple[bytes, bytes], query: bytes = b"") -> Scope:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query,
        "headers": list(headers),
        "client": ("192.0.2.7", 50_000),
    }


async def nothing_comes() -> Message:
    raise AssertionError


async def dropped(_: Message) -> None:
    await trio.lowlevel.checkpoint()


App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def ask(app: App, scope: Scope, *, writes: bool = True) -> Metrics:
    metrics = Metrics()
    await AccessLog(app, metrics, routes=["/healthz"], writes=writes)(scope, nothing_comes, dropped)
    return metrics


def counted(metrics: Metrics) -> list[tuple[dict[str, str], float]]:
    return [
        (sample.labels, sample.value)
        for family in metrics.http_requests.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    ]


async def test_a_request_has_one_line_with_all_that_is_known(
    autojump_clock: MockClock, lines: Callable[[], list[dict[str, object]]]
) -> None:
    async def app(scope: Scope, _: Receive, send: Send) -> None:
        access.note_route("/v1/models/{id}")
        access.note_caller("k1", "alice-id")
        async with trio.open_nursery() as nursery:  # as a handler of this process does, in a task of its own
            nursery.start_soon(generate)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"12345", "more_body": True})
        await trio.sleep(1.5)
        await send({"type": "http.response.body", "body": b"678"})

    async def generate() -> None:
        access.note_use(
            key_id="k1",
            owner="alice-id",
            model="tiny",
            node="attic",
            outcome="ok",
            prompt_tokens=21,
            completion_tokens=64,
        )

    metrics = await ask(app, scope_of("POST", "/v1/models/tiny", (b"x-request-id", b"mine-1"), query=b"key=" + b"x"))
    (line,) = lines()
    assert line.pop("ts")
    assert line == {
        "level": "info",
        "logger": "access",
        "message": "POST /v1/models/{id} 200, 8 bytes in 1.500 s; for 192.0.2.7; by k1 of alice-id; tiny on attic;"
        " ok, 21+64 tokens",
        "request_id": "mine-1",
        "status": 200,
        "method": "POST",
        "path": "/v1/models/{id}",
        "client": "192.0.2.7",
        "route": "/v1/models/{id}",
        "sent_bytes": 8,
        "seconds": 1.5,
        "key_id": "k1",
        "owner": "alice-id",
        "model": "tiny",
        "node": "attic",
        "outcome": "ok",
        "prompt_tokens": 21,
        "completion_tokens": 64,
    }
    assert counted(metrics) == [({"route": "/v1/models/{id}", "method": "POST", "status": "2xx"}, 1.0)]


async def test_no_secret_and_no_line_of_somebody_elses(lines: Callable[[], list[dict[str, object]]]) -> None:
    async def app(_: Scope, __: Receive, send: Send) -> None:
        await respond(send, 404, b"", "text/plain", [])

    forged = "/x\r\n12:00:00 error forged"
    metrics = await ask(app, scope_of("GET", f"/{KEY}", (b"x-request-id", b"a b\nforged")))
    await ask(app, scope_of("GET", forged + "y" * 10_000))
    first, second = lines()
    assert KEY not in json.dumps(first)
    assert first["path"] == "/[redacted]"
    assert logs.sane_request_id(str(first["request_id"])).startswith("req_")
    assert len(json.dumps(second)) < 1_000
    assert second["request_id"] != first["request_id"]
    assert counted(metrics) == [({"route": "other", "method": "GET", "status": "4xx"}, 1.0)]


@pytest.mark.parametrize(("failure", "status"), [(ClientGone(), 499), (ValueError("a bug"), 500), (None, 499)])
async def test_a_request_without_an_answer_has_a_line_too(
    lines: Callable[[], list[dict[str, object]]], failure: Exception | None, status: int
) -> None:
    async def app(_: Scope, __: Receive, ___: Send) -> None:
        if failure is not None:
            raise failure

    try:
        await ask(app, scope_of("GET", "/healthz"))
    except (ClientGone, ValueError) as error:
        assert error is failure  # noqa: PT017 - that it passes through unchanged is the point
    (line,) = lines()
    assert (line["status"], line["path"]) == (status, "/healthz")


async def test_a_request_that_is_cut_has_a_line_too(lines: Callable[[], list[dict[str, object]]]) -> None:
    async def app(_: Scope, __: Receive, ___: Send) -> None:
        await trio.sleep_forever()

    with trio.CancelScope() as cut:
        cut.cancel()
        await ask(app, scope_of("GET", "/healthz"))
    assert [line["status"] for line in lines()] == [499]


async def test_without_the_log_requests_are_still_counted_and_have_an_id(
    lines: Callable[[], list[dict[str, object]]],
) -> None:
    seen: list[str] = []

    async def app(_: Scope, __: Receive, send: Send) -> None:
        seen.append(current_request_id())
        await respond(send, 200, b"{}", "application/json", [])

    metrics = await ask(app, scope_of("GET", "/healthz", (b"x-request-id", b"theirs")), writes=False)
    await ask(app, scope_of("GET", "/healthz"), writes=False)
    assert seen[0] == "theirs"
    assert seen[1].startswith("req_")
    assert lines() == []
    assert counted(metrics) == [({"route": "/healthz", "method": "GET", "status": "2xx"}, 1.0)]


async def test_strange_methods_make_no_series() -> None:
    metrics = Metrics()
    for number in range(50):
        metrics.http_request("", f"X{number}", 405)
    assert counted(metrics) == [({"route": "other", "method": "other", "status": "4xx"}, 50.0)]


async def test_outside_a_request_notes_are_nobodys() -> None:
    access.note_route("/x")
    access.note_caller("k", "o")
    access.note_use(key_id="k", owner="o", model="", node="", outcome="ok", prompt_tokens=1, completion_tokens=1)


async def test_other_kinds_of_scopes_pass() -> None:
    passed: list[str] = []

    async def app(scope: Scope, _: Receive, __: Send) -> None:
        passed.append(scope["type"])

    await ask(app, {"type": "lifespan"})
    assert passed == ["lifespan"]
