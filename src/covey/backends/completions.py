"""The OpenAI dialect from the client's side: chunks of its streams, chats' and raw prompts', to our deltas. Pure.

Source: https://platform.openai.com/docs/api-reference/chat-streaming, and what llama.cpp adds to it.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from covey.backends.refusals import refusal
from covey.contracts.inference import Alternative, ChatDelta, Finish, TokenLogprob, ToolCallDelta, Usage
from covey.errors import CallError

DONE = b"[DONE]"
CALLS_MAX = 256
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
"""Of tokens: what no server can have counted is no answer of one."""
_FINISHES: dict[str, Finish] = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


class _Details(msgspec.Struct):
    cached_tokens: Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _Details | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Probability(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list["_Probability"] = []


class _Probabilities(msgspec.Struct):
    """`content`: as in chats, and of llama.cpp. The rest: OpenAI's older shape of raw prompts' answers."""

    content: list[_Probability] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    text: str | None = None
    logprobs: _Probabilities | None = None
    finish_reason: str | None = None
    stop_reason: Any = None  # vLLM: the stop sequence, or a token's number


class _Timings(msgspec.Struct):
    """llama.cpp: `predicted_n` tokens so far; a character of several tokens arrives as one chunk."""

    predicted_n: Count = 0


class _Progress(msgspec.Struct):
    """llama.cpp: of the prompt."""

    total: Count = 0
    cache: Count = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: _Timings | None = None
    prompt_progress: _Progress | None = None
    error: Any = None


class _EngineChunk(msgspec.Struct):
    """Of llama.cpp's own `/completion` and `/infill`."""

    content: str = ""
    stop: bool = False
    stop_type: str = ""
    stopping_word: str = ""
    tokens_predicted: Count = 0
    tokens_evaluated: Count = 0
    completion_probabilities: list[_Probability] = []
    prompt_progress: _Progress | None = None
    error: Any = None


_chunks = msgspec.json.Decoder(_Chunk)
_engine_chunks = msgspec.json.Decoder(_EngineChunk)


