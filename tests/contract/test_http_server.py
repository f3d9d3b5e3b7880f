"""The listener, over real sockets: what clients do wrong, slowly or not at all must cost little and end in time."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import trio
import trio.testing
from http_harness import Served, eventually, serving

from covey.errors import CallError
from covey.http.asgi import Receive, Scope, Send, header_values, read_body, respond, until_gone
from covey.http.server import HttpConfig, Listener
from covey.http.writing import WRITES_AT_ONCE
from covey.telemetry.metrics import Metrics

HOST = b"Host: localhost\r\n"
PING = b"GET /ping HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that a client does is an error of ours."""
    yield
    loud = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
    assert not loud, [r.getMessage() + (r.exc_text or "") for r in loud]


class App:
    """/ping answers, /early answers without reading, /echo reads first, /flood never stops, /slow takes its time."""

    def __init__(self) -> None:
        self.running = 0
        self.go_on = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.running += 1
        try:
            await getattr(self, scope["path"].strip("/"))(scope, receive, send)
        finally:
            self.running -= 1

    async def ping(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, b"pong", "text/plain", [])

    async def early(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 401, b"no", "text/plain", [])

    async def echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive, body_bytes_max=1 << 24, body_seconds_max=5, scope=scope)
        await respond(send, 200, body, "text/plain", [])

    async def gone(self, scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive, body_bytes_max=1 << 24, body_seconds_max=5)
        await until_gone(receive)
        await until_gone(receive)  # asking again is answered again

    async def flood(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})

    async def slow(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await self.go_on.wait()
        await send({"type": "http.response.body", "body": b"ended", "more_body": False})


async def test_a_connection_serves_one_request_after_another() -> None:
    async with serving(App()) as served, served.client() as client:
        for _ in range(3):
            await client.send(PING)
            assert (await client.answer()).body == b"pong"
        assert served.metrics.registry.get_sample_value("covey_http_connections") == 1
    assert served.metrics.registry.get_sample_value("covey_http_connections") == 0


async def test_writes_that_need_not_wait_leave_others_their_turn() -> None:
    turns = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def take_turns() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(10 * WRITES_AT_ONCE):
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async with serving(app) as served, served.client() as client:
        await client.send(PING)
        assert (await client.answer()).body == b"x" * 10 * WRITES_AT_ONCE
    assert turns >= 5  # of ten: where nobody yields, it is none


async def test_pipelined_requests_are_answered_in_order() -> None:
    post = b"POST /echo HTTP/1.1\r\n" + HOST
    async with serving(App()) as served, served.client() as client:
        await client.send(
            PING
            + post
            + b"Content-Length: 2\r\n\r\nab"
            + post
            + b"Transfer-Encoding: chunked\r\n\r\n3\r\ncde\r\n0\r\n\r\n"
            + PING[:9]
        )
        assert [(await client.answer()).body for _ in range(3)] == [b"pong", b"ab", b"cde"]
        await client.send(PING[9:])
        assert (await client.answer()).body == b"pong"


async def test_what_comes_while_a_request_is_answered_is_read_ahead_and_kept() -> None:
    app = App()
    many = 3_000  # requests, of more bytes than are read ahead
    async with serving(app) as served, served.client() as client, trio.open_nursery() as nursery:
        await client.send(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n" + PING[:9])
        await client.until(b"begun")
        nursery.start_soon(client.send, PING[9:] + PING * many)
        await trio.testing.wait_all_tasks_blocked(0.05)
        app.go_on.set()
        await client.until(b"0\r\n\r\n")
        for _ in range(many + 1):
            assert (await client.answer()).body == b"pong"


async def test_an_idle_connection_is_closed_in_time_and_a_busy_one_is_not() -> None:
    app = App()
    async with serving(app, keep_alive_seconds=0.3) as served, served.client() as idle, served.client() as busy:
        await idle.send(PING)
        await idle.answer()
        await busy.send(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n")
        await busy.until(b"begun")
        began = trio.current_time()
        assert await idle.rest() == b""
        assert 0.2 < trio.current_time() - began < 1.5
        await trio.sleep(0.3)
        app.go_on.set()
        await busy.until(b"ended")


@pytest.mark.parametrize("sent", [b"", b"GET /pi", PING[:-2]])
async def test_a_request_that_never_ends_is_closed_in_time(sent: bytes) -> None:
    async with serving(App(), keep_alive_seconds=0.3) as served, served.client() as client:
        await client.send(sent)
        await client.rest()


def open_connections(served: Served) -> float | None:
    return served.metrics.registry.get_sample_value("covey_http_connections")


async def test_connections_that_wait_for_an_answer_are_capped() -> None:
    app = App()
    slow = b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n"
    async with serving(app, connections_max=2) as served, served.client() as one, served.client() as two:
        for client in (one, two):
            await client.send(slow)
            await client.until(b"begun")
        async with served.client() as three:
            assert await three.rest() == b""
        app.go_on.set()
        for client in (one, two):
            await client.until(b"ended")
        async with served.client() as four:
            await four.send(PING)
            assert (await four.answer()).status == 200


async def test_the_longest_idle_connection_makes_room_for_a_new_one() -> None:
    async with serving(App(), connections_max=3) as served:
        async with served.client() as one, served.client() as two, served.client() as three:
            for client in (one, two, three, one):  # so that `two` is idle for longest
                await client.send(PING)
                assert (await client.answer()).status == 200
            async with served.client() as four:
                await four.send(PING)
                assert (await four.answer()).status == 200
                assert await two.rest() == b""
                for client in (one, three):
                    await client.send(PING)
                    assert (await client.answer()).status == 200
        await eventually(lambda: open_connections(served) == 0)


async def test_a_head_that_comes_too_slowly_is_answered_408_and_closed() -> None:
    async with serving(App(), head_seconds_max=0.3) as served, served.client() as client:
        await client.send(PING)
        await client.answer()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def drip() -> None:
                with contextlib.suppress(trio.BrokenResourceError):
                    for byte in PING[:-2]:
                        await client.send(bytes([byte]))
                        await trio.sleep(0.05)

            nursery.start_soon(drip)
            answer = await client.rest()
            nursery.cancel_scope.cancel()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"connection: close" in answer.lower()
        assert trio.current_time() - began < 5


async def test_a_connection_that_has_not_asked_yet_is_not_answered_408() -> None:
    async with serving(App(), head_seconds_max=0.1, keep_alive_seconds=0.3) as served, served.client() as client:
        assert await client.rest() == b""


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (b"garbage\r\n\r\n", {400}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), {400}),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 40_000 + b"\r\n\r\n", {431, 400}),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", {414}),
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", {414}),
        (b"GET /ping HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 101 + b"\r\n", {431}),
        (b"GET /ping HTTP/1.1\n" + HOST + b"\r\n", {400}),
        (b"GET /ping HTTP/1.1\r\n" + HOST + b"X: y\n\r\n", {400}),
        (b"GET /ping HTTP/1.1\r\n" + HOST + b"\n", {400}),
        (b"GET /ping HTTP/1.1\r\n" + HOST + b"X: a\rb\r\n\r\n", {400}),
        (b"GET /ping HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n", {400}),
        (b"GET /ping HTTP/1.1\r\n" + HOST + b"X: a\r\n\tb\r\n\r\n", {400}),
        (b"GET /ping HTTP/1.1\r\n X: y\r\n" + HOST + b"\r\n", {400}),
        (b"GET /pi\x00ng HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
        (b"GET ping HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
        (b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
        (b"GET ftp://localhost/ping HTTP/1.1\r\n" + HOST + b"\r\n", {400}),
        (b"TRACE /ping HTTP/1.1\r\n" + HOST + b"\r\n", {501}),
        (b"CONNECT localhost:443 HTTP/1.1\r\n" + HOST + b"\r\n", {501}),
        (b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", {400}),
        (b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 1, 2\r\n\r\nab", {400}),
        (b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\na", {400}),
        (
            b"POST /echo HTTP/1.1\r\n"
            + HOST
            + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            {400, 501},
        ),
        (b"GET /ping HTTP/1.1\r\n\r\n", {400}),
        (b"GET /ping HTTP/1.1\r\n" + HOST + HOST + b"\r\n", {400}),
        (b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", {400}),
        (b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: -5\r\n\r\nhello", {400}),
        (b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\nhello", {400, 501}),
        (b"GET /ping HTTP/1.1\r\n" + HOST + b"X : y\r\n\r\n", {400}),
        (b"GET /ping HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n", {400}),
    ],
)
async def test_what_is_not_http_is_refused_and_closed(request_bytes: bytes, statuses: set[int]) -> None:
    async with serving(App()) as served, served.client() as client:
        await client.send(request_bytes)
        answer = await client.rest()
        assert int(answer.split(b" ")[1]) in statuses
        assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\nab\r\n0\r\n\r\n",
        b"2\r\nabX\r\n0\r\n\r\n",
        b"2\nab\n0\n\n",
        b"-2\r\nab\r\n0\r\n\r\n",
        b"0x2\r\nab\r\n0\r\n\r\n",
        b"fffffffffffffffffffff\r\nab",
        b"2;" + b"x" * 200_000 + b"\r\nab\r\n0\r\n\r\n",
        b"0\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    ],
)
async def test_a_body_in_bad_chunks_is_refused_and_nothing_after_it_is_read(body: bytes) -> None:
    async with serving(App()) as served, served.client() as client:
        await client.send(b"POST /echo HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + body + PING)
        answer = await client.rest()
        assert b"pong" not in answer
        assert b" 200 " not in answer
    await eventually(lambda: open_connections(served) == 0)


async def test_a_target_with_a_host_overrides_the_header() -> None:
    # RFC 9112, 3.2.2.
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        said = f"{header_values(scope, b'host')} {scope['path']} {scope['query_string'].decode()}"
        await respond(send, 200, said.encode(), "text/plain", [])

    async with serving(app) as served, served.client() as client:
        for target, said in [
            (b"http://elsewhere.example:80/a?b", "['elsewhere.example:80'] /a b"),
            (b"HTTP://elsewhere.example", "['elsewhere.example'] / "),
            (b"https://elsewhere.example?b", "['elsewhere.example'] / b"),
        ]:
            await client.send(b"GET " + target + b" HTTP/1.1\r\n" + HOST + b"\r\n")
            assert (await client.answer()).body.decode() == said


async def test_head_and_options_are_served_and_the_connection_goes_on() -> None:
    async with serving(App()) as served, served.client() as client:
        await client.send(b"HEAD /ping HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await client.answer(head_only=True)).headers["content-length"] == "4"
        await client.send(b"OPTIONS /ping HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await client.answer()).body == b"pong"
        await client.send(b"GET /ping HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        answer = await client.rest()
        assert b"connection: close" in answer.lower()
        assert answer.endswith(b"pong")


async def test_a_length_beside_chunks_smuggles_nothing() -> None:
    # RFC 9112, 6.3: Transfer-Encoding overrides, and the connection must be closed afterwards (or all of it refused).
    async with serving(App()) as served, served.client() as client:
        await client.send(
            b"POST /echo HTTP/1.1\r\n"
            + HOST
            + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            + PING
        )
        answer = await client.rest()
        assert b"pong" not in answer


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket"])
async def test_only_http_1_is_spoken(upgrade: bytes) -> None:
    async with serving(App()) as served, served.client() as client:
        await client.send(
            b"GET /ping HTTP/1.1\r\n"
            + HOST
            + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: "
            + upgrade
            + b"\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            + b"Sec-WebSocket-Version: 13\r\n\r\n"
        )
        assert (await client.answer()).body == b"pong"


async def test_http_2_with_prior_knowledge_is_refused() -> None:
    async with serving(App()) as served, served.client() as client:
        await client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 505 ")


async def test_http_1_0_is_answered_and_closed() -> None:
    async with serving(App()) as served, served.client() as client:
        await client.send(b"GET /ping HTTP/1.0\r\n\r\n")
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"pong")


async def test_a_client_that_waits_to_send_its_body_is_told_to() -> None:
    async with serving(App()) as served, served.client() as client:
        await client.send(b"POST /echo HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert (await client.head())[0] == 100
        await client.send(b"ab")
        assert (await client.answer()).body == b"ab"


async def test_an_early_answer_to_a_small_body_keeps_the_connection() -> None:
    async with serving(App()) as served, served.client() as client:
        for _ in range(20):
            await client.send(b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 20000\r\n\r\n" + b"x" * 20_000)
            answer = await client.answer()
            assert answer.status == 401
        await client.send(PING)
        assert (await client.answer()).body == b"pong"


@pytest.mark.parametrize("size", [3_000_000, 20_000_000])
async def test_an_early_answer_reaches_a_client_that_is_still_sending(size: int) -> None:
    async with serving(App()) as served:
        async with httpx.AsyncClient(base_url=served.url) as client:
            response = await client.post("/early", content=b"x" * size)
            assert (response.status_code, response.content) == (401, b"no")
            assert (await client.get("/ping")).content == b"pong"
        await eventually(lambda: served.metrics.registry.get_sample_value("covey_http_connections") == 0)


async def test_an_early_answer_to_a_body_that_never_comes_is_not_delayed() -> None:
    async with serving(App()) as served, served.client() as client:
        await client.send(b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 200\r\n\r\nabc")
        began = trio.current_time()
        answer = await client.answer()
        assert answer.status == 401
        assert answer.headers["connection"] == "close"
        await client.rest()
        assert trio.current_time() - began < 3


async def test_a_body_that_nobody_reads_does_not_stop_the_shutdown() -> None:
    async with serving(App(), drain_seconds=0.5) as served, served.client() as client, trio.open_nursery() as nursery:

        async def pour() -> None:
            try:
                await client.send(b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 99000000\r\n\r\n")
                while True:
                    await client.send(b"x" * 65_536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        nursery.start_soon(pour)
        assert (await client.answer()).status == 401
        assert await served.shut_down() < 3
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["fin", "rst", "half"])
@pytest.mark.parametrize("ahead", [b"", b"\r\n", PING[:9], PING])
async def test_a_client_that_leaves_is_noticed(how: str, ahead: bytes) -> None:
    """Whatever it has sent behind its request."""
    app = App()
    async with serving(app) as served, served.client() as client:
        await client.send(b"GET /gone HTTP/1.1\r\n" + HOST + b"\r\n" + ahead)
        await eventually(lambda: app.running == 1)
        client.hang_up(how)
        assert await eventually(lambda: app.running == 0) < 1  # `bench leaving` has the figure


async def test_a_stream_ends_when_its_reader_stops_reading() -> None:
    app = App()
    async with serving(app, write_seconds_max=0.3) as served, served.client(receive_buffer_bytes=4096) as client:
        await client.send(b"GET /flood HTTP/1.1\r\n" + HOST + b"\r\n")
        await client.until(b"xxx")
        await eventually(lambda: served.metrics.registry.get_sample_value("covey_http_connections") == 0)


async def test_shutdown_closes_idle_connections_at_once() -> None:
    async with serving(App(), drain_seconds=5) as served, served.client() as used, served.client() as fresh:
        await used.send(PING)
        await used.answer()
        await eventually(lambda: served.metrics.registry.get_sample_value("covey_http_connections") == 2)
        assert await served.shut_down() < 2.5
        assert await used.rest() == await fresh.rest() == b""


async def test_shutdown_lets_a_request_finish() -> None:
    app = App()
    async with serving(app, drain_seconds=5) as served, served.client() as client, trio.open_nursery() as nursery:
        await client.send(b"GET /slow HTTP/1.1\r\n" + HOST + b"\r\n")
        await client.until(b"begun")
        took: list[float] = []

        async def stop() -> None:
            took.append(await served.shut_down())

        nursery.start_soon(stop)
        await trio.sleep(0.2)
        with pytest.raises(OSError):
            await trio.open_tcp_stream("127.0.0.1", served.port)
        assert not took
        app.go_on.set()
        assert b"ended" in await client.rest()
    assert took[0] < 4


@pytest.mark.parametrize("path", [b"/slow", b"/flood", b"/gone"])
async def test_shutdown_cuts_what_does_not_finish(path: bytes) -> None:
    async with serving(App(), drain_seconds=0.3) as served, served.client(receive_buffer_bytes=4096) as client:
        await client.send(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        if path != b"/gone":
            await client.head()
        await trio.sleep(0.2)
        assert 0.2 < await served.shut_down() < 3


async def test_a_request_that_was_begun_before_the_stop_is_served_without_keeping_the_connection() -> None:
    async with serving(App(), drain_seconds=3) as served, served.client() as client:
        await client.send(b"POST /echo HTTP/1.1\r\n" + HOST + b"Content-Length: 4\r\n\r\nab")
        await trio.sleep(0.1)
        served.stop.set()
        await trio.sleep(0.1)
        await client.send(b"cd")
        assert (await client.answer()).body == b"abcd"
        assert await client.rest() == b""
        assert await served.shut_down() < 2.5


async def test_an_application_that_fails_answers_500_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a bug")

    async with serving(broken) as served, served.client() as client:
        await client.send(PING)
        assert (await client.answer()).status == 500
    assert any(r.exc_info and "a bug" in str(r.exc_info[1]) for r in caplog.records)
    caplog.clear()


async def test_an_address_in_use_is_refused_with_a_way_out() -> None:
    async with serving(App()) as served:
        second: Any = Listener(HttpConfig(listen=f"127.0.0.1:{served.port}"), served.metrics)
        with pytest.raises(CallError, match="is in use") as caught:
            await second.serve(App(), stop=trio.Event(), drain_until=trio.current_time)
        assert caught.value.code == "conflict"


@pytest.mark.parametrize("host", ["a" * 70, "nowhere.invalid", "192.0.2.1", "a b"])
async def test_an_address_that_is_not_ours_is_refused(host: str) -> None:
    listener: Any = Listener(HttpConfig(listen=f"{host}:0", allow_plain_http=True), Metrics())
    with pytest.raises(CallError, match="Cannot listen on") as caught:
        await listener.serve(App(), stop=trio.Event(), drain_until=trio.current_time)
    assert caught.value.code == "invalid"
