"""For each route, requests that use every field: what `hostile` breaks in every way."""

from typing import Any

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION: dict[str, Any] = {"name": "weather", "description": "The weather.", "parameters": SCHEMA, "strict": True}
TOOL: dict[str, Any] = {"type": "function", "function": FUNCTION}
CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city":"x"}'},
}

CHAT: dict[str, Any] = {
    "model": "echo",
    "messages": [
        {"role": "system", "content": "Be brief.", "name": "boss"},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "content": [{"type": "text", "text": "one two"}], "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "user", "content": "three four"},
    ],
    "stream": False,
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "stop": ["zzz"],
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "seed": 1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logit_bias": {"5": 1.0},
    "n": 1,
    "logprobs": True,
    "top_logprobs": 2,
    "tools": [TOOL],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "user": "ann",
    "metadata": {"a": "b"},
    "store": False,
}
PICTURE: dict[str, Any] = {
    "model": "echo",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
                {"type": "text", "text": "What is it?"},
            ],
        }
    ],
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 5,
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "tools": [TOOL],
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}},
    "modalities": ["text"],
    "functions": None,
    "function_call": None,
}
COMPLETION: dict[str, Any] = {
    "model": "echo",
    "prompt": ["Once upon", "a time"],
    "suffix": None,
    "max_tokens": 5,
    "temperature": 0.5,
    "top_p": 0.9,
    "n": 2,
    "best_of": 2,
    "stream": False,
    "logprobs": 2,
    "echo": False,
    "stop": "zzz",
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logit_bias": {"5": 1},
    "seed": 1,
    "user": "ann",
}
COMPLETION_STREAM: dict[str, Any] = {
    "model": "echo",
    "prompt": [[1, 2, 3], [4]],
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 3,
}
EMBEDDING: dict[str, Any] = {
    "model": "echo", "input": ["a cat", "a dog"], "encoding_format": "float", "dimensions": 8, "user": "ann",
}  # fmt: skip
EMBEDDING_TOKENS: dict[str, Any] = {"model": "echo", "input": [[1, 2], [3]], "encoding_format": "base64"}
RESPONSE: dict[str, Any] = {
    "model": "echo",
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "one two"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}", "id": "fc_1"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"role": "user", "content": "three"},
    ],
    "instructions": "Be brief.",
    "max_output_tokens": 20,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_logprobs": 2,
    "include": ["message.output_text.logprobs"],
    "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA, "strict": True}, "verbosity": "low"},
    "reasoning": {"effort": "low"},
    "truncation": "disabled",
    "store": False,
    "stream": False,
    "metadata": {"a": "b"},
    "previous_response_id": None,
    "background": False,
    "user": "ann",
}
RESPONSE_STREAM: dict[str, Any] = {"model": "echo", "input": "one two", "stream": True, "max_output_tokens": 20}
MESSAGE: dict[str, Any] = {
    "model": "echo",
    "max_tokens": 5,
    "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "one two"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            ],
        },
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "x"}}]},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "sunny", "is_error": False}],
        },
    ],
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "stop_sequences": ["zzz"],
    "stream": False,
    "tools": [{"name": "weather", "description": "The weather.", "input_schema": SCHEMA}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "metadata": {"user_id": "ann"},
    "thinking": {"type": "disabled"},
}
MESSAGE_STREAM: dict[str, Any] = {
    "model": "echo", "max_tokens": 5, "stream": True, "system": "Be brief.",
    "messages": [{"role": "user", "content": "one two"}],
}  # fmt: skip
OLLAMA_CHAT: dict[str, Any] = {
    "model": "echo",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one two", "images": [PNG]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "x"}}}],
        },
        {"role": "tool", "content": "sunny", "tool_name": "weather"},
    ],
    "tools": [TOOL],
    "format": SCHEMA,
    "options": {
        "num_predict": 5, "stop": ["zzz"], "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 1,
        "presence_penalty": 0.5, "frequency_penalty": 0.5, "num_ctx": 4096,
    },
    "stream": False,
    "think": False,
    "keep_alive": "5m",
    "logprobs": True,
    "top_logprobs": 2,
}  # fmt: skip
GENERATE: dict[str, Any] = {
    "model": "echo",
    "prompt": "one two",
    "suffix": "",
    "images": [PNG],
    "format": "json",
    "options": {"num_predict": 5, "stop": "zzz"},
    "system": "Be brief.",
    "template": "",
    "context": [1, 2],
    "stream": True,
    "raw": False,
    "keep_alive": 5,
    "think": False,
}
EMBED: dict[str, Any] = {
    "model": "echo", "input": ["a cat", "a dog"], "truncate": True, "dimensions": 8, "options": {}, "keep_alive": "5m",
}  # fmt: skip

REQUESTS: dict[str, tuple[dict[str, Any], ...]] = {
    "/v1/chat/completions": (CHAT, PICTURE),
    "/v1/completions": (COMPLETION, COMPLETION_STREAM),
    "/v1/embeddings": (EMBEDDING, EMBEDDING_TOKENS),
    "/v1/responses": (RESPONSE, RESPONSE_STREAM),
    "/v1/messages": (MESSAGE, MESSAGE_STREAM),
    "/v1/messages/count_tokens": (MESSAGE_STREAM,),
    "/api/chat": (OLLAMA_CHAT,),
    "/api/generate": (GENERATE,),
    "/api/embed": (EMBED,),
    "/api/embeddings": ({"model": "echo", "prompt": "a cat", "options": {}, "keep_alive": "5m"},),
    "/api/show": ({"model": "echo", "verbose": True},),
}
