"""What the openai and ollama back ends make of servers that misbehave, and of secrets that must stay at home."""

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from engine_world import Answer, free_port, listed
from faulty_server import Scripted, chunked, reply, scripted, stream_head

from covey.backends.base import Backend, BackendParts
from covey.backends.ollama import OllamaConfig, open_ollama
from covey.backends.ollama_answers import OllamaAnswers
from covey.backends.openai import OpenAiConfig, open_openai
from covey.backends.openai_upstream import Upstream, open_server_client
from covey.contracts.inference import ChatRequest, Message, ToolCall, Usage
from covey.errors import CallError
from covey.telemetry.logs import set_request_id
from covey.telemetry.metrics import Metrics

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'http:ResourceWarning")
PARTS = BackendParts(Path(), Metrics())
ASK = ChatRequest("m", (Message("user", "hi"),), 5)
Bytes = bytes | Callable[[trio.SocketStream], Awaitable[None]]


def sse(text: str | None = None, finish: str | None = None) -> bytes:
    delta = {"content": text} if text else {}
    return b"data: " + json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]}).encode() + b"\n\n"


def used(tokens: str) -> bytes:
    return b'data: {"usage": {"completion_tokens": ' + tokens.encode() + b"}}\n\n"


DONE = b"data: [DONE]\n\n"


def line(**fields: object) -> bytes:
    return json.dumps({"model": "m", "created_at": "2025-01-01T00:00:00Z", **fields}).encode() + b"\n"


def part(text: str) -> bytes:
    return line(message={"role": "assistant", "content": text}, done=False)


