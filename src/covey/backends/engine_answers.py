"""Answers of llama.cpp, embedded or a server's: which of llama.cpp's ways a request takes, and what comes back.

Always a stream: an answer that is not streamed is cancelled late or, while others are served, never.
"""

import secrets

import httpx
import msgspec

from covey.backends.capable import check_capable
from covey.backends.catalogue import Entry, with_recommended
from covey.backends.completion_requests import chat_body, engine_prompt
from covey.backends.completions import AnswerReader
from covey.backends.engine_abilities import Abilities
from covey.backends.forced_tools import CallFinder, plain_request
from covey.backends.refusals import refusal
from covey.backends.sse_client import Patience, RefusedError, post_events
from covey.bus.replies import Emit
from covey.contracts.inference import ChatDelta, ChatRequest, Prompt
from covey.dialects.counting import estimated_tokens
from covey.errors import CallError


class _EnoughError(Exception):
    """The call is complete: the model would only ramble on."""


async def answer(
    client: httpx.AsyncClient,
    abilities: Abilities,
    request: ChatRequest,
    entry: Entry | None,
    patience: Patience,
    emit: Emit[ChatDelta],
    root: str = "",
) -> None:
    """Have an engine answer a request for its model. `root`: its URL, where the client's own is a path below.

    Raises:
        CallError: `unsupported`, `invalid`, `upstream`.
        SilentUpstreamError: nothing came back.
    """
    check_capable(request, abilities.capabilities)
    request = msgspec.structs.replace(request, sampling=with_recommended(request.sampling, entry))
    try:
        if request.prompt is not None:
            await _go_on(client, root, request, request.prompt, patience, emit)
        else:
            await _converse(client, root, abilities, request, entry, patience, emit)
    except RefusedError as error:
        raise _refused(error, request) from error


async def _go_on(
    client: httpx.AsyncClient,
    root: str,
    request: ChatRequest,
    prompt: Prompt,
    patience: Patience,
    emit: Emit[ChatDelta],
) -> None:
    if prompt.suffix and prompt.tokens:
        raise CallError("unsupported", "A gap to fill has text before it, not tokens.", param="suffix")
    reader = AnswerReader(estimated_tokens(request), alternatives=request.logprobs)
    path, body = engine_prompt(request, prompt)

    async def on_event(event: bytes) -> None:
        if delta := reader.receive_engine(event):
            await emit(delta)

    await post_events(client, root + path, body, on_event, patience)
    await emit(reader.end())


async def _converse(
    client: httpx.AsyncClient,
    root: str,
    abilities: Abilities,
    request: ChatRequest,
    entry: Entry | None,
    patience: Patience,
    emit: Emit[ChatDelta],
) -> None:
    call_id = f"call_{secrets.token_hex(8)}"
    finder: CallFinder | None = None
    required = request.tool_use == "required" and bool(request.tools)
    if required or not abilities.tools:
        # llama.cpp takes `tool_choice` for a wish, so what is required is forced here, whatever the template.
        if request.tools and request.tool_use != "none":
            names = frozenset(tool.name for tool in request.tools)
            finder = CallFinder(names, call_id, required=required)
        asked = plain_request(request)
    else:
        asked = msgspec.structs.replace(request, tools=()) if request.tool_use == "none" else request
    body = chat_body(asked, request.model, local=True, system_prompt=entry is not None and entry.system_prompt)
    reader = AnswerReader(estimated_tokens(asked), call_id, request.logprobs)

    async def on_event(event: bytes) -> None:
        delta = reader.receive(event)
        if delta is not None and finder is not None:
            delta = finder.receive(delta)
        if delta is not None:
            await emit(delta)
        if finder is not None and finder.over:
            raise _EnoughError

    try:
        await post_events(client, f"{root}/v1/chat/completions", body, on_event, patience)
    except _EnoughError:
        last = ChatDelta(finish="tool_calls", usage=reader.counted_here)
    else:
        last = reader.end()
    for delta in (last,) if finder is None else finder.end(last):
        await emit(delta)


def _refused(error: RefusedError, request: ChatRequest) -> CallError:
    refused = refusal(error.status, error.body)
    if refused.code == "unsupported" and request.prompt is not None and request.prompt.suffix:
        return CallError(
            "unsupported",
            f"The model {request.model[:200]} was not trained to fill gaps; leave suffix out.",
            reason="capability",
            param="suffix",
        )
    return refused
