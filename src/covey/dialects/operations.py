"""Every path as `GET /openapi.json` describes it. Pure."""

from covey.dialects import (
    anthropic_messages,
    ollama_chat,
    ollama_embed,
    ollama_generate,
    ollama_models,
    openai_operations,
)
from covey.dialects.anthropic_problems import AnthropicError
from covey.dialects.ollama_problems import OllamaError
from covey.dialects.openapi import EVENTS, JSON, LINES, Operation

_ANTHROPIC: tuple[Operation, ...] = (
    Operation(
        "/v1/messages",
        "POST",
        "Answer a conversation, as Anthropic's API does.",
        "A message; with `stream`, its events.",
        anthropic_messages.MessagesBody,
        anthropic_messages.RANGES,
        (JSON, EVENTS),
        AnthropicError,
    ),
    Operation(
        "/v1/messages/count_tokens",
        "POST",
        "Estimate how many tokens a conversation has.",
        "The estimate.",
        anthropic_messages.MessagesBody,
        error=AnthropicError,
    ),
)
_OLLAMA: tuple[Operation, ...] = (
    Operation(
        "/api/chat",
        "POST",
        "Answer a conversation, as Ollama does.",
        "Its pieces, a line each; with `stream: false`, one object.",
        ollama_chat.ChatBody,
        (),
        (LINES, JSON),
        OllamaError,
    ),
    Operation(
        "/api/generate",
        "POST",
        "Answer a prompt, or go on from a raw one.",
        "Its pieces, a line each; with `stream: false`, one object.",
        ollama_generate.GenerateBody,
        (),
        (LINES, JSON),
        OllamaError,
    ),
    Operation("/api/embed", "POST", "Embed texts.", "A vector for each.", ollama_embed.EmbedBody, error=OllamaError),
    Operation(
        "/api/embeddings", "POST", "Embed a text.", "Its vector.", ollama_embed.EmbeddingsBody, error=OllamaError
    ),
    Operation("/api/tags", "GET", "List the models that the key may use.", "The models.", error=OllamaError),
    Operation("/api/ps", "GET", "List the models that are loaded.", "The models.", error=OllamaError),
    Operation("/api/show", "POST", "Tell one model.", "The model.", ollama_models.ShowBody, error=OllamaError),
    Operation("/api/version", "GET", "Tell which version of Ollama's API this is.", "The version.", error=OllamaError),
)
_ITSELF = Operation("/openapi.json", "GET", "Describe the API.", "This document.", needs_key=False)

OPERATIONS: tuple[Operation, ...] = (*openai_operations.OPERATIONS, *_ANTHROPIC, *_OLLAMA, _ITSELF)