FAILED = line(message={"role": "assistant"}, done=True, done_reason="error")
ENDED = {"message": {"role": "assistant"}, "done": True, "done_reason": "stop"}
LAST = line(**ENDED, eval_count=2, prompt_eval_count=9)
DEEP = b"[" * 100_000
SURROGATE = {
    "message": {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": "\ud800"}}}]}
}


@asynccontextmanager
async def serving(kind: str, *answers: bytes, stall: bool = False) -> AsyncIterator[tuple[Backend, Scripted]]:
    """A back end before a server that gives these answers in turn, the last for ever; `stall`: and then hangs."""
    left = list(answers)

    async def script(stream: trio.SocketStream, path: str, headers: dict[str, str]) -> None:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if answer:
            await stream.send_all(answer)
        if stall:
            await trio.sleep_forever()

    async with scripted(script) as server:
        if kind == "openai":
            upstream = Upstream(
                name="it", base_url=f"{server.url}/v1", first_token_seconds=0.5, idle_seconds=0.3, connect_seconds=1.0
            )
            opened = open_openai(OpenAiConfig((upstream,)), PARTS)
        else:
            server.models = b'{"models": [{"model": "m"}]}'
            opened = open_ollama(OllamaConfig(server.url, first_token_seconds=0.5, idle_seconds=0.3), PARTS)
        async with opened as backend:
            await until_asked(backend)
            yield backend, server


async def until_asked(backend: Backend) -> None:
    """A busy machine may take longer than a start waits."""
    with trio.fail_after(10):
        for one in getattr(backend, "servers", [backend]):
            await one.asked.wait()


async def ask(backend: Backend, answer: Answer | None = None) -> Answer:
    answer = answer or Answer()
    await backend.generate(ASK, answer.take)
    return answer


async def nobody(progress: object) -> None: ...


GOOD = {
    "openai": stream_head() + chunked(sse("a"), sse("b"), sse(finish="stop"), DONE),
    "ollama": stream_head("application/x-ndjson") + chunked(part("a"), part("b"), LAST),
}
kinds = pytest.mark.parametrize("kind", ["openai", "ollama"])


@pytest.mark.parametrize("arguments", ["[1]", "x", '{"a":' + "[" * 100_000])
async def test_arguments_of_an_earlier_call_that_ollama_cannot_be_told(arguments: str) -> None:
    async with serving("ollama", GOOD["ollama"]) as (backend, _):
        past = (Message("user", "x"), Message("assistant", "", tool_calls=(ToolCall("1", "f", arguments),)))
        with pytest.raises(CallError, match="no JSON object") as caught:
            await OllamaAnswers(backend._found(), OllamaConfig(), tools=True).generate(  # type: ignore[attr-defined]
                ChatRequest("m", past), Answer().take
            )
        assert caught.value.code == "invalid"


@kinds
async def test_a_good_answer(kind: str) -> None:
    async with serving(kind, GOOD[kind]) as (backend, server):
        answer = await ask(backend)
        assert answer.text == "ab"
        assert answer.deltas[-1].usage is not None
        assert answer.deltas[-1].usage.completion_tokens == 2
        assert backend.models()[0].in_flight == 0
        body = json.loads(server.requests[0][2])
        assert body["stream"] is True
        assert 5 in (body.get("max_tokens"), body.get("options", {}).get("num_predict"))


async def test_the_server_is_told_the_id_of_the_request() -> None:
    async with serving("openai", GOOD["openai"]) as (backend, server):
        for request_id, sent in (("req_7", "req_7"), ("", None), ("a\r\nb: c", None)):
            set_request_id(request_id)
            try:
                await ask(backend)
            finally:
                set_request_id("")
            assert server.requests[-1][1].get("x-request-id") == sent


@pytest.mark.parametrize(
    ("kind", "answer", "code"),
    [
        ("openai", reply(200, b'{"choices": []}'), "upstream"),
        ("openai", reply(200, b"<html>It works!</html>", "text/html"), "upstream"),
        ("openai", reply(200, b"", "text/event-stream"), "upstream"),
        ("openai", stream_head() + chunked(b"data: nonsense\n\n"), "upstream"),
        ("openai", stream_head() + chunked(sse("a"), DONE), "upstream"),
        ("openai", stream_head() + chunked(sse("a"), end=True), "upstream"),
        ("openai", stream_head() + chunked(sse("a"), end=False), "upstream"),
        ("openai", stream_head() + chunked(sse("a"), b'data: {"error": {"message": "boom"}}\n\n'), "upstream"),
        ("openai", stream_head() + b"zz\r\nnot chunked", "upstream"),
        ("openai", b"SSH-2.0-OpenSSH_9.9\r\n", "upstream"),
        ("openai", b"", "upstream"),
        ("openai", reply(500, b"<html>oops"), "upstream"),
        ("openai", reply(401, b'{"error": {"message": "bad key"}}'), "upstream"),
        ("openai", reply(404, b'{"error": {"message": "no model"}}'), "not_found"),
        ("openai", reply(429, b"{}", "application/json", "Retry-After: 9"), "no_capacity"),
        ("openai", reply(307, b"", "text/plain", "Location: http://127.0.0.1:9/v1/chat/completions"), "upstream"),
        ("openai", stream_head() + chunked(sse(finish="stop"), used("-5")), "upstream"),
        ("openai", stream_head() + chunked(sse(finish="stop"), used("1" + "0" * 30)), "upstream"),
        ("openai", stream_head() + chunked(b'data: {"x": ' + DEEP + b"\n\n"), "upstream"),
        ("openai", reply(200, b"not packed", "text/event-stream", "Content-Encoding: gzip"), "upstream"),
        ("openai", reply(500, b'{"error": ' + DEEP), "upstream"),
        ("openai", reply(500, b"not packed", "application/json", "Content-Encoding: gzip"), "upstream"),
        ("openai", reply(429, b"{}", "application/json", "Retry-After: \u00b2"), "no_capacity"),
        ("openai", reply(429, b"{}", "application/json", "Retry-After: " + "9" * 307), "no_capacity"),
        ("ollama", stream_head() + chunked(part("a"), b'{"message": ' + DEEP + b"\n"), "upstream"),
        ("ollama", stream_head() + chunked(part("a"), b'{"eval_count": ' + b"9" * 5000 + b"}\n"), "upstream"),
        ("ollama", stream_head() + chunked(part("a"), line(**{**ENDED, "eval_count": -5})), "upstream"),
        ("ollama", stream_head() + chunked(part("a"), line(**{**ENDED, "eval_count": 10**30})), "upstream"),
        ("ollama", stream_head() + chunked(part("a"), line(**SURROGATE)), "upstream"),
        ("ollama", reply(200, b'{"message": 1}', "application/x-ndjson"), "upstream"),
        ("ollama", reply(200, b"<html>It works!</html>", "text/html"), "upstream"),
        ("ollama", reply(200, b"[]\n"), "upstream"),
        ("ollama", reply(200, b""), "upstream"),
        ("ollama", stream_head() + chunked(part("a")), "upstream"),
        ("ollama", stream_head() + chunked(part("a"), end=False), "upstream"),
        ("ollama", stream_head() + chunked(part("a"), b'{"error": "boom"}\n'), "upstream"),
        ("ollama", stream_head() + chunked(FAILED), "upstream"),
        ("ollama", b"SSH-2.0-OpenSSH_9.9\r\n", "upstream"),
        ("ollama", b"", "upstream"),
        ("ollama", reply(500, b'{"error": "llama runner process has terminated"}'), "upstream"),
        ("ollama", reply(404, b'{"error": "model \'m\' not found"}'), "not_found"),
        ("ollama", reply(503, b'{"error": "server busy"}'), "no_capacity"),
        ("ollama", reply(400, b'{"error": "the input exceeds the context length"}'), "invalid"),
        ("ollama", reply(307, b"", "text/plain", "Location: http://127.0.0.1:9/api/chat"), "upstream"),
    ],
)  # fmt: skip
async def test_whatever_is_not_an_answer_is_never_taken_for_one(kind: str, answer: bytes, code: str) -> None:
    async with serving(kind, answer) as (backend, _):
        got = Answer()
        with pytest.raises(CallError) as caught:
            await ask(backend, got)
        assert caught.value.code == code
        assert all(delta.finish is None for delta in got.deltas)
        assert backend.models()[0].in_flight == 0
        if code == "no_capacity":
            assert 0 < (caught.value.retry_after_seconds or 0) <= 3600


@kinds
@pytest.mark.parametrize("after", ["nothing", "head", "token", "pings"])
async def test_a_server_that_falls_silent_is_given_up(kind: str, after: str) -> None:
    first = sse("a") if kind == "openai" else part("a")
    start = {"nothing": b"", "head": stream_head(), "token": stream_head() + chunked(first, end=False)}
    start["pings"] = stream_head() + chunked(*[b": ping\n\n"] * 3, end=False)
    if kind == "ollama" and after == "pings":
        pytest.skip("Ollama does not ping")
    async with serving(kind, start[after], stall=True) as (backend, _):
        with trio.fail_after(5), pytest.raises(CallError) as caught:
            await ask(backend)
        assert caught.value.code == "upstream"


@kinds
async def test_a_server_that_is_gone_fails_and_comes_back_by_itself(kind: str) -> None:
    port = free_port()
    if kind == "openai":
        upstream = Upstream(name="it", base_url=f"http://127.0.0.1:{port}/v1")
        opened = open_openai(OpenAiConfig((upstream,), refresh_seconds=0.01), PARTS)
    else:
        opened = open_ollama(OllamaConfig(f"http://127.0.0.1:{port}", refresh_seconds=0.01), PARTS)
    async with opened as backend:
        assert backend.models() == ()
        with pytest.raises(CallError):
            await ask(backend)

        async def handle(stream: trio.SocketStream) -> None:
            async with stream:
                await stream.receive_some()
                await stream.send_all(reply(200, b'{"data": [{"id": "m"}], "models": [{"model": "m"}]}'))

        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_tcp, handle, port)
            with trio.fail_after(10):
                while not backend.models():  # noqa: ASYNC110  the back end's own polling is what is tested
                    await trio.sleep(0.01)
            assert backend.models()[0].state == "remote"
            nursery.cancel_scope.cancel()


