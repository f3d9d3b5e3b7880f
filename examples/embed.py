"""A node within a trio program: no port is open, no key is needed, nothing is installed beside Covey.

    python examples/embed.py

It uses the back end `echo`, which says the question again; leave the configuration out for a real model.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import trio

import covey
from covey.bus.caller import Caller

CONFIG: Mapping[str, Any] = {"inference": {"backends": ["echo"]}}


class Shout(msgspec.Struct, frozen=True):
    """A request of our own."""

    text: str


class Shouted(msgspec.Struct, frozen=True):
    """And its reply."""

    text: str


# A contract is a value, known to both sides; the type checker sees what goes in and what comes out.
SHOUT = covey.Unary("example.shout", Shout, Shouted, access=frozenset({"operator"}))


async def shout(caller: Caller, request: Shout) -> Shouted:
    """Serve SHOUT."""
    return Shouted(request.text.upper())


async def main() -> None:
    """Ask for a whole answer, for one in pieces, and for something of our own."""
    with tempfile.TemporaryDirectory() as folder:
        async with covey.open_node(CONFIG, data=Path(folder)) as node:
            answer = await node.chat("What is the capital of France?")
            print(f"{answer.model}: {answer.text} ({answer.usage.completion_tokens} tokens, {answer.finish})")

            async with node.client.stream_chat("one piece at a time", max_tokens=3) as chunks:
                async for text in chunks:
                    print(repr(text))
            print(chunks.finish)

            node.bus.serve(SHOUT, shout)
            print((await node.bus.call(SHOUT, Shout("hello"))).text)

            try:
                await node.chat("Hello", model="no-such-model")
            except covey.CallError as error:
                print(f"{error.code}: {error.message}")


if __name__ == "__main__":
    trio.run(main)
