"""No body of a request is longer, or slower, than its page may need, however it is sent."""

from collections.abc import AsyncGenerator
from typing import Any

import pytest
import trio
from web_world import World, open_world

from covey.roles.web.config import WebConfig
from covey.roles.web.security import FORM_BYTES_MAX

CHUNK = b"x" * 8_000


@pytest.fixture
async def world() -> AsyncGenerator[World, None]:
    async with open_world(config=WebConfig(chat_body_bytes_max=200_000)) as opened:
        opened.auth.add("ada", "admin")
        yield opened


class Sender:
    """A client that goes on and on with a body."""

    def __init__(self, *, chunk: bytes = CHUNK, pause_seconds: float = 0.0, chunks: int | None = None) -> None:
        self.sent = 0
        self.status = 0
        self.text = b""
        self.chunk = chunk
        self.pause_seconds = pause_seconds
        self.chunks = chunks

    async def receive(self) -> dict[str, Any]:
        await trio.sleep(self.pause_seconds)
        if self.chunks == 0:
            await trio.sleep_forever()  # it waits to be asked for its body
        if self.chunks is not None and self.sent >= self.chunks * len(self.chunk):
            return {"type": "http.disconnect"}
        self.sent += len(self.chunk)
        return {"type": "http.request", "body": self.chunk, "more_body": True}

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.text += message.get("body", b"")

    async def post(self, world: World, path: str, **headers: str) -> None:
        fields = {"host": "localhost", "content-type": "application/x-www-form-urlencoded", **headers}
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "extensions": {},
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()],
            "client": ("192.0.2.7", 4711), "server": ("localhost", 80),
        }  # fmt: skip
        with trio.fail_after(60):
            await world.router(scope, self.receive, self.send)


@pytest.mark.parametrize(("path", "limit"), [("/login", FORM_BYTES_MAX), ("/nothing", FORM_BYTES_MAX),
                                             ("/chat/stream", 200_000)])  # fmt: skip
async def test_an_endless_body_is_refused_at_its_limit(world: World, path: str, limit: int) -> None:
    sender = Sender()
    with trio.move_on_after(2):  # the refusal is out; this sender never stops by itself
        await sender.post(world, path)
    assert sender.status == 413
    assert b"Too much at once" in sender.text


async def test_a_body_that_announces_its_length_is_refused_unread(world: World) -> None:
    sender = Sender(chunks=0)
    await sender.post(world, "/login", content_length=str(FORM_BYTES_MAX + 1))
    assert (sender.status, sender.sent) == (413, 0)


async def test_a_body_that_trickles_is_given_up(world: World, autojump_clock: Any) -> None:
    sender = Sender(chunk=b"a", pause_seconds=1.0, chunks=50)
    began = trio.current_time()
    await sender.post(world, "/login")
    assert sender.status == 408
    assert b"did not arrive within 15 s" in sender.text
    assert trio.current_time() - began < 20


async def test_a_client_that_leaves_in_the_middle_is_not_served(world: World) -> None:
    sender = Sender(chunks=2)
    await sender.post(world, "/login")
    assert sender.status == 0
    assert world.auth.log_ins == []
