"""The OpenAI dialect from the client's side: our requests as its bodies. Pure.

Sources: https://platform.openai.com/docs/api-reference/chat, /completions and /embeddings; what llama.cpp adds is in
https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md.
"""

import base64
from typing import Any

import msgspec

from covey.contracts.inference import AnswerFormat, ChatRequest, EmbedRequest, Message, Prompt, Tool
from covey.errors import CallError

SYSTEM_PROMPT = "You are a helpful assistant."


def chat_body(
    request: ChatRequest,
    model: str,
    *,
    local: bool,
    system_prompt: bool = False,
    max_tokens_field: str = "max_tokens",
) -> bytes:
    """The body to POST. Always a stream: an answer that is not streamed is cancelled late or never.

    Args:
        request: what was asked.
        model: its name on that server.
        local: it is llama.cpp, whose own fields are understood.
        system_prompt: start with a plain system message where there is none: the model is of no use without.
        max_tokens_field: what the server calls it.

    Raises:
        CallError: `invalid`: a schema is no JSON object.
    """
    messages = [_message(message) for message in request.messages]
    if system_prompt and all(message.role != "system" for message in request.messages):
        messages.insert(0, {"role": "system", "content": SYSTEM_PROMPT})
    body = {"model": model, "messages": messages, **_shared(request, local=local, max_tokens_field=max_tokens_field)}
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        if request.forced_tool and request.tool_use == "required":
            body["tool_choice"] = {"type": "function", "function": {"name": request.forced_tool}}
        elif request.tool_use != "auto":
            body["tool_choice"] = request.tool_use
        if request.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = request.parallel_tool_calls
    if request.format.kind != "text":
        body["response_format"] = _format(request.format)
    if request.logprobs is not None:
        # llama.cpp takes "no alternatives" for "no probabilities".
        body |= {"logprobs": True, "top_logprobs": max(request.logprobs, 1) if local else request.logprobs}
    return msgspec.json.encode(body)


def prompt_body(request: ChatRequest, prompt: Prompt, model: str) -> bytes:
    """The body for `/completions`, which always calls the limit `max_tokens`."""
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt.tokens) if prompt.tokens else prompt.text,
        **_shared(request, local=False, max_tokens_field="max_tokens"),
    }
    if prompt.suffix:
        body["suffix"] = prompt.suffix
    if request.logprobs is not None:
        body["logprobs"] = request.logprobs
    if request.format.kind != "text":
        body["response_format"] = _format(request.format)
    return msgspec.json.encode(body)


def engine_prompt(request: ChatRequest, prompt: Prompt) -> tuple[str, bytes]:
    """llama.cpp's own path for a raw prompt and the body for it: it alone tells which stop sequence ended an answer."""
    body: dict[str, Any] = {"stream": True, "timings_per_token": True, "return_progress": True, "cache_prompt": True}
    body |= msgspec.to_builtins(request.sampling)
    if request.max_tokens is not None:
        body["n_predict"] = request.max_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    if request.logprobs is not None:
        body["n_probs"] = max(request.logprobs, 1)
    if request.format.kind == "json":
        body["json_schema"] = {"type": "object"}
    elif request.format.kind == "schema":
        body["json_schema"] = decoded_schema(request.format.schema, "response_format")
    if prompt.suffix:
        return "/infill", msgspec.json.encode(
            {**body, "input_prefix": prompt.text, "input_suffix": prompt.suffix, "prompt": ""}
        )
    return "/completion", msgspec.json.encode({**body, "prompt": list(prompt.tokens) if prompt.tokens else prompt.text})


def embed_body(request: EmbedRequest, some: tuple[str | tuple[int, ...], ...]) -> bytes:
    """The body for `/embeddings` with some of the inputs; vectors are asked for in base64, a third of the bytes."""
    body: dict[str, Any] = {"model": request.model, "input": some, "encoding_format": "base64"}
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    return msgspec.json.encode(body)


def decoded_schema(text: str, param: str) -> dict[str, Any]:
    """A JSON Schema out of its text; "" is one that allows an empty object.

    Raises:
        CallError: `invalid`: no JSON object.
    """
    if not text:
        return {"type": "object", "properties": {}}
    try:
        schema: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise CallError("invalid", f"A JSON Schema in {param} is not a JSON object.", param=param) from error
    return schema


def _shared(request: ChatRequest, *, local: bool, max_tokens_field: str) -> dict[str, Any]:
    body: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    if local:
        # Progress is an event after each batch of the prompt: without one, llama.cpp finds out that nobody listens any
        # more only when the whole prompt is evaluated (measured: 11 s for 1,120 tokens, 0.5 s with it).
        body |= {"timings_per_token": True, "return_progress": True}
    if request.max_tokens is not None:
        body[max_tokens_field] = request.max_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    sampling: dict[str, Any] = msgspec.to_builtins(request.sampling)
    return body | sampling


def _message(message: Message) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message.role, "content": _content(message)}
    if message.name:
        made["name"] = message.name
    if message.tool_calls:
        made["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    return made


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not message.images:
        return message.content
    parts: list[dict[str, Any]] = []
    done = 0
    for image in sorted(message.images, key=lambda image: image.at):
        if text := message.content[done : image.at]:
            parts.append({"type": "text", "text": text})
        done = max(done, image.at)
        url = f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    if text := message.content[done:]:
        parts.append({"type": "text", "text": text})
    return parts


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = decoded_schema(tool.parameters, "tools")
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _format(wanted: AnswerFormat) -> dict[str, Any]:
    if wanted.kind == "json":
        return {"type": "json_object"}
    schema = decoded_schema(wanted.schema, "response_format")
    return {"type": "json_schema", "json_schema": {"name": wanted.name or "answer", "schema": schema, "strict": True}}
