"""Answers requests of every dialect: chats as streams or whole, and embeddings."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import trio

from covey.contracts.auth import Identity
from covey.dialects.base import ChatCall, EmbedCall, Head, Writer
from covey.errors import CallError
from covey.http.asgi import BodyBudget, leaving_with_client
from covey.roles.gateway.answers import Answers
from covey.roles.gateway.books import Asked
from covey.roles.gateway.completions import Completions
from covey.roles.gateway.exchange import Exchange
from covey.telemetry.logs import new_id
from covey.transport.base import PeerId

PAUSE_SECONDS_EACH = 0.0002
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.004, 0.02
"""Where many streams run, each waits a moment between its writes, so that several tokens go out in one: a write costs
as much as a dozen of them. Nobody reads faster; with fewer than twenty streams there is no wait."""
NODE_HEADER = b"x-covey-node"
RENDERED_BYTES_MAX = 1 << 20
"""Of vectors, up to which they are written on the event loop, in a twentieth of a second; more would hold it."""
Call = TypeVar("Call", ChatCall, EmbedCall)


class Answering:
    """The handlers that the table of routes points to.

    Args:
        completions: opens the answers.
        bodies_bytes_max: what the bodies of all requests under way may hold together.
        body_bytes_max, body_seconds_max: limits of a request's body.
        ping_seconds: how long a stream may be silent before it is kept open.
        name_of: what a node is called, where answers shall say who gave them; `None`: they do not.
    """

    def __init__(
        self,
        completions: Completions,
        *,
        bodies_bytes_max: int,
        body_bytes_max: int,
        body_seconds_max: float,
        ping_seconds: float,
        name_of: Callable[[PeerId], str] | None,
    ) -> None:
        self._completions = completions
        self.budget = BodyBudget(bodies_bytes_max)
        self._body_bytes_max = body_bytes_max
        self._body_seconds_max = body_seconds_max
        self._ping_seconds = ping_seconds
        self._name_of = name_of
        self._streams = 0

    async def body(self, exchange: Exchange) -> bytes:
        """The request's whole body; errors as of `Exchange.body`."""
        return await exchange.body(
            self.budget, body_bytes_max=self._body_bytes_max, body_seconds_max=self._body_seconds_max
        )

    async def chat(self, exchange: Exchange, identity: Identity, parse: Callable[[bytes], ChatCall]) -> None:
        """Answer a request for chats."""
        asked, call = await self._ask(exchange, identity, parse)
        last = b""
        async with (
            leaving_with_client(exchange.scope, exchange.receive),
            self._completions.open(asked, call.chats, call.fields, model=call.model) as answers,
        ):
            writer = call.writer(self._head(exchange, answers.model))
            if call.stream:
                last = await self._stream(exchange, answers, writer)
            else:
                last = await self._whole(exchange, answers, writer)
        # Only now: the books are closed, and the end of this very answer cannot pass for the client's leaving.
        if not last:
            return  # the client has left
        if call.stream:
            await exchange.write(last, last=True)
        else:
            await exchange.answer(200, last)

    async def embed(self, exchange: Exchange, identity: Identity, parse: Callable[[bytes], EmbedCall]) -> None:
        """Answer a request for embeddings."""
        asked, call = await self._ask(exchange, identity, parse)
        body = b""
        async with leaving_with_client(exchange.scope, exchange.receive):
            vectors = await self._completions.embed(asked, call.request)
            head = self._head(exchange, asked.model)
            body = await _rendered(call, head, vectors, asked.usage.prompt_tokens)
        if body:  # else the client has left
            self._tell_node(exchange, asked.node)
            await exchange.answer(200, body)

    async def _ask(self, exchange: Exchange, identity: Identity, parse: Callable[[bytes], Call]) -> tuple[Asked, Call]:
        asked = exchange.asked = Asked(identity, exchange.route, exchange.live, exchange.started_at)
        try:
            return asked, parse(await self.body(exchange))
        except CallError:
            await self._completions.count_refused(asked)
            raise

    async def _whole(self, exchange: Exchange, answers: Answers, writer: Writer) -> bytes:
        while await answers.batch():
            pass
        self._tell_node(exchange, answers.node)
        return writer.whole(answers.gathered, answers.billed)

    async def _stream(self, exchange: Exchange, answers: Answers, writer: Writer) -> bytes:
        """Send the answer as it comes; returns what is left to send once it is complete."""
        exchange.failed = writer.failed
        self._streams += 1
        try:
            return await self._pieces(exchange, answers, writer)
        finally:
            self._streams -= 1

    async def _pieces(self, exchange: Exchange, answers: Answers, writer: Writer) -> bytes:
        ahead = writer.begin()
        while True:
            batch = await answers.batch(trio.current_time() + self._ping_seconds)
            if not exchange.begun:  # only now: a refusal before the first token still has its own status
                self._tell_node(exchange, answers.node)
                await exchange.begin_stream()
            if batch is None:
                ahead += exchange.voice.ping
            elif batch:
                # Tokens that wait already go out in one write: a fifth of the CPU, and no later.
                ahead += b"".join([writer.deltas(index, deltas) for index, deltas in batch])
            else:
                return ahead + writer.end(answers.gathered, answers.billed)
            if ahead:
                await exchange.write(ahead)
                ahead = b""
                pause = min(self._streams * PAUSE_SECONDS_EACH, PAUSE_SECONDS_MAX)
                if pause >= PAUSE_SECONDS_MIN:
                    await trio.sleep(pause)

    def _head(self, exchange: Exchange, model: str) -> Head:
        return Head(new_id(), model, time.time(), elapsed=lambda: trio.current_time() - exchange.started_at)

    def _tell_node(self, exchange: Exchange, node: PeerId | None) -> None:
        if self._name_of is not None and node is not None:
            exchange.extra.append((NODE_HEADER, self._name_of(node).encode("latin-1", "replace")))


async def _rendered(call: EmbedCall, head: Head, vectors: list[bytes], prompt_tokens: int) -> bytes:
    if sum(map(len, vectors)) <= RENDERED_BYTES_MAX:
        return call.render(head, vectors, prompt_tokens)
    # The thread has no clock of trio's.
    head = replace(head, elapsed=partial(float, head.elapsed()))
    return await trio.to_thread.run_sync(call.render, head, vectors, prompt_tokens)
