"""The model server behind all of them: it says fixed words at a fixed pace, and costs as little as Python can.

    python -m bench.peers.upstream --port 8000 [--token-seconds 0.005]

`max_tokens` says how many words. The model `fast` says them at once; `paced` waits before each. It ends
with its standard input.
"""

import argparse
import asyncio
import sys
from typing import cast

import msgspec

from bench.peers.answers import HEAD_END, words

MODELS = ("fast", "paced")
PROMPT_TOKENS = 12
REQUEST_BYTES_MAX = 1 << 20


class Asked(msgspec.Struct):
    """Of a request, what matters here."""

    model: str
    max_tokens: int
    stream: bool = False


ASKED = msgspec.json.Decoder(Asked)
Made = dict[tuple[str, int, bool], list[bytes]]
"""The answers to what was asked for, by model, tokens and whether it is streamed: a few, again and again."""


def models() -> bytes:
    """`GET /v1/models`."""
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "bench"} for name in MODELS]
    return msgspec.json.encode({"object": "list", "data": data})


def usage(tokens: int) -> dict[str, int]:
    """As every answer tells it."""
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": PROMPT_TOKENS + tokens}


def whole(asked: Asked) -> bytes:
    """An answer that is not streamed."""
    message = {"role": "assistant", "content": "".join(words(asked.max_tokens))}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    about = {"id": "chatcmpl-bench", "object": "chat.completion", "created": 0, "model": asked.model}
    return msgspec.json.encode({**about, "choices": [choice], "usage": usage(asked.max_tokens)})


def events(asked: Asked) -> list[bytes]:
    """An answer that is streamed: an event for each token, and the end, each a chunk of HTTP's."""
    about = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 0, "model": asked.model}

    def event(choices: list[dict[str, object]], **more: object) -> bytes:
        data = b"data: " + msgspec.json.encode({**about, "choices": choices, **more}) + b"\n\n"
        return b"%x\r\n%b\r\n" % (len(data), data)

    said: list[bytes] = []
    for number, word in enumerate(words(asked.max_tokens)):
        delta = {"content": word} if number else {"role": "assistant", "content": word}
        said.append(event([{"index": 0, "delta": delta, "finish_reason": None}]))
    end = event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    counted = event([], usage=usage(asked.max_tokens))
    said[-1] += end + counted + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    return said


class Connection(asyncio.Protocol):
    """One client's, answered request by request."""

    def __init__(self, token_seconds: float, made: Made) -> None:
        self._token_seconds = token_seconds
        self._made = made
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._data += data
        while True:
            head, found, rest = self._data.partition(HEAD_END)
            if len(self._data) > REQUEST_BYTES_MAX:
                raise ValueError("A request is too long.")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0) if found else 0
            if not found or len(rest) < length:
                return
            body, self._data = rest[:length], rest[length:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET /v1/models"):
            self._write(answer_head(b"application/json", b"content-length: %d" % len(models())) + models())
            return
        if not head.startswith(b"POST /v1/chat/completions"):
            self._write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            return
        asked = ASKED.decode(body)
        kind = (asked.model, asked.max_tokens, asked.stream)
        if kind not in self._made:
            self._made[kind] = events(asked) if asked.stream else [whole(asked)]
        made, loop = self._made[kind], asyncio.get_running_loop()
        paced = asked.model == "paced"
        if not asked.stream:
            answer = answer_head(b"application/json", b"content-length: %d" % len(made[0])) + made[0]
            if paced:
                loop.call_later(self._token_seconds * asked.max_tokens, self._write, answer)
            else:
                self._write(answer)
            return
        begin = answer_head(b"text/event-stream", b"transfer-encoding: chunked")
        if paced:
            self._write(begin)
            self._go_on(made, 0, loop.time())
        else:
            self._write(begin + b"".join(made))

    def _go_on(self, made: list[bytes], index: int, began: float) -> None:
        """Say what is due, and come again for the next: each has its own time, so that being late does not add up."""
        loop = asyncio.get_running_loop()
        while index < len(made) and began + (index + 1) * self._token_seconds <= loop.time():
            self._write(made[index])
            index += 1
        if index < len(made) and self._transport is not None:
            loop.call_at(began + (index + 1) * self._token_seconds, self._go_on, made, index, began)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def answer_head(media_type: bytes, framing: bytes) -> bytes:
    """What comes before a body. `framing`: the header that says how long it is."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: " + media_type + b"\r\n" + framing + b"\r\n\r\n"


async def serve(port: int, token_seconds: float) -> None:
    """Until standard input ends."""
    loop = asyncio.get_running_loop()
    made: Made = {}
    server = await loop.create_server(lambda: Connection(token_seconds, made), "127.0.0.1", port, backlog=1024)
    async with server:
        await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True, help="on loopback")
    parser.add_argument("--token-seconds", type=float, default=0.005, help="before each token of the model `paced`")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port, arguments.token_seconds))
