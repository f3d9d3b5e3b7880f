"""OpenAI's own client judges what the dialects render: bodies and streams that it reads, checked against its types."""

import json
from collections.abc import Callable, Sequence
from typing import Any, get_args

import httpx2
import openai
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel

from covey.contracts.inference import ChatDelta, Usage
from covey.dialects.base import ChatCall, Gathered, Head, Writer
from covey.errors import CallError

HEAD = Head("1f", 'm"}', 1_700_000_000.7)
USAGE = Usage(2, 3, 1)
PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)

Said = Sequence[tuple[int, Sequence[ChatDelta]]]
"""What arrives at a gateway: deltas by choice, in order."""


def only_chat(call: ChatCall) -> Any:
    (chat,) = call.chats
    return chat


def gathered(*deltas: ChatDelta) -> Gathered:
    answer = Gathered()
    answer.add(deltas)
    return answer


def gather(said: Said) -> list[Gathered]:
    answers = [Gathered() for _ in range(max(index for index, _ in said) + 1)]
    for index, deltas in said:
        answers[index].add(deltas)
    return answers


def writer(call: ChatCall) -> Writer:
    return call.writer(HEAD)


def streamed(call: ChatCall, said: Said, usage: Usage = USAGE) -> bytes:
    """All that a gateway would send."""
    rendering = writer(call)
    sent = rendering.begin() + b"".join(rendering.deltas(index, deltas) for index, deltas in said)
    return sent + rendering.end(gather(said), usage)


def broken(call: ChatCall, said: Said, error: CallError) -> bytes:
    rendering = writer(call)
    sent = rendering.begin() + b"".join(rendering.deltas(index, deltas) for index, deltas in said)
    return sent + rendering.failed(error)


def whole(call: ChatCall, said: Said, usage: Usage = USAGE) -> Any:
    return json.loads(writer(call).whole(gather(said), usage))


def events(sent: bytes) -> list[tuple[str, Any]]:
    """The name and the payload of each event; `[DONE]` as it is."""
    found: list[tuple[str, Any]] = []
    assert sent.endswith(b"\n\n")
    for block in sent.decode().split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        assert set(lines) <= {"event", "data"}
        found.append(
            (lines.get("event", ""), lines["data"] if lines["data"] == "[DONE]" else json.loads(lines["data"]))
        )
    return found


def client_of(body: bytes, *, stream: bool = False) -> openai.OpenAI:
    """OpenAI's client, for whom every request is answered with this."""
    kind = "text/event-stream" if stream else "application/json"

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": kind}, content=body, request=request)

    transport = httpx2.MockTransport(answer)
    return openai.OpenAI(
        api_key="cvy_x",
        base_url="http://covey.invalid/v1",
        http_client=httpx2.Client(transport=transport),
        max_retries=0,
    )


EVENT_TYPES: dict[str, type[BaseModel]] = {
    get_args(event.model_fields["type"].annotation)[0]: event for event in get_args(get_args(ResponseStreamEvent)[0])
}
"""OpenAI's type for each event of a response's stream."""


def check_event(event: dict[str, Any]) -> BaseModel:
    """Validated in full, where the client itself takes whatever comes."""
    return EVENT_TYPES[event["type"]].model_validate(event)


Parser = Callable[[bytes], Any]


def refused(parse: Parser, body: bytes | dict[str, Any]) -> CallError:
    """The error that this body is answered with."""
    try:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode())
    except CallError as error:
        return error
    raise AssertionError(f"{body!r} was taken")