class AnswerReader:
    """One streamed answer: chunks in, deltas out; the last delta is made by `end`.

    Args:
        prompt_tokens: counted by us, for servers that report no usage.
        call_id: the start of the ids of tool calls, for servers that give them none.
        alternatives: how many are wanted beside a token's probability; servers may send more.
    """

    def __init__(self, prompt_tokens: int, call_id: str = "call", alternatives: int | None = None) -> None:
        self._prompt_tokens = prompt_tokens
        self._cached_tokens = 0
        self._call_id = call_id
        self._alternatives = alternatives or 0
        self._tokens = 0
        self._calls: set[int] = set()
        self._finish: Finish | None = None
        self._usage: Usage | None = None
        self._stopped_by = ""

    def receive(self, event: bytes) -> ChatDelta | None:
        """The delta in an event's payload, if there is anything in it.

        Raises:
            CallError: `upstream`: not a chunk; or the error that the server put in its stream.
        """
        if event.strip() == DONE:
            return None
        try:
            chunk = _chunks.decode(event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _strange() from error
        if chunk.error is not None:
            raise refusal(500, event)
        if chunk.prompt_progress is not None:
            self._progressed(chunk.prompt_progress)
        if chunk.usage is not None:
            self._usage = self._counted(chunk.usage)
        counted = chunk.timings.predicted_n if chunk.timings else 0
        return self._choice(chunk.choices[0], counted) if chunk.choices else None

    def receive_engine(self, event: bytes) -> ChatDelta | None:
        """The same for llama.cpp's own stream.

        Raises:
            CallError: as `receive`.
        """
        try:
            chunk = _engine_chunks.decode(event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _strange() from error
        if chunk.error is not None:
            raise refusal(500, event)
        if chunk.prompt_progress is not None:
            self._progressed(chunk.prompt_progress)
        if chunk.stop:
            self._finish = "length" if chunk.stop_type == "limit" else "stop"
            self._stopped_by = chunk.stopping_word
            self._usage = Usage(
                chunk.tokens_evaluated or self._prompt_tokens, chunk.tokens_predicted, self._cached_tokens
            )
        logprobs = self._told(chunk.completion_probabilities)
        return self._piece(chunk.tokens_predicted, ChatDelta(chunk.content, logprobs=logprobs))

    def end(self) -> ChatDelta:
        """The last delta, once the server has ended the stream.

        Raises:
            CallError: `upstream` where it never said why the answer ended: then it did not end well.
        """
        if self._finish is None:
            raise CallError("upstream", "The model server's answer ended in the middle.")
        usage = self._usage or self.counted_here
        finish = "tool_calls" if self._calls and self._finish == "stop" else self._finish
        return ChatDelta(finish=finish, usage=usage, stopped_by=self._stopped_by)

    @property
    def counted_here(self) -> Usage:
        """What we know of the tokens so far, before the server has told."""
        return Usage(self._prompt_tokens, self._tokens, self._cached_tokens)

    def _choice(self, choice: _Choice, counted: int) -> ChatDelta | None:
        if choice.finish_reason:
            self._finish = finish_of(choice.finish_reason)
        if isinstance(choice.stop_reason, str):
            self._stopped_by = choice.stop_reason
        delta = choice.delta or _Delta()
        return self._piece(
            counted,
            ChatDelta(
                choice.text or delta.content or "",
                reasoning=delta.reasoning_content or delta.reasoning or "",
                tool_calls=tuple(self._call(call) for call in delta.tool_calls or ()),
                logprobs=self._probabilities(choice.logprobs),
            ),
        )

    def _piece(self, counted: int, delta: ChatDelta) -> ChatDelta | None:
        if not (delta.text or delta.reasoning or delta.tool_calls or delta.logprobs):
            return None
        fresh = max(counted - self._tokens, len(delta.logprobs), 1)
        self._tokens += fresh
        return msgspec.structs.replace(delta, tokens=fresh)

    def _call(self, call: _Call) -> ToolCallDelta:
        if not 0 <= call.index < CALLS_MAX:
            raise _strange()
        function = call.function or _Function()
        if call.index in self._calls:
            return ToolCallDelta(call.index, arguments=function.arguments or "")
        self._calls.add(call.index)
        if not function.name:
            raise CallError("upstream", "The model server calls a tool without saying which.")
        own_id = call.id or f"{self._call_id}_{call.index}"
        return ToolCallDelta(call.index, own_id, function.name, function.arguments or "")

    def _probabilities(self, found: _Probabilities | None) -> tuple[TokenLogprob, ...]:
        if found is None:
            return ()
        if found.content is not None:
            return self._told(found.content)
        logprobs = found.token_logprobs or []
        tops = found.top_logprobs or []
        told: list[TokenLogprob] = []
        for place, token in enumerate(found.tokens or []):
            logprob = logprobs[place] if place < len(logprobs) else None
            top = (tops[place] if place < len(tops) else None) or {}
            best = sorted(top.items(), key=lambda item: -item[1])[: self._alternatives]
            alternatives = tuple(Alternative(other, value) for other, value in best)
            told.append(TokenLogprob(token, logprob or 0.0, top=alternatives))
        return tuple(told)

    def _told(self, found: Sequence[_Probability]) -> tuple[TokenLogprob, ...]:
        return tuple(
            TokenLogprob(
                one.token,
                one.logprob,
                _raw(one),
                tuple(
                    Alternative(other.token, other.logprob, _raw(other))
                    for other in one.top_logprobs[: self._alternatives]
                ),
            )
            for one in found
        )

    def _progressed(self, progress: _Progress) -> None:
        self._prompt_tokens = progress.total or self._prompt_tokens
        self._cached_tokens = progress.cache

    def _counted(self, usage: _Usage) -> Usage:
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None
        return Usage(
            self._prompt_tokens if usage.prompt_tokens is None else usage.prompt_tokens,
            self._tokens if usage.completion_tokens is None else usage.completion_tokens,
            self._cached_tokens if cached is None else cached,
        )


def finish_of(reason: str) -> Finish:
    """Our word for a server's reason; one we do not know means that the model stopped by itself."""
    if reason in {"error", "abort", "cancelled"}:
        raise CallError("upstream", f"The model server ended its answer with {reason!r}.")
    return _FINISHES.get(reason, "stop")


def _raw(one: _Probability) -> bytes:
    """The token's bytes where its text does not tell them: it may be a part of a character."""
    if one.bytes is None or any(not 0 <= byte <= 255 for byte in one.bytes):
        return b""
    told = bytes(one.bytes)
    return b"" if told == one.token.encode() else told


def _strange() -> CallError:
    return CallError("upstream", "The model server sent something that is not a chunk of an answer.")
