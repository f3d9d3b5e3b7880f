"""Answers of an Ollama: our request in its words, its parts as our deltas.

Ollama has no `tool_choice`, and its client drops what it does not know of a tool's schema (`anyOf`, properties within
properties): where either matters, tools are told in words and forced by a format, as for any model without.
"""

import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from covey.backends.completion_requests import decoded_schema
from covey.backends.forced_tools import CallFinder, plain_request
from covey.backends.ollama_client import OllamaConfig, counted, translated
from covey.backends.sse_client import exhausting
from covey.backends.vectors import TOKENS_EACH, packed, portions, shortened
from covey.bus.replies import Emit
from covey.contracts.inference import (
    Alternative,
    ChatDelta,
    ChatRequest,
    Embeddings,
    EmbedRequest,
    Finish,
    Message,
    Prompt,
    TokenLogprob,
    Tool,
    ToolCallDelta,
    Usage,
)
from covey.dialects.counting import estimated_input_tokens, estimated_tokens
from covey.errors import CallError

if TYPE_CHECKING:
    import ollama


class LogprobsMissingError(Exception):
    """They were asked for, and the first piece of the answer had none."""


class OllamaAnswers:
    """Asks one model. `tools`, `insert`: what its template has a place for."""

    def __init__(
        self, client: "ollama.AsyncClient", config: OllamaConfig, *, tools: bool = False, insert: bool = False
    ) -> None:
        self._client = client
        self._config = config
        self._tools = tools
        self._insert = insert

    async def generate(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        """See `Backend.generate`.

        Raises:
            CallError: as there.
            LogprobsMissingError: nothing was emitted yet.
        """
        if request.sampling.logit_bias:
            raise CallError("unsupported", "Ollama takes no logit_bias; leave it out.", param="logit_bias")
        if request.prompt is not None:
            await self._relay(request, self._go_on(request, request.prompt), emit)
            return
        finder: CallFinder | None = None
        asked = request
        if not self._takes(request):
            asked = plain_request(request)
            if request.tools and request.tool_use != "none":
                names = frozenset(tool.name for tool in request.tools)
                required = request.tool_use == "required"
                finder = CallFinder(names, f"call_{secrets.token_hex(8)}", required=required)
        await self._relay(request, self._converse(asked), emit, finder)

    def _takes(self, request: ChatRequest) -> bool:
        """Whether the tools of a request, and of its past, can go to Ollama as they are."""
        if request.tool_use == "required" and request.tools:
            return False
        past = any(message.tool_calls or message.role == "tool" for message in request.messages)
        if not self._tools:
            return not (request.tools or past)
        return all(map(survives, request.tools))

    async def _converse(self, request: ChatRequest) -> "AsyncIterator[ollama.ChatResponse]":
        tools = () if request.tool_use == "none" else request.tools
        with translated():
            return await self._client.chat(  # pyright: ignore[reportUnknownMemberType]  of `tools`
                request.model,
                messages(request),
                tools=[tool_of(tool) for tool in tools] or None,
                format=format_of(request),
                logprobs=True if request.logprobs is not None else None,
                top_logprobs=request.logprobs or None,
                stream=True,
                options=options(request),
            )

    async def _go_on(self, request: ChatRequest, prompt: Prompt) -> "AsyncIterator[ollama.GenerateResponse]":
        if prompt.tokens:
            raise CallError("unsupported", "Ollama takes no tokens as a prompt; send the text.", param="prompt")
        if prompt.suffix and not self._insert:
            raise CallError(
                "unsupported",
                f"The model {request.model[:200]} was not trained to fill gaps; leave suffix out.",
                reason="capability",
                param="suffix",
            )
        with translated():
            return await self._client.generate(
                request.model,
                prompt.text,
                prompt.suffix,
                raw=not prompt.suffix,  # only a template knows where a gap is
                format=format_of(request),
                logprobs=True if request.logprobs is not None else None,
                top_logprobs=request.logprobs or None,
                stream=True,
                options=options(request),
            )

    async def _relay(
        self,
        request: ChatRequest,
        asking: Any,
        emit: Emit[ChatDelta],
        finder: CallFinder | None = None,
    ) -> None:
        reader = PartReader(request)
        last: ChatDelta | None = None
        stream: AsyncIterator[Any] = await asking
        async with exhausting(stream) as parts:
            while (part := await self._next(parts, first=reader.empty)) is not None:
                delta = reader.receive(part)
                if delta is not None and finder is not None:
                    delta = finder.receive(delta)
                if delta is not None:
                    await emit(delta)
                if part.done:
                    last = reader.end(part)
                elif finder is not None and finder.over:
                    last = ChatDelta(finish="tool_calls", usage=reader.counted_here)
                    break
        if last is None:
            raise CallError("upstream", "Ollama's answer ended in the middle.")
        for delta in (last,) if finder is None else finder.end(last):
            await emit(delta)

    async def _next(self, parts: AsyncIterator[Any], *, first: bool) -> Any:
        seconds = self._config.first_token_seconds if first else self._config.idle_seconds
        with trio.move_on_after(seconds), translated():
            return await anext(parts, None)
        raise CallError("upstream", "Ollama fell silent in the middle of its answer.", reason="silent")

    async def embed(self, request: EmbedRequest, emit: Emit[Embeddings]) -> None:
        """See `Backend.embed`."""
        for some in portions(request.inputs, TOKENS_EACH):
            texts = [one for one in some if isinstance(one, str)]
            if len(texts) < len(some):
                raise CallError("unsupported", "Ollama embeds no tokens; send the texts.", param="input")
            answer: ollama.EmbedResponse | None = None
            with trio.move_on_after(self._config.first_token_seconds), translated():
                # `truncate` off: half a text must not pass for the whole.
                answer = await self._client.embed(request.model, texts, truncate=False, dimensions=request.dimensions)
            if answer is None:
                raise CallError("upstream", "Ollama fell silent.", reason="silent")
            if len(answer.embeddings) != len(texts):
                raise CallError("upstream", "Ollama sent another number of embeddings than there were texts.")
            vectors = tuple(shortened(packed(vector), request.dimensions) for vector in answer.embeddings)
            part = msgspec.structs.replace(request, inputs=some)
            await emit(Embeddings(vectors, counted(answer.prompt_eval_count) or estimated_input_tokens(part)))


class PartReader:
    """The parts of one stream, of a chat or a raw prompt, as deltas."""

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self._tokens = 0
        self._calls = 0
        self._call_id = f"call_{secrets.token_hex(8)}"

    @property
    def empty(self) -> bool:
        """Nothing has come yet."""
        return not self._tokens

    @property
    def counted_here(self) -> Usage:
        """What we know of the tokens so far."""
        return Usage(estimated_tokens(self._request), self._tokens)

    def receive(self, part: "ollama.ChatResponse | ollama.GenerateResponse") -> ChatDelta | None:
        """What a part brings.

        Raises:
            LogprobsMissingError: it is the first, and lacks them.
        """
        message = getattr(part, "message", None)
        text: str = (getattr(part, "response", None) if message is None else message.content) or ""
        reasoning: str = (getattr(part, "thinking", None) if message is None else message.thinking) or ""
        calls = tuple(self._call(call) for call in (message.tool_calls if message is not None else None) or ())
        if not (text or reasoning or calls):
            return None
        logprobs = () if self._request.logprobs is None else probabilities(part.logprobs, self._request.logprobs)
        if self._request.logprobs is not None and text and not logprobs:
            raise LogprobsMissingError
        tokens = max(len(logprobs), 1)
        self._tokens += tokens
        return ChatDelta(text, tokens, reasoning=reasoning, tool_calls=calls, logprobs=logprobs)

    def _call(self, call: "ollama.Message.ToolCall") -> ToolCallDelta:
        index, self._calls = self._calls, self._calls + 1
        try:
            arguments = msgspec.json.encode(dict(call.function.arguments)).decode()
        except (UnicodeEncodeError, RecursionError) as error:
            raise CallError("upstream", "Ollama sent a call whose arguments are no JSON.") from error
        return ToolCallDelta(index, f"{self._call_id}_{index}", call.function.name, arguments)

    def end(self, part: "ollama.ChatResponse | ollama.GenerateResponse") -> ChatDelta:
        """The last delta.

        Raises:
            CallError: `upstream`: it ended with an error.
        """
        finish = finish_of(part.done_reason)
        usage = Usage(
            counted(part.prompt_eval_count) or estimated_tokens(self._request),
            counted(part.eval_count) or self._tokens,
        )
        return ChatDelta(finish="tool_calls" if self._calls and finish == "stop" else finish, usage=usage)


def messages(request: ChatRequest) -> list[dict[str, Any]]:
    """Ollama's spelling of the conversation: arguments are objects, results name their tool."""
    names = {call.id: call.name for message in request.messages for call in message.tool_calls}
    return [_message(message, names) for message in request.messages]


def _message(message: Message, names: dict[str, str]) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        made["images"] = [image.data for image in message.images]  # bytes: the client takes a string for a path
    if message.tool_calls:
        made["tool_calls"] = [
            {"function": {"name": call.name, "arguments": _arguments(call.arguments)}} for call in message.tool_calls
        ]
    if message.role == "tool":
        made["tool_name"] = message.name or names.get(message.tool_call_id, "")
    return made


def _arguments(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise CallError("invalid", "An earlier tool call's arguments are no JSON object.", param="messages") from error


def tool_of(tool: Tool) -> dict[str, Any]:
    """Ollama's spelling of a tool."""
    function = {"name": tool.name, "description": tool.description}
    return {"type": "function", "function": function | {"parameters": decoded_schema(tool.parameters, "tools")}}


def survives(tool: Tool) -> bool:
    """Whether the client sends a tool on whole."""
    import ollama
    import pydantic

    given = tool_of(tool)
    try:
        sent = ollama.Tool.model_validate(given).model_dump(exclude_none=True, by_alias=True)
    except pydantic.ValidationError:
        return False
    return bool(sent == given)


def format_of(request: ChatRequest) -> Any:
    """Ollama's spelling of the format."""
    if request.format.kind == "schema":
        return decoded_schema(request.format.schema, "response_format")
    return "json" if request.format.kind == "json" else None


def options(request: ChatRequest) -> dict[str, Any]:
    """Ollama's spelling of the sampling parameters."""
    found: dict[str, Any] = msgspec.to_builtins(request.sampling)
    if request.max_tokens is not None:
        found["num_predict"] = request.max_tokens
    if request.stop:
        found["stop"] = list(request.stop)
    return found


def finish_of(reason: str | None) -> Finish:
    """Our word for Ollama's `done_reason`; old versions give none.

    Raises:
        CallError: `upstream`: it ended with an error.
    """
    if reason in {"error", "unload", "load"}:
        raise CallError("upstream", f"Ollama ended its answer with {reason!r}.")
    return "length" if reason == "length" else "stop"


def probabilities(found: Any, alternatives: int) -> tuple[TokenLogprob, ...]:
    """Ollama's probabilities in our shape."""
    return tuple(
        TokenLogprob(
            one.token,
            one.logprob,
            top=tuple(Alternative(other.token, other.logprob) for other in (one.top_logprobs or ())[:alternatives]),
        )
        for one in found or ()
    )