async def test_only_a_request_that_nothing_answered_is_sent_again() -> None:
    async with serving("openai", b"", GOOD["openai"]) as (backend, server):
        assert (await ask(backend)).text == "ab"
        assert len(server.requests) == 2
    async with serving("openai", reply(500, b""), GOOD["openai"]) as (backend, server):
        with pytest.raises(CallError):
            await ask(backend)
        assert len(server.requests) == 1


async def test_usage_is_counted_where_the_server_gives_none() -> None:
    async with serving("openai", GOOD["openai"]) as (backend, _):
        assert (await ask(backend)).deltas[-1].usage == Usage(4, 2)


async def test_a_server_that_lists_nonsense_is_named_and_offers_nothing() -> None:
    async with serving("openai", b"") as (backend, server):
        assert backend.models()[0].context_tokens == 99
        for said in (b"<html>", b'{"data": ' + DEEP, b'{"data": [{"id": "m", "max_model_len": 1%030d}]}' % 0):
            server.models = said
            for one in backend.servers:
                await one.refresh()
            assert backend.models()[0].state == "failed"
            assert "no list of models" in backend.models()[0].detail
        # A name of a megabyte, with all the others, would not fit in what the node answers to gateways.
        server.models = b'{"data": [{"id": "%s"}, {"id": ""}, {"id": "ok"}]}' % (b"x" * 1_000_000)
        await backend.servers[0].refresh()
        assert [one.name for one in backend.models()] == ["ok"]


