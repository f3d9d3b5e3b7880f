"""A typed client of a node, over any bus handle: in the process (`node.client`), or over the node's Unix socket."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Self

import msgspec

from covey.bus.bus import BusHandle
from covey.bus.replies import Replies
from covey.contracts.auth import CREATE_KEY, Actor, CreateKey, KeyLimits, NewKey
from covey.contracts.cluster import NODES, NodeStatus
from covey.contracts.gateway import COMPLETE, LIST_MODELS, Completion, ListModels, ModelSummary
from covey.contracts.inference import ChatDelta, ChatRequest, Finish, Message, Sampling, Usage
from covey.contracts.method import Nothing
from covey.errors import CallError

Conversation = str | Sequence[Message] | Sequence[Mapping[str, str]]
"""A single question, or messages: ours, or as OpenAI writes them (`{"role": ..., "content": ...}`)."""


class Answer(msgspec.Struct, frozen=True):
    """A whole answer. `finish` says why it ended: `length` means it was cut."""

    text: str
    model: str
    finish: Finish
    usage: Usage


class Chunks:
    """The pieces of an answer as they come; `finish`, `usage` and `model` are there once it has ended."""

    def __init__(self, replies: Replies[ChatDelta]) -> None:
        self._replies = replies
        self.finish: Finish | None = None
        self.usage: Usage | None = None
        self.model = ""

    # No asynchronous generator: one that is left before its end is a ResourceWarning, and leaving is what people do.
    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while True:
            delta = await anext(self._replies)
            self.finish = delta.finish or self.finish
            self.usage = delta.usage or self.usage
            self.model = delta.model or self.model
            if delta.text:
                return delta.text


class Client:
    """What a program usually wants; `bus` reaches every other contract.

    Args:
        bus: to the node.
        actor: on whose behalf; nobody's is enough where the node itself has what is asked for.
    """

    def __init__(self, bus: BusHandle, actor: Actor | None = None) -> None:
        self.bus = bus
        self.actor = actor or Actor()

    async def chat(
        self,
        conversation: Conversation,
        *,
        model: str = "",
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
        sampling: Sampling | None = None,
    ) -> Answer:
        """Ask, and wait for the whole answer. The model "" is the first that can answer.

        Raises:
            CallError: `not_found`, `loading`, `no_capacity`, `upstream`, ...
        """
        pieces: list[str] = []
        async with self.stream_chat(
            conversation, model=model, max_tokens=max_tokens, stop=stop, sampling=sampling
        ) as chunks:
            async for text in chunks:
                pieces.append(text)  # noqa: PERF401 - an asynchronous comprehension hides the errors' place
        if chunks.finish is None or chunks.usage is None:
            raise CallError("upstream", "The answer broke off.")
        return Answer("".join(pieces), chunks.model, chunks.finish, chunks.usage)

    @asynccontextmanager
    async def stream_chat(
        self,
        conversation: Conversation,
        *,
        model: str = "",
        max_tokens: int | None = None,
        stop: tuple[str, ...] = (),
        sampling: Sampling | None = None,
    ) -> AsyncGenerator[Chunks, None]:
        """Ask, and take the answer piece by piece: `async with client.stream_chat("Hi") as chunks: async for text in
        chunks`. Leaving the block stops the model.
        """
        request = ChatRequest(
            model=model,
            messages=_messages(conversation),
            max_tokens=max_tokens,
            stop=stop,
            sampling=sampling or Sampling(),
        )
        async with self.bus.stream(COMPLETE, Completion(self.actor, request)) as replies:
            yield Chunks(replies)

    async def models(self) -> tuple[ModelSummary, ...]:
        """Every model of the live cluster."""
        return (await self.bus.call(LIST_MODELS, ListModels(self.actor))).models

    async def nodes(self) -> tuple[NodeStatus, ...]:
        """Every live node, this one first."""
        return (await self.bus.call(NODES, Nothing())).nodes

    async def create_key(
        self,
        user: str,
        *,
        label: str = "",
        models: tuple[str, ...] = (),
        expires_seconds: int | None = None,
        requests_per_minute: int | None = None,
        limits: KeyLimits | None = None,
        node_labels: tuple[str, ...] = (),
        routes: tuple[str, ...] = (),
    ) -> NewKey:
        """An API key for a person. `limits` are more than `requests_per_minute` alone: give one of the two.

        Raises:
            CallError: `invalid`, `forbidden`, `conflict`, ...; `ValueError` for both.
        """
        if limits is not None and requests_per_minute is not None:
            raise ValueError("Give requests_per_minute within limits.")
        return await self.bus.call(
            CREATE_KEY,
            CreateKey(
                self.actor,
                user=user,
                label=label,
                models=models,
                expires_seconds=expires_seconds,
                limits=limits or KeyLimits(requests_per_minute=requests_per_minute),
                node_labels=node_labels,
                routes=routes,
            ),
        )


def _messages(conversation: Conversation) -> tuple[Message, ...]:
    if isinstance(conversation, str):
        return (Message("user", conversation),)
    try:
        return tuple(msgspec.convert(one, Message, from_attributes=True) for one in conversation)
    except msgspec.ValidationError as error:
        raise CallError("invalid", f"A message is not one: {error}.", param="messages") from error
