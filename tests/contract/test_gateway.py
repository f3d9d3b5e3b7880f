"""The gateway over real sockets: what OpenAI's API promises its clients, to the byte."""

import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import trio
from gateway_harness import Gateway, chat_body, gateway
from http_harness import Answer, eventually

from covey.bus.replies import Emit
from covey.contracts.inference import ChatDelta, ChatRequest, Usage
from covey.contracts.keys import MINT_BYTES, mint
from covey.dialects.problems import TABLE
from covey.errors import CODES, CallError

CHAT_PATH = "/v1/chat/completions"
USAGE_DETAILS = {
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that a client or a back end does is an error of the gateway's."""
    yield
    loud = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
    assert not loud, [r.getMessage() + (r.exc_text or "") for r in loud]


def error_of(answer: Answer) -> dict[str, Any]:
    body = json.loads(answer.body)
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["code"], str)
    assert answer.headers["content-type"] == "application/json"
    assert "x-request-id" in answer.headers
    assert "openai-processing-ms" in answer.headers
    return error


def events_of(body: bytes) -> list[Any]:
    assert body.endswith(b"\n\n")
    return [
        json.loads(event[6:]) if event != b"data: [DONE]" else "[DONE]"
        for event in body[:-2].split(b"\n\n")
        if event != b": ping"
    ]


# Answers


