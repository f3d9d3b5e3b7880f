"""OpenAI's paths as `GET /openapi.json` describes them. Pure."""

from covey.dialects import openai_chat, openai_completions, openai_embeddings, openai_responses
from covey.dialects.openapi import EVENTS, JSON, Operation
from covey.dialects.problems import OpenAiError

STREAMABLE = (JSON, EVENTS)

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "/v1/chat/completions",
        "POST",
        "Answer a conversation.",
        "A chat completion; with `stream`, its chunks.",
        openai_chat.ChatBody,
        openai_chat.RANGES,
        STREAMABLE,
        OpenAiError,
    ),
    Operation(
        "/v1/completions",
        "POST",
        "Go on from a raw prompt.",
        "A completion; with `stream`, its pieces.",
        openai_completions.CompletionBody,
        openai_completions.RANGES,
        STREAMABLE,
        OpenAiError,
    ),
    Operation(
        "/v1/embeddings",
        "POST",
        "Embed texts.",
        "A vector for each input.",
        openai_embeddings.EmbeddingBody,
        openai_embeddings.RANGES,
        error=OpenAiError,
    ),
    Operation(
        "/v1/responses",
        "POST",
        "Answer a conversation; nothing of it is stored.",
        "A response; with `stream`, its events.",
        openai_responses.ResponseBody,
        openai_responses.RANGES,
        STREAMABLE,
        OpenAiError,
    ),
    Operation("/v1/models", "GET", "List the models that the key may use.", "The models.", error=OpenAiError),
    Operation("/v1/models/{id}", "GET", "Tell one model.", "The model.", error=OpenAiError),
)
