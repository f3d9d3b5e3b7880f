"""What every dialect gives the gateway: a request taken apart, and a writer that renders its answer. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from covey.contracts.inference import (
    Capability,
    ChatDelta,
    ChatRequest,
    EmbedRequest,
    Finish,
    TokenLogprob,
    ToolCall,
    Usage,
)
from covey.errors import CallError

PIECE_SIZE = 64
"""What a piece of a tool call, or a token's probability, counts as beside its characters."""
CHOICES_MAX = 128
"""How many answers one request may ask for (OpenAI's limit of `n`), over all its prompts."""


@dataclass(frozen=True, slots=True)
class Head:
    """What an answer says of itself. `id` is random, without a prefix; `created` in Unix seconds.

    `elapsed()`: the seconds since the request came, for the dialect that tells durations; 0.0 where nobody measures.
    """

    id: str
    model: str
    created: float
    elapsed: Callable[[], float] = float


class Gathered:
    """One answer put together from its deltas; what tokens were and why it ended stands here, too.

    `tokens`: as far as the back end counted each piece; `reasoning_tokens`: how many of them were thought. `size`: in
    characters, or as many as all of it costs.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.reasonings: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish: Finish | None = None
        self.usage: Usage | None = None
        self.stopped_by = ""
        self.tokens = self.size = 0
        self.reasoning_tokens = 0
        self._calls: dict[int, tuple[str, str, list[str]]] = {}

    def add(self, deltas: Iterable[ChatDelta]) -> None:
        """The next ones, in order."""
        tokens = size = 0
        for delta in deltas:
            # A back end that does not count sends one token at a time.
            tokens += delta.tokens or bool(delta.text or delta.reasoning or delta.tool_calls)
            text = delta.text
            size += len(text) + 1
            if text:
                self.texts.append(text)
            if delta.reasoning:
                size += len(delta.reasoning)
                self.reasonings.append(delta.reasoning)
                self.reasoning_tokens += 0 if text else delta.tokens
            if delta.logprobs:
                size += PIECE_SIZE * sum([1 + len(one.top) for one in delta.logprobs])
                self.logprobs.extend(delta.logprobs)
            for piece in delta.tool_calls:
                size += PIECE_SIZE + len(piece.name) + len(piece.arguments)
                call_id, name, arguments = self._calls.get(piece.index, ("", "", []))
                arguments.append(piece.arguments)
                self._calls[piece.index] = (call_id or piece.id, name or piece.name, arguments)
            if delta.finish is not None:
                self.finish = delta.finish
                self.stopped_by = delta.stopped_by
            if delta.usage is not None:
                self.usage = delta.usage
        self.tokens += tokens
        self.size += size

    @property
    def text(self) -> str:
        """The whole text so far."""
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        """The whole reasoning so far."""
        return "".join(self.reasonings)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls so far, in order."""
        return tuple(
            ToolCall(call_id, name, "".join(arguments)) for _, (call_id, name, arguments) in sorted(self._calls.items())
        )


class Writer(Protocol):
    """Renders the answer to one call: either as a stream, `begin` to `end`, or `whole`. `index` counts a call's chats.

    In a stream each method returns what goes to the client now, maybe nothing. After a failure `failed` takes the
    place of `end`.
    """

    def begin(self) -> bytes:
        """What comes before the first token."""
        ...

    def deltas(self, index: int, deltas: Sequence[ChatDelta]) -> bytes:
        """The next deltas of one chat, all that wait; the last one, with `finish`, among them."""
        ...

    def end(self, answers: Sequence[Gathered], usage: Usage) -> bytes:
        """Every chat has ended. `answers` by index, all with `finish`; `usage` over all of them."""
        ...

    def failed(self, error: CallError) -> bytes:
        """The last bytes of a stream that failed: they tell the error, and never say that the answer is complete."""
        ...

    def whole(self, answers: Sequence[Gathered], usage: Usage) -> bytes:
        """The body of an answer that is not streamed; as `end`."""
        ...


@dataclass(frozen=True, slots=True)
class ChatCall:
    """A parsed request: what to run (one chat for each choice), and how to answer.

    `fields`: what this dialect calls the field behind a capability, for the error where a model lacks it. No
    `chats`: the client only asks that `model` be ready (Ollama's empty prompt); the writer then ends without an answer.
    """

    chats: tuple[ChatRequest, ...]
    stream: bool
    writer: Callable[[Head], Writer]
    fields: Mapping[Capability, str]
    model: str


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """A parsed request for embeddings.

    `render` takes the head, the vectors (little-endian 32-bit floats) and the count of the inputs' tokens.
    """

    request: EmbedRequest
    render: Callable[[Head, Sequence[bytes], int], bytes]