async def test_a_whole_completion() -> None:
    async with gateway() as node:
        answer = await node.ask(CHAT_PATH, chat_body("one  two\nthree €🦆"))
        body = json.loads(answer.body)
        assert answer.status == 200
        assert body["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "one  two\nthree €🦆", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ]
        assert body["object"] == "chat.completion"
        assert body["model"] == "echo"
        assert re.fullmatch(r"chatcmpl-[0-9a-f]{24}", body["id"])
        assert body["usage"] == {
            "prompt_tokens": 4,
            "completion_tokens": 4,
            "total_tokens": 8,
            **USAGE_DETAILS,
        }
        assert node.inference.requests[0].tenant


@pytest.mark.parametrize("include_usage", [None, False, True])
async def test_a_stream_to_the_byte(*, include_usage: bool | None) -> None:
    options = {} if include_usage is None else {"stream_options": {"include_usage": include_usage}}
    async with gateway() as node:
        answer = await node.ask(CHAT_PATH, chat_body("ein € 🦆", stream=True, **options))
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    made = json.loads(answer.body[6:].split(b"\n")[0])
    head = (
        f'data: {{"id":"{made["id"]}","object":"chat.completion.chunk","created":{made["created"]},"model":"echo",'
        f'"system_fingerprint":null,"choices":'
    )
    null_usage = ',"usage":null' if include_usage else ""

    def chunk(delta: str, finish: str = "null") -> str:
        return f'{head}[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}]{null_usage}}}\n\n'

    expected = chunk('{"role":"assistant","content":""}')
    expected += "".join(chunk(f'{{"content":"{word}"}}') for word in ("ein", " €", " 🦆"))
    expected += chunk("{}", '"stop"')
    if include_usage:
        counts = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6, **USAGE_DETAILS}
        usage = json.dumps(counts, separators=(",", ":"))
        expected += f'{head}[],"usage":{usage}}}\n\n'
    assert answer.body.decode() == expected + "data: [DONE]\n\n"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fields", "said", "finish"),
    [
        ({"max_tokens": 2}, "one two", "length"),
        ({"max_completion_tokens": 1, "max_tokens": 2}, "one", "length"),
        ({"stop": " three"}, "one two", "stop"),
        ({"stop": ["nothing", " two"]}, "one", "stop"),
    ],
)
async def test_why_an_answer_ended(fields: dict[str, Any], said: str, finish: str, *, stream: bool) -> None:
    async with gateway() as node:
        answer = await node.ask(CHAT_PATH, chat_body(stream=stream, **fields))
    if not stream:
        choice = json.loads(answer.body)["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (said, finish)
        return
    *chunks, done = events_of(answer.body)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == said
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + [finish]


async def test_an_answer_without_a_word_is_still_a_stream() -> None:
    async with gateway() as node:
        answer = await node.ask(CHAT_PATH, chat_body("", stream=True))
    role, finish, done = events_of(answer.body)
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert (finish["choices"][0]["finish_reason"], done) == ("stop", "[DONE]")


async def test_what_waits_goes_out_in_one_write() -> None:
    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        for _ in range(40):
            await emit(ChatDelta("x", tokens=1))
        await emit(ChatDelta(finish="stop", usage=Usage(1, 40)))

    async with gateway() as node:
        node.inference.script = script
        async with node.asking(chat_body(model="scripted", stream=True)) as client:
            await client.head()
            chunk_sizes = []
            while size := int(await client.until(b"\r\n"), 16):
                chunk_sizes.append(size)
                await client.exactly(size + 2)
    assert len(chunk_sizes) <= 5


async def test_silence_is_filled_with_comments() -> None:
    go_on = trio.Event()

    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await go_on.wait()
        await emit(ChatDelta("late", tokens=1))
        await emit(ChatDelta(finish="stop", usage=Usage(1, 1)))

    async with gateway(ping_seconds=0.05) as node:
        node.inference.script = script
        async with node.asking(chat_body(model="scripted", stream=True)) as client:
            assert (await client.head())[0] == 200
            first = await client.until(b": ping\n\n")
            assert b'"role":"assistant"' in first
            await client.until(b": ping\n\n")
            go_on.set()
            rest = await client.until(b"[DONE]\n\n")
            assert b'"content":"late"' in rest
            assert b"role" not in rest


# Refusals


async def test_every_code_has_a_status() -> None:
    assert set(TABLE) == set(CODES)


async def test_one_answer_to_every_key_that_is_not_valid() -> None:
    async with gateway() as node:
        revoked = node.auth.key()
        node.auth.revoke(revoked)
        unknown = mint(bytes(MINT_BYTES)).text
        wrong_secret = node.key[:-8] + ("a" if node.key[-8] != "a" else "b") + node.key[-7:]
        bodies = set()
        for key in (
            revoked,
            unknown,
            wrong_secret,
            "cvy_",
            "sk-nonsense",
            "x" * 5_000,
            "é",
            node.key + "x",
            "cvy_\xb2",
        ):
            answer = await node.ask("/v1/models", headers=f"Authorization: Bearer {key}\r\n")
            assert answer.status == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            error = error_of(answer)
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
            bodies.add(answer.body)
        assert len(bodies) == 1
        assert node.auth.verified == 2  # what has not the shape of a key never reaches the store


@pytest.mark.parametrize(
    "headers", ["", "Authorization: Basic eDp5\r\n", "Authorization: Bearer\r\n", "x-api-key: \r\n"]
)
@pytest.mark.parametrize("path", [CHAT_PATH, "/v1/models", "/v1/nothing", "/v1"])
async def test_no_path_without_a_key(path: str, headers: str) -> None:
    async with gateway() as node:
        for method in ("GET", "POST", "DELETE", "OPTIONS", "PUT"):
            answer = await node.ask(path, headers=headers, method=method)
            assert answer.status == 401
            assert error_of(answer)["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "spelling", ["Authorization: Bearer {}", "authorization: bearer  {}", "X-API-Key: {}", "api-key: {}"]
)
async def test_each_spelling_of_a_credential(spelling: str) -> None:
    async with gateway() as node:
        answer = await node.ask("/v1/models", headers=spelling.format(node.key) + "\r\n")
        assert answer.status == 200


async def test_two_credentials_must_agree() -> None:
    async with gateway() as node:
        other = node.auth.key()
        same = f"Authorization: Bearer {node.key}\r\nx-api-key: {node.key}\r\n"
        assert (await node.ask("/v1/models", headers=same)).status == 200
        for pair in (
            f"Authorization: Bearer {node.key}\r\nx-api-key: {other}\r\n",
            f"Authorization: Bearer {node.key}\r\nAuthorization: Bearer {other}\r\n",
            f"api-key: {node.key}\r\nx-api-key: {other}\r\n",
        ):
            assert (await node.ask("/v1/models", headers=pair)).status == 401


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/v1/nothing", None, 404, "route_not_found"),
        ("GET", "/v1", None, 404, "route_not_found"),
        ("POST", "/v1/chat/completions/", {}, 404, "route_not_found"),
        ("POST", "/v1//chat/completions", {}, 404, "route_not_found"),
        ("GET", CHAT_PATH, None, 405, "method_not_allowed"),
        ("DELETE", "/v1/models/echo", None, 405, "method_not_allowed"),
        ("GET", "/v1/models/nonsense", None, 404, "model_not_found"),
        ("GET", "/v1/models/", None, 404, "model_not_found"),
        ("POST", CHAT_PATH, chat_body(model="nonsense"), 404, "model_not_found"),
        ("POST", CHAT_PATH, chat_body(model="x" * 5_000), 400, "invalid_value"),
        ("POST", CHAT_PATH, b"{", 400, "invalid_value"),
        ("POST", CHAT_PATH, b"", 400, "invalid_value"),
        ("POST", CHAT_PATH, chat_body(temperature=9), 400, "invalid_value"),
        ("POST", CHAT_PATH, chat_body(modalities=["audio"]), 400, "unsupported_value"),
    ],
)
async def test_refusals(method: str, path: str, body: Any, status: int, code: str) -> None:
    async with gateway() as node:
        answer = await node.ask(path, body, method=method)
        assert answer.status == status
        error = error_of(answer)
        assert (error["type"], error["code"]) == ("invalid_request_error", code)
        assert answer.headers["x-should-retry"] == "false"
        assert len(error["message"]) < 500
        assert node.inference.requests == []
        assert status != 405 or answer.headers["allow"]


