"""HTTP/2 over TLS: two real clients, and one that breaks the rules, stalls and floods."""

import contextlib
import logging
import random
import shutil
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from http2_client import Client2, client2, serving2
from http_harness import eventually

from covey.http.asgi import (
    PEER,
    ClientGone,
    Receive,
    Scope,
    Send,
    header_values,
    leaving_with_client,
    read_body,
    respond,
)
from covey.http.http2 import BODY_BYTES_MAX, STREAMS_MAX

BODY_READ_MAX = 1 << 24


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that a client does is an error of ours."""
    yield
    loud = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
    assert not loud, [r.getMessage() + (r.exc_text or "") for r in loud]


class App:
    """/ping answers, /early without reading, /echo after it, /flood never stops, /held waits to be let go."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.sent_bytes = 0
        self.go_on = trio.Event()
        self.ended_by: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await getattr(self, scope["path"].strip("/"))(scope, receive, send)
        except BaseException as error:
            self.ended_by.append(type(error).__name__)
            raise
        finally:
            self.running -= 1

    async def ping(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, b"pong", "text/plain", [(b"connection", b"close")])

    async def early(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 401, b"no", "text/plain", [])

    async def echo(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive, body_bytes_max=BODY_READ_MAX, body_seconds_max=5, scope=scope)
        await respond(send, 200, body, "text/plain", [])

    async def scope(self, scope: Scope, receive: Receive, send: Send) -> None:
        said = [
            scope["http_version"], scope["scheme"], scope["query_string"].decode(), *header_values(scope, b"host"),
            *header_values(scope, b"cookie"), scope["extensions"][PEER][0],
        ]  # fmt: skip
        await respond(send, 200, " ".join(said).encode(), "text/plain", [])

    async def flood(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})
            self.sent_bytes += 65_536

    async def held(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await self.go_on.wait()
        await send({"type": "http.response.body", "body": b"ended", "more_body": False})

    async def thinking(self, scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive, body_bytes_max=1, body_seconds_max=5, scope=scope)
        async with leaving_with_client(scope, receive):
            await trio.sleep_forever()
        raise ClientGone

    async def unread(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.go_on.wait()
        await respond(send, 200, b"", "text/plain", [])

    async def silent(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass

    async def none(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b"must not be sent"})


async def test_httpx_speaks_it(tmp_path: Path) -> None:
    async with serving2(App(), tmp_path) as served:
        async with httpx.AsyncClient(
            http2=True,
            verify=ssl.create_default_context(cafile=tmp_path / "certificate.pem"),
            base_url=f"https://localhost:{served.port}",
        ) as client:
            large = bytes(range(256)) * 8_192  # two megabytes: many windows, both ways

            async def ask(body: bytes) -> None:
                answer = await client.post("/echo", content=body)
                assert (answer.http_version, answer.status_code, answer.content) == ("HTTP/2", 200, body)

            async with trio.open_nursery() as nursery:
                for body in (large, b"small", b"", large[1:]):
                    nursery.start_soon(ask, body)
            assert (await client.head("/ping")).headers["content-length"] == "4"
            assert (await client.get("/none")).status_code == 204
        await eventually(lambda: served.metrics.registry.get_sample_value("covey_http_connections") == 0)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_curl_speaks_it(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"x" * 1_000_000)
    async with serving2(App(), tmp_path) as served:
        command = [
            "curl", "--http2", "--silent", "--show-error", "--cacert", str(tmp_path / "certificate.pem"),
            "--resolve", f"localhost:{served.port}:127.0.0.1", "--write-out", "%{http_version} %{http_code}",
        ]  # fmt: skip
        url = f"https://localhost:{served.port}"
        done = await trio.run_process([*command, f"{url}/ping"], capture_stdout=True)
        assert done.stdout == b"pong2 200"
        upload = ["--data-binary", f"@{tmp_path / 'body'}", "--output", str(tmp_path / "answer"), f"{url}/echo"]
        done = await trio.run_process([*command, *upload], capture_stdout=True)
        assert done.stdout == b"2 200"
        assert (tmp_path / "answer").read_bytes() == b"x" * 1_000_000


async def test_a_request_is_seen_as_in_http_1(tmp_path: Path) -> None:
    async with serving2(App(), tmp_path) as served, client2(served, tmp_path) as client:
        number = await client.ask("/scope?a=b", headers=[("cookie", "a=1"), ("cookie", "b=2")])
        answer = await client.answer(number)
        assert answer.body == b"2 https a=b localhost a=1; b=2 127.0.0.1"
        assert b"date" in answer.headers


async def test_what_belongs_to_a_connection_is_not_sent(tmp_path: Path) -> None:
    async with serving2(App(), tmp_path) as served, client2(served, tmp_path) as client:
        answer = await client.answer(await client.ask("/ping"))
        assert (answer.status, answer.body, answer.headers.get(b"connection")) == (200, b"pong", None)


async def test_a_stream_comes_piece_by_piece_while_others_are_answered(tmp_path: Path) -> None:
    app = App()
    async with serving2(app, tmp_path) as served, client2(served, tmp_path) as client:
        held = await client.ask("/held")
        await client.until(lambda: client.answers[held].body == b"begun")
        assert (await client.answer(await client.ask("/ping"))).body == b"pong"
        app.go_on.set()
        assert (await client.answer(held)).body == b"begunended"


async def test_a_client_that_waits_to_send_its_body_is_told_to(tmp_path: Path) -> None:
    async with serving2(App(), tmp_path) as served, client2(served, tmp_path) as client:
        number = await client.ask("/echo", "POST", end=False, headers=[("expect", "100-continue")])
        await client.until(lambda: client.answers[number].informed == [100])
        client.h2.send_data(number, b"ab", end_stream=True)
        await client.flush()
        assert (await client.answer(number)).body == b"ab"


async def test_a_stream_that_is_reset_is_told_to_its_application_at_once(tmp_path: Path) -> None:
    app = App()
    async with serving2(app, tmp_path) as served, client2(served, tmp_path) as client:
        number = await client.ask("/thinking")
        await eventually(lambda: app.running == 1)
        client.h2.reset_stream(number, ErrorCodes.CANCEL)
        await client.flush()
        assert await eventually(lambda: app.running == 0) < 1
        assert (await client.answer(await client.ask("/ping"))).body == b"pong"


@pytest.mark.parametrize("headers", [[("expect", "100-continue")], [("x-long", "x" * 100)] * 110])
async def test_a_stream_that_is_reset_as_soon_as_it_is_opened_leaves_the_others(
    tmp_path: Path, headers: list[tuple[str, str]]
) -> None:
    """Answered before its application: with 100, or with a refusal."""
    app = App()
    async with serving2(app, tmp_path) as served, client2(served, tmp_path) as client:
        held = await client.ask("/held")
        await client.until(lambda: client.answers[held].body == b"begun")
        number = client.h2.get_next_available_stream_id()
        fields = [(":method", "POST"), (":scheme", "https"), (":authority", "localhost"), (":path", "/echo")]
        client.h2.send_headers(number, [*fields, *headers])
        client.h2.reset_stream(number)
        await client.flush()  # both in one piece
        ping = await client.ask("/ping")
        assert (await client.answer(ping)).body == b"pong"
        app.go_on.set()
        assert (await client.answer(held)).body == b"begunended"


async def test_a_connection_that_ends_takes_its_requests_with_it(tmp_path: Path) -> None:
    app = App()
    async with serving2(app, tmp_path) as served:
        async with client2(served, tmp_path) as client:
            for path in ("/thinking", "/flood", "/held"):
                await client.ask(path)
            await eventually(lambda: app.running == 3)
            app.go_on.set()
        await eventually(lambda: app.running == 0)
        await eventually(lambda: served.metrics.registry.get_sample_value("covey_http_connections") == 0)


async def test_a_client_that_says_goodbye_is_gone(tmp_path: Path) -> None:
    app = App()
    async with serving2(app, tmp_path) as served, client2(served, tmp_path) as client:
        for path in ("/thinking", "/flood"):
            await client.ask(path)
        await eventually(lambda: app.running == 2)
        client.h2.close_connection()
        await client.flush()
        await eventually(lambda: app.running == 0)
        await eventually(lambda: served.metrics.registry.get_sample_value("covey_http_connections") == 0)


@pytest.mark.parametrize("seed", range(30))
async def test_random_frames_are_survived(tmp_path: Path, seed: int) -> None:
    generator = random.Random(seed)
    app = App()
    async with serving2(app, tmp_path) as served, client2(served, tmp_path) as client:
        number = await client.ask("/echo", "POST", end=False)
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            for _ in range(20):
                payload = generator.randbytes(generator.choice([0, 1, 4, 5, 6, 8, 50]))
                stream = generator.choice([0, number, number + 2, generator.randrange(1 << 31)])
                await client.send(frame(generator.randrange(12), generator.randrange(256), stream, payload))
        async with client2(served, tmp_path) as other:
            assert (await other.answer(await other.ask("/ping"))).body == b"pong"
    assert app.running == 0


@pytest.mark.parametrize("window", [0, 1, 65_535])
async def test_a_reader_that_gives_no_window_costs_a_bounded_buffer_and_time(tmp_path: Path, window: int) -> None:
    app = App()
    async with serving2(app, tmp_path, write_seconds_max=0.3) as served, client2(served, tmp_path) as client:
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        client.gives_window = False
        number = await client.ask("/flood")
        answer = await client.answer(number)
        assert answer.reset == ErrorCodes.CANCEL
        assert app.sent_bytes <= 65_536
        assert len(answer.body) == window
        await eventually(lambda: app.running == 0)
        assert app.ended_by == ["ClientGone"]
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 65_535})
        client.h2.increment_flow_control_window(100_000)
        assert (await client.answer(await client.ask("/ping"))).body == b"pong"  # the others go on