async def test_patterns_choose_the_models() -> None:
    async def silent(stream: trio.SocketStream, path: str, headers: dict[str, str]) -> None: ...

    async with scripted(silent) as server:
        server.models = json.dumps({"data": [{"id": name} for name in ("gpt-4", "gpt-5", "whisper")]}).encode()
        upstream = Upstream(name="it", base_url=f"{server.url}/v1", models=("gpt-*",))
        async with open_openai(OpenAiConfig((upstream,)), PARTS) as backend:
            assert [status.name for status in backend.models()] == ["gpt-4", "gpt-5"]
            with pytest.raises(CallError) as caught:
                await ask(backend)
            assert caught.value.code == "not_found"
            with pytest.raises(CallError) as caught:
                await backend.pull("m", nobody)
            assert caught.value.code == "unsupported"


# Secrets


async def test_a_key_goes_to_its_own_host_and_nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_KEY", "sk-first")
    (tmp_path / "key").write_text("sk-second\n")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    async def script(stream: trio.SocketStream, path: str, headers: dict[str, str]) -> None:
        await stream.send_all(GOOD["openai"])

    async with scripted(script) as server:
        for fields, key in (
            ({"api_key_env": "MY_KEY"}, "sk-first"),
            ({"api_key_file": str(tmp_path / "key")}, "sk-second"),
        ):
            upstream = Upstream(name="it", base_url=f"{server.url}/v1", **fields)
            async with open_openai(OpenAiConfig((upstream,)), PARTS) as backend:
                await ask(backend)
                assert server.requests[-1][1]["authorization"] == f"Bearer {key}"


async def test_ollama_gets_no_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "secret")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with serving("ollama", GOOD["ollama"]) as (backend, server):
        await ask(backend)
        assert "authorization" not in server.requests[0][1]


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"base_url": "https://h/v1", "api_key_env": "NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE"),
        ({"base_url": "https://h/v1", "api_key_file": "/nowhere"}, "/nowhere"),
        ({"base_url": "ftp://h/v1"}, "http"),
        ({"base_url": "https://user:pass@h/v1"}, "api_key_env"),
        ({"base_url": "http://example.org/v1", "api_key_env": "HOME"}, "https"),
    ],
)
def test_unusable_settings_are_told_at_once(fields: dict[str, str], word: str) -> None:
    with pytest.raises(CallError, match=word) as caught:
        open_server_client(Upstream(name="it", **fields))
    assert caught.value.code == "invalid"


# Ollama's own fetching


async def test_ollama_fetches_for_itself() -> None:
    lines = [b'{"status": "pulling", "total": 10, "completed": 5}\n', b'{"status": "success"}\n']
    async with serving("ollama", stream_head() + chunked(*lines)) as (backend, _):
        seen: list[tuple[str, int]] = []

        async def report(progress: object) -> None:
            seen.append((progress.stage, progress.bytes_done))  # type: ignore[attr-defined]

        await backend.pull("llama3.2:1b", report)
        assert seen[0] == ("fetching", 5)
        assert seen[-1][0] == "done"
    async with serving(
        "ollama", stream_head() + chunked(b'{"error": "pull model manifest: file does not exist"}\n')
    ) as (
        backend,
        _,
    ):
        with pytest.raises(CallError):
            await backend.pull("nope", report)


ANY_MODEL = ("chat", "completion", "json", "logprobs", "tools")