async def test_a_body_must_be_json_by_name() -> None:
    async with gateway() as node:
        for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            headers = f"Authorization: Bearer {node.key}\r\nContent-Type: {content_type}\r\n"
            answer = await node.ask(CHAT_PATH, chat_body(), headers=headers)
            assert answer.status == 415
            error_of(answer)
        headers = f"Authorization: Bearer {node.key}\r\nContent-Type: Application/JSON; charset=utf-8\r\n"
        assert (await node.ask(CHAT_PATH, chat_body(), headers=headers)).status == 200


async def test_a_body_too_large_and_one_too_slow() -> None:
    async with gateway(body_bytes_max=1_000, body_seconds_max=0.2) as node:
        answer = await node.ask(CHAT_PATH, chat_body("x" * 2_000))
        assert answer.status == 413
        assert error_of(answer)["code"] == "request_too_large"
        async with node.served.client() as client:
            await client.send(node.request(CHAT_PATH, chat_body())[:-5])
            answer = await client.answer()
            assert answer.status == 408
            assert error_of(answer)["code"] == "slow_body"
            assert await client.rest() == b""


async def test_a_key_for_some_models_sees_and_uses_those() -> None:
    async with gateway() as node:
        headers = f"Authorization: Bearer {node.auth.key(models=('scripted',))}\r\n"
        listed = json.loads((await node.ask("/v1/models", headers=headers)).body)
        assert [model["id"] for model in listed["data"]] == ["scripted"]
        assert (await node.ask("/v1/models/echo", headers=headers)).status == 404
        answer = await node.ask(CHAT_PATH, chat_body(), headers=headers)
        assert answer.status == 403
        error = error_of(answer)
        assert (error["type"], error["code"], error["param"]) == ("permission_error", "model_not_allowed", "model")