async def test_a_client_that_stops_reading_ends_the_connection_in_time(tmp_path: Path) -> None:
    app = App()
    async with serving2(app, tmp_path, write_seconds_max=0.3) as served, client2(served, tmp_path) as client:
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1 << 30})
        client.h2.increment_flow_control_window(1 << 30)
        await client.ask("/flood")
        await eventually(lambda: served.metrics.registry.get_sample_value("covey_http_connections") == 0, 10)
        await eventually(lambda: app.running == 0)


async def test_a_body_that_nobody_reads_is_held_up_by_its_window(tmp_path: Path) -> None:
    app = App()
    async with serving2(app, tmp_path) as served, client2(served, tmp_path) as client:
        await client.until(lambda: client.h2.remote_settings.initial_window_size == BODY_BYTES_MAX)
        number = await client.ask("/unread", "POST", end=False)
        sent = 0
        while room := min(client.h2.local_flow_control_window(number), 16_384):
            client.h2.send_data(number, b"x" * room)
            await client.flush()
            sent += room
        assert sent == BODY_BYTES_MAX
        # The rest of the connection is not held up, and gets the window back once the answer is there.
        small = await client.ask("/echo", "POST", end=False)
        client.h2.send_data(small, b"small", end_stream=True)
        await client.flush()
        assert (await client.answer(small)).body == b"small"
        app.go_on.set()
        assert (await client.answer(number)).status == 200
        await client.until(lambda: client.answers[number].reset is not None)
        assert client.answers[number].reset == ErrorCodes.NO_ERROR
        await client.until(lambda: client.h2.outbound_flow_control_window > BODY_BYTES_MAX)


