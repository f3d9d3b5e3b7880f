"""The role: counts words for whoever asks on the bus, and for the curious over HTTP."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import parse_qs

import msgspec

from covey import CallError, Parts, Role
from covey.bus.caller import Caller
from covey.http.asgi import Receive, Scope, Send, respond
from covey_wordcount.contract import COUNT_WORDS, CountWords, WordCount


class WordCountConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[wordcount]`: every key with its unit and a default."""

    characters_max: int = 100_000


class Counter:
    """The role's handlers."""

    def __init__(self, config: WordCountConfig) -> None:
        self._config = config

    async def count(self, caller: Caller, request: CountWords) -> WordCount:
        """Serve COUNT_WORDS."""
        if len(request.text) > self._config.characters_max:
            raise CallError("too_large", f"Give at most {self._config.characters_max} characters.", param="text")
        return WordCount(len(request.text.split()))

    async def page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /wordcount?text=…`: a plain ASGI application."""
        text = parse_qs(scope["query_string"].decode("latin-1")).get("text", [""])[0]
        words = len(text[: self._config.characters_max].split())
        await respond(send, 200, f"{words}\n".encode(), "text/plain; charset=utf-8", ())


@asynccontextmanager
async def open_wordcount(config: WordCountConfig, parts: Parts) -> AsyncGenerator[None, None]:
    """Ready inside the block. A role with tasks of its own opens a nursery here, and cancels it on the way out."""
    counter = Counter(config)
    parts.bus.serve(COUNT_WORDS, counter.count)
    parts.http.mount("/wordcount", counter.page)
    try:
        yield
    finally:
        parts.http.unmount("/wordcount")


ROLE = Role("wordcount", WordCountConfig, open_wordcount)