async def test_the_models() -> None:
    async with gateway() as node:
        listed = json.loads((await node.ask("/v1/models")).body)
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == ["echo", "scripted"]
        one = json.loads((await node.ask("/v1/models/scripted")).body)
        assert one == listed["data"][1]
        assert (one["object"], one["created"], one["owned_by"]) == ("model", 7, "covey")
        async with node.served.client() as client:
            await client.send(node.request("/v1/models", method="HEAD"))
            answer = await client.answer(head_only=True)
            assert answer.status == 200
            assert int(answer.headers["content-length"]) > 50


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [("abc-1.2_X", True), ("a" * 64, True), ("a" * 65, False), ("a b", False), ("é", False), ("", False)],
)
async def test_a_request_id_is_kept_where_it_is_sane(sent: str, *, echoed: bool) -> None:
    async with gateway() as node:
        for path, key in (("/v1/models", node.key), ("/v1/models", "wrong")):
            headers = f"Authorization: Bearer {key}\r\nx-request-id: {sent}\r\n"
            answer = await node.ask(path, headers=headers)
            got = answer.headers["x-request-id"]
            assert got == sent if echoed else re.fullmatch(r"req_[0-9a-f]{24}", got)


async def test_limits_are_told_and_kept() -> None:
    async with gateway() as node:
        headers = f"Authorization: Bearer {node.auth.key(requests_per_minute=2)}\r\n"
        first = await node.ask(CHAT_PATH, chat_body(), headers=headers)
        assert (first.status, first.headers["x-ratelimit-limit-requests"]) == (200, "2")
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert re.fullmatch(r"(\d+m)?(\d+s)?(\d+ms)?", first.headers["x-ratelimit-reset-requests"])
        second = await node.ask(CHAT_PATH, chat_body(model="nonsense"), headers=headers)
        assert (second.status, second.headers["x-ratelimit-remaining-requests"]) == (404, "0")
        third = await node.ask(CHAT_PATH, chat_body(), headers=headers)
        assert third.status == 429
        error = error_of(third)
        assert (error["type"], error["code"]) == ("rate_limit_error", "requests")
        assert third.headers["x-ratelimit-remaining-requests"] == "0"
        assert 28 < int(third.headers["retry-after"]) <= 30
        assert 28_000 < int(third.headers["retry-after-ms"]) <= 30_000
        assert third.headers["x-should-retry"] == "true"
        assert (await node.ask(CHAT_PATH, chat_body())).status == 200  # another key


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (CallError("loading", "It loads.", retry_after_seconds=2.5), 503, "model_loading"),
        (CallError("upstream", "It failed."), 502, "upstream_failed"),
        (CallError("no_capacity", "It is full."), 503, "no_capacity"),
        (CallError("unsupported", "It cannot.", param="tools"), 400, "unsupported_value"),
        (CallError("deadline", "Too late."), 504, "timeout"),
        (
            CallError("too_large", "x", reason="context_length_exceeded", param="messages"),
            413,
            "context_length_exceeded",
        ),
        (CallError("peer_lost", "It went away."), 502, "upstream_lost"),
    ],
)
async def test_a_failure_before_the_first_token_has_its_own_status(
    error: CallError, status: int, code: str, *, stream: bool
) -> None:
    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        raise error

    async with gateway() as node:
        node.inference.script = script
        answer = await node.ask(CHAT_PATH, chat_body(model="scripted", stream=stream))
        assert (answer.status, error_of(answer)["code"]) == (status, code)
        if error.code == "loading":
            assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("3", "2500")
        assert node.sample("covey_requests_total", route=CHAT_PATH, model="scripted", outcome=error.code) == 1


@pytest.mark.parametrize("failure", [CallError("peer_lost", "The node went away."), None])
async def test_a_stream_never_pretends_to_have_ended_well(failure: CallError | None) -> None:
    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await emit(ChatDelta("half", tokens=1))
        await trio.sleep(0.05)
        if failure is not None:
            raise failure

    async with gateway() as node:
        node.inference.script = script
        answer = await node.ask(CHAT_PATH, chat_body(model="scripted", stream=True))
        assert answer.status == 200
        assert b"[DONE]" not in answer.body
        assert b'"finish_reason":"' not in answer.body
        last = answer.body.split(b"\n\n")[-2]
        assert last.startswith(b"event: error\ndata: {")
        error = json.loads(last.partition(b"data: ")[2])["error"]
        assert error["code"] == ("upstream_lost" if failure else "upstream_failed")
        whole = await node.ask(CHAT_PATH, chat_body(model="scripted"))
        assert whole.status == 502
        error_of(whole)