async def test_an_early_answer_stops_the_body(tmp_path: Path) -> None:
    async with serving2(App(), tmp_path) as served, client2(served, tmp_path) as client:
        number = await client.ask("/early", "POST", end=False)
        assert (await client.answer(number)).status == 401
        await client.until(lambda: client.answers[number].reset is not None)
        assert client.answers[number].reset == ErrorCodes.NO_ERROR  # RFC 9113, 8.1
        assert (await client.answer(await client.ask("/ping"))).body == b"pong"


async def test_a_body_of_single_bytes_is_joined(tmp_path: Path) -> None:
    async with serving2(App(), tmp_path) as served, client2(served, tmp_path) as client:
        number = await client.ask("/echo", "POST", end=False)
        for _ in range(300):
            client.h2.send_data(number, b"x", pad_length=3)
        client.h2.send_data(number, b"", end_stream=True)
        await client.flush()
        assert (await client.answer(number)).body == b"x" * 300


async def test_more_streams_than_allowed_are_refused(tmp_path: Path) -> None:
    app = App()
    async with serving2(app, tmp_path) as served, client2(served, tmp_path) as client:
        for _ in range(STREAMS_MAX):
            await client.ask("/unread")
        await eventually(lambda: app.running == STREAMS_MAX)
        # Those that were reset count until their applications have ended: these do not listen.
        for number in range(1, 40, 2):
            client.h2.reset_stream(number)
        await client.flush()
        refused = await client.ask("/ping")
        assert (await client.answer(refused)).reset == ErrorCodes.REFUSED_STREAM
        assert app.most == STREAMS_MAX
        app.go_on.set()
        await eventually(lambda: app.running == 0)
        assert (await client.answer(await client.ask("/ping"))).body == b"pong"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!IBI", len(payload) << 8 | kind, flags, stream) + payload