@pytest.mark.parametrize(
    ("shown", "capabilities", "context_tokens"),
    [
        (b"{}", ANY_MODEL, 0),
        (b"nonsense", ANY_MODEL, 0),
        (b'{"capabilities": ["completion", "tools"], "model_info": {"llama.context_length": 8192}}', ANY_MODEL, 8192),
        (b'{"capabilities": ["completion", "vision"], "model_info": {}}', (*ANY_MODEL, "vision"), 0),
        (b'{"capabilities": ["embedding"], "model_info": {"bert.context_length": "?"}}', ("embed",), 0),
    ],
)
async def test_ollama_is_asked_what_its_models_can_do(
    shown: bytes, capabilities: tuple[str, ...], context_tokens: int
) -> None:
    async def silent(stream: trio.SocketStream, path: str, headers: dict[str, str]) -> None: ...

    async with scripted(silent) as server:
        server.models = b'{"models": [{"model": "m"}]}'
        server.shown = shown
        async with open_ollama(OllamaConfig(server.url), PARTS) as backend:
            await listed(backend)
            assert backend.models()[0].capabilities == capabilities
            assert backend.models()[0].context_tokens == context_tokens


async def test_no_ollama_costs_nothing() -> None:
    program = f"""
import sys, trio
from pathlib import Path
from covey.backends.base import BackendParts
from covey.backends.ollama import OllamaConfig, open_ollama
from covey.telemetry.metrics import Metrics

async def main():
    async with open_ollama(OllamaConfig("127.0.0.1:{free_port()}"), BackendParts(Path(), Metrics())) as backend:
        assert backend.models() == ()

trio.run(main)
print(*sorted({{"ollama", "pydantic"}} & set(sys.modules)))
"""
    done = await trio.run_process([sys.executable, "-c", program], capture_stdout=True)
    assert done.stdout == b"\n"


async def test_an_address_that_is_none_is_told() -> None:
    for url in ("http://here:port", "ftp://here", "http://", ""):
        with pytest.raises(CallError, match="is no URL"):
            async with open_ollama(OllamaConfig(url), PARTS):
                pass


@kinds
@pytest.mark.parametrize("answer", [None, b"\x00\xff no HTTP\r\n\r\n", reply(200, b"<html>", "text/html")])
async def test_a_server_that_is_none_neither_delays_the_start_nor_goes_unsaid(
    kind: str, answer: bytes | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutation: a start that waits for the first answer takes as long as `LIST_SECONDS`."""
    module = "openai_server" if kind == "openai" else kind
    monkeypatch.setattr(f"covey.backends.{module}.LIST_SECONDS", 3.0)

    async def handle(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            if answer is None:
                await trio.sleep_forever()
            await stream.receive_some()
            await stream.send_all(answer)
            await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        if kind == "openai":
            upstream = Upstream(name="it", base_url=f"{url}/v1")
            opened = open_openai(OpenAiConfig((upstream,), refresh_seconds=0.05), PARTS)
        else:
            opened = open_ollama(OllamaConfig(url, refresh_seconds=0.05), PARTS)
        began = trio.current_time()
        async with opened as backend:
            assert trio.current_time() - began < 2.5
            await until_asked(backend)
            await trio.sleep(0.2)  # it is asked some more times
            assert backend.models() == ()
        nursery.cancel_scope.cancel()
    said = [record.getMessage() for record in caplog.records if record.name.startswith("covey.")]
    assert len(said) == 1, said


async def test_no_ollama_fetches_nothing() -> None:
    async with open_ollama(OllamaConfig(f"http://127.0.0.1:{free_port()}"), PARTS) as backend:
        with pytest.raises(CallError) as caught:
            await backend.pull("m", nobody)
        assert caught.value.code == "unsupported"


async def test_metrics_tell_whether_an_upstream_answers() -> None:
    def up(name: str) -> float | None:
        labels = {"backend": "openai", "upstream": name}
        return parts.metrics.registry.get_sample_value("covey_upstream_up", labels)

    parts = BackendParts(PARTS.folder, Metrics())
    async with serving("openai", GOOD["openai"]) as (_, server):
        upstreams = (
            Upstream(name="here", base_url=f"{server.url}/v1"),
            Upstream(name="away", base_url="http://127.0.0.1:9/v1", connect_seconds=1.0),
        )
        async with open_openai(OpenAiConfig(upstreams), parts) as backend:
            await until_asked(backend)
            assert (up("here"), up("away")) == (1, 0)