async def test_a_bug_in_a_back_end_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        raise RuntimeError("secret detail")

    async with gateway() as node:
        node.inference.script = script
        answer = await node.ask(CHAT_PATH, chat_body(model="scripted"))
        assert (answer.status, error_of(answer)["code"]) == (500, "internal_error")
        assert b"secret detail" not in answer.body
    caplog.clear()


async def test_nobody_to_ask() -> None:
    async with gateway(auth=False) as node:
        answer = await node.ask("/v1/models")
        assert (answer.status, answer.headers["x-should-retry"]) == (503, "true")
    async with gateway(inference=False) as node:
        answer = await node.ask(CHAT_PATH, chat_body())
        assert (answer.status, error_of(answer)["code"]) == (503, "no_capacity")
        assert json.loads((await node.ask("/v1/models")).body)["data"] == []


async def test_draining_refuses_new_work() -> None:
    async with gateway() as node:
        node.parts.lifecycle.draining = True
        answer = await node.ask(CHAT_PATH, chat_body())
        assert (answer.status, error_of(answer)["code"]) == (503, "draining")
        assert answer.headers["retry-after"] == "1"


async def test_requests_in_flight_are_capped() -> None:
    started = trio.Event()

    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        started.set()
        await trio.sleep_forever()

    async with gateway(requests_in_flight_max=1) as node:
        node.inference.script = script
        async with node.asking(chat_body(model="scripted")):
            await started.wait()
            assert node.sample("covey_num_requests_in_flight") == 1
            answer = await node.ask(CHAT_PATH, chat_body())
            assert (answer.status, error_of(answer)["code"]) == (503, "no_capacity")
        await eventually(lambda: node.inference.running == 0)
        assert (await node.ask(CHAT_PATH, chat_body())).status == 200


# Clients that leave, and servers that stop


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["fin", "rst", "half"])
async def test_a_client_that_leaves_stops_the_engine(how: str, *, stream: bool) -> None:
    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await emit(ChatDelta("one", tokens=1))
        await emit(ChatDelta(" two", tokens=1))
        await trio.sleep_forever()

    async with gateway() as node:
        node.inference.script = script
        async with node.asking(chat_body(model="scripted", stream=stream)) as client:
            if stream:
                await client.until(b" two")
            else:
                await eventually(lambda: node.inference.running == 1)
                await trio.sleep(0.05)
            client.hang_up(how)
            assert await eventually(lambda: node.inference.running == 0) < 1
        labels = {"route": CHAT_PATH, "model": "scripted", "outcome": "cancelled"}
        await eventually(lambda: node.sample("covey_requests_total", **labels) == 1)
        assert node.sample("covey_generation_tokens_total", model="scripted") == 2  # what was delivered is accounted


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_with_its_answer_has_had_a_good_one(*, stream: bool) -> None:
    async with gateway() as node:
        for _ in range(5):
            await node.ask(CHAT_PATH, chat_body(stream=stream))
        labels = {"route": CHAT_PATH, "model": "echo"}
        await eventually(lambda: node.sample("covey_requests_total", **labels, outcome="ok") == 5)
        assert node.sample("covey_requests_total", **labels, outcome="cancelled") == 0
        assert node.sample("covey_bus_calls_total", method="inference.chat", outcome="ok") == 5


async def test_a_silent_engine_is_given_up_in_spite_of_the_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        await trio.sleep_forever()

    async with gateway(ping_seconds=0.05, request_seconds_max=0.5) as node:
        node.inference.script = script
        answer = await node.ask(CHAT_PATH, chat_body(model="scripted", stream=True))
        assert b": ping" in answer.body
        assert b"[DONE]" not in answer.body
        assert b"timeout" in answer.body