async def enhance_your_calm(client: Client2, flood: bytes, times: int, *wrong: ErrorCodes) -> None:
    """Send it so often, and see the connection end over it."""
    async with trio.open_nursery() as nursery:

        async def pour() -> None:
            try:
                for _ in range(times):
                    await client.send(flood)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        nursery.start_soon(pour)
        await client.until(lambda: client.goaway is not None)
        nursery.cancel_scope.cancel()
    wrong = wrong or (ErrorCodes.ENHANCE_YOUR_CALM,)
    assert client.closed or (client.goaway and client.goaway.error_code in wrong)


@pytest.mark.parametrize(
    "flood",
    [
        frame(6, 0, 0, bytes(8)),
        frame(4, 0, 0),
        frame(2, 0, 1, struct.pack("!IB", 0, 1)),
        frame(8, 0, 0, struct.pack("!I", 1)),
        frame(0xAB, 0, 0, b"unknown"),
    ],
    ids=["ping", "settings", "priority", "window update", "unknown"],
)
async def test_a_flood_of_frames_that_ask_for_nothing_ends_the_connection(tmp_path: Path, flood: bytes) -> None:
    async with serving2(App(), tmp_path) as served, client2(served, tmp_path) as client:
        assert (await client.answer(await client.ask("/ping"))).body == b"pong"
        await enhance_your_calm(client, flood * 50, 200)
        await eventually(lambda: served.metrics.registry.get_sample_value("covey_http_connections") == 0)


async def test_a_flood_of_empty_data_ends_the_connection(tmp_path: Path) -> None:
    async with serving2(App(), tmp_path) as served, client2(served, tmp_path) as client:
        number = await client.ask("/echo", "POST", end=False)
        await enhance_your_calm(client, frame(0, 0, number) * 50, 200)


async def test_requests_that_are_reset_at_once_end_the_connection(tmp_path: Path) -> None:
    # CVE-2023-44487.
    app = App()
    async with serving2(app, tmp_path) as served, client2(served, tmp_path) as client:
        try:
            for _ in range(1_000):
                client.h2.reset_stream(await client.ask("/thinking"))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await client.until(lambda: False)
        assert client.closed
        assert app.most <= STREAMS_MAX
        await eventually(lambda: app.running == 0)


async def test_headers_without_end_are_refused(tmp_path: Path) -> None:
    # CVE-2024-27316: CONTINUATION frames, and none of them the last.
    async with serving2(App(), tmp_path) as served, client2(served, tmp_path) as client:
        await client.until(lambda: client.h2.remote_settings.initial_window_size == BODY_BYTES_MAX)
        await client.send(frame(1, 0, 1, b""))
        await enhance_your_calm(client, frame(9, 0, 1, b"\x00\x01a\x01b") * 20, 200, ErrorCodes.PROTOCOL_ERROR)