async def test_a_reader_that_stops_reading_costs_a_bounded_time() -> None:
    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        while True:
            await emit(ChatDelta("x" * 10_000, tokens=1))

    async with gateway(http={"write_seconds_max": 0.3}) as node:
        node.inference.script = script
        async with node.served.client(receive_buffer_bytes=4096) as client:
            await client.send(node.request(CHAT_PATH, chat_body(model="scripted", stream=True)))
            await client.until(b"xxx")
            await eventually(lambda: node.inference.running == 0)


@pytest.mark.parametrize("reading", [True, False])
async def test_shutdown_cuts_a_stream_without_calling_it_done(*, reading: bool) -> None:
    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        while True:
            await emit(ChatDelta("x" * 10_000, tokens=1))
            await trio.sleep(0.001)

    async with gateway(drain_seconds=0.4) as node:
        node.inference.script = script
        async with node.served.client(receive_buffer_bytes=4096) as client, trio.open_nursery() as nursery:
            await client.send(node.request(CHAT_PATH, chat_body(model="scripted", stream=True)))
            await client.until(b"xxx")
            got: list[bytes] = []

            async def read() -> None:
                got.append(await client.rest())

            if reading:
                nursery.start_soon(read)
            await trio.sleep(0.1)
            assert 0.3 < await node.served.shut_down() < 3
        assert not reading or b"[DONE]" not in got[0]


async def test_shutdown_lets_a_stream_end() -> None:
    async def script(request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        for _ in range(5):
            await emit(ChatDelta("x", tokens=1))
            await trio.sleep(0.05)
        await emit(ChatDelta(finish="stop", usage=Usage(1, 5)))

    async with gateway(drain_seconds=3) as node:
        node.inference.script = script
        async with node.asking(chat_body(model="scripted", stream=True)) as client, node.served.client() as idle:
            await idle.send(node.request("/v1/models"))
            await idle.answer()
            await client.until(b"data:")
            assert await node.served.shut_down() < 2.5
            assert (await client.rest()).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


# The base's own paths


async def test_health_and_metrics() -> None:
    async with gateway() as node:
        for method in ("GET", "HEAD"):
            async with node.served.client() as client:
                await client.send(node.request("/healthz", headers="", method=method))
                assert (await client.answer(head_only=method == "HEAD")).status == 200
        assert (await node.ask("/healthz", headers="", method="POST")).status == 405
        ready = await node.ask("/readyz", headers="")
        assert (ready.status, json.loads(ready.body)) == (200, {"status": "ready"})
        node.parts.lifecycle.missing["inference"] = "the model is loading"
        waiting = await node.ask("/readyz", headers="")
        assert waiting.status == 503
        assert json.loads(waiting.body) == {"status": "waiting", "missing": {"inference": "the model is loading"}}
        await node.ask(CHAT_PATH, chat_body())
        shown = await node.ask("/metrics", headers="")
        assert shown.status == 200
        assert b'covey_requests_total{model="echo",outcome="ok",route="/v1/chat/completions"} 1.0' in shown.body
        assert node.key.encode() not in shown.body
        assert (await node.ask("/metrics/x", headers="")).status == 404
        assert (await node.ask("/elsewhere", headers="")).status == 404


async def test_a_strange_host_gets_nothing() -> None:
    async with gateway() as node:
        request = node.request("/v1/models").replace(b"localhost", b"evil.example")
        async with node.served.client() as client:
            await client.send(request)
            assert (await client.answer()).status == 421
            assert await client.rest() == b""
        assert node.auth.verified == 0


async def test_the_use_of_keys_is_reported() -> None:
    async with gateway() as node:
        await node.ask("/v1/models")
    assert list(node.auth.used_at.values()) == [1_700_000_000]


async def _many(node: Gateway, count: int) -> list[int]:
    statuses: list[int] = []

    async def one(number: int) -> None:
        answer = await node.ask(CHAT_PATH, chat_body(f"{number} is mine", stream=number % 2 == 0))
        assert f"{number}".encode() in answer.body
        statuses.append(answer.status)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
    return statuses


async def test_answers_do_not_mix() -> None:
    async with gateway() as node:
        assert await _many(node, 60) == [200] * 60
        assert node.sample("covey_num_requests_in_flight") == 0