async def test_headers_that_are_too_large_are_refused(tmp_path: Path) -> None:
    async with serving2(App(), tmp_path) as served:
        async with client2(served, tmp_path) as client:
            number = await client.ask("/ping", headers=[("x", "a" * 200)] * 120)
            answer = await client.answer(number)
            assert answer.status == 431 or client.closed
        async with client2(served, tmp_path) as client:
            await client.ask("/ping", headers=[(f"x{number}", "a" * 4_000) for number in range(50)])
            await client.until(lambda: client.goaway is not None)
            assert client.goaway or client.closed


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/" + "a" * 9_000, "GET", 414), ("/ping", "TRACE", 501), ("*", "OPTIONS", 500)]
)
async def test_what_is_not_handed_on(tmp_path: Path, path: str, method: str, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["path"] == "*"

    async with serving2(app, tmp_path) as served, client2(served, tmp_path) as client:
        assert (await client.answer(await client.ask(path, method))).status == status


@pytest.mark.parametrize(
    "headers",
    [
        [("host", "evil.example")],
        [("connection", "close")],
        [("transfer-encoding", "chunked")],
        [("X-Upper", "a")],
        [("x", "a\r\nb: c")],
        [("x", "a\x00b")],
        [("content-length", "5")],
    ],
)
async def test_malformed_requests_never_reach_the_application(tmp_path: Path, headers: list[tuple[str, str]]) -> None:
    app = App()
    async with serving2(app, tmp_path) as served, client2(served, tmp_path) as client:
        number = await client.ask("/ping", headers=headers)
        await client.until(lambda: client.answers[number].reset is not None or client.goaway is not None)
        assert client.answers[number].status == 0
        assert app.most == 0


async def test_what_is_not_http_2_ends_the_connection(tmp_path: Path) -> None:
    async with serving2(App(), tmp_path) as served, client2(served, tmp_path, begin=False) as client:
        await client.send(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.h2.initiate_connection()
        await client.until(lambda: client.goaway is not None)
        assert client.goaway
        await eventually(lambda: served.metrics.registry.get_sample_value("covey_http_connections") == 0)


async def test_an_idle_connection_is_closed_in_time_and_a_busy_one_is_not(tmp_path: Path) -> None:
    app = App()
    async with (
        serving2(app, tmp_path, keep_alive_seconds=0.4) as served,
        client2(served, tmp_path) as idle,
        client2(served, tmp_path) as busy,
    ):
        held = await busy.ask("/held")
        await busy.until(lambda: busy.answers[held].body == b"begun")
        await idle.answer(await idle.ask("/ping"))
        await idle.until(lambda: False)
        assert idle.closed
        assert idle.goaway
        assert idle.goaway.error_code == ErrorCodes.NO_ERROR
        app.go_on.set()
        assert (await busy.answer(held)).body == b"begunended"


async def test_pings_keep_no_connection_open(tmp_path: Path) -> None:
    async with serving2(App(), tmp_path, keep_alive_seconds=0.4) as served, client2(served, tmp_path) as client:
        async with trio.open_nursery() as nursery:

            async def pings() -> None:
                try:
                    while True:
                        await client.send(frame(6, 0, 0, bytes(8)))
                        await trio.sleep(0.1)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    pass

            nursery.start_soon(pings)
            await client.until(lambda: client.goaway is not None)
            nursery.cancel_scope.cancel()
        assert client.goaway


async def test_shutdown_lets_requests_finish_and_takes_no_more(tmp_path: Path) -> None:
    app = App()
    async with serving2(app, tmp_path, drain_seconds=5) as served, client2(served, tmp_path) as client:
        async with client2(served, tmp_path) as idle:
            held = await client.ask("/held")
            await client.until(lambda: client.answers[held].body == b"begun")
            served.stop.set()
            await idle.until(lambda: False)
            assert idle.goaway
        refused = await client.ask("/ping")
        assert (await client.answer(refused)).reset == ErrorCodes.REFUSED_STREAM
        app.go_on.set()
        assert (await client.answer(held)).body == b"begunended"
        await client.until(lambda: False)
        assert client.goaway
        assert await served.shut_down() < 2.5


@pytest.mark.parametrize("path", ["/held", "/flood", "/thinking", "/unread"])
async def test_shutdown_cuts_what_does_not_finish(tmp_path: Path, path: str) -> None:
    async with serving2(App(), tmp_path, drain_seconds=0.3) as served, client2(served, tmp_path) as client:
        await client.ask(path)
        await trio.sleep(0.1)
        assert 0.2 < await served.shut_down() < 3


async def test_an_application_that_says_nothing_answers_500(tmp_path: Path) -> None:
    async with serving2(App(), tmp_path) as served, client2(served, tmp_path) as client:
        assert (await client.answer(await client.ask("/silent"))).status == 500


async def test_an_application_that_fails_within_its_answer_resets_the_stream(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise RuntimeError("a bug")

    async with serving2(broken, tmp_path) as served, client2(served, tmp_path) as client:
        answer = await client.answer(await client.ask("/ping"))
        assert (answer.body, answer.reset) == (b"begun", ErrorCodes.INTERNAL_ERROR)
    assert any(r.exc_info and "a bug" in str(r.exc_info[1]) for r in caplog.records)
    caplog.clear()


async def test_idle_connections_make_room(tmp_path: Path) -> None:
    async with (
        serving2(App(), tmp_path, connections_max=2) as served,
        client2(served, tmp_path) as one,
        client2(served, tmp_path) as two,
    ):
        for client in (one, two):
            assert (await client.answer(await client.ask("/ping"))).status == 200
        async with client2(served, tmp_path) as three:
            assert (await three.answer(await three.ask("/ping"))).status == 200
            await one.until(lambda: False)
            assert one.closed
