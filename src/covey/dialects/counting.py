"""A guess at a request's tokens, for what has to be known before the engine counts. Pure."""

from covey.contracts.inference import ChatRequest, EmbedRequest

BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
TOKENS_PER_IMAGE = 576
"""What a picture costs many models (LLaVA 1.5: 24 by 24 patches)."""


def estimated_tokens(request: ChatRequest) -> int:
    """Of the prompt: four bytes each, four a message, and what tools and pictures add."""
    bytes_sent = sum(len(tool.description) + len(tool.parameters) for tool in request.tools)
    tokens = 0
    if request.prompt is not None:
        tokens += len(request.prompt.tokens)
        bytes_sent += len(request.prompt.text.encode()) + len(request.prompt.suffix.encode())
    for message in request.messages:
        tokens += TOKENS_PER_MESSAGE + len(message.content.encode()) // BYTES_PER_TOKEN
        tokens += TOKENS_PER_IMAGE * len(message.images)
        bytes_sent += sum(len(call.name) + len(call.arguments) for call in message.tool_calls)
    return tokens + bytes_sent // BYTES_PER_TOKEN


def estimated_input_tokens(request: EmbedRequest) -> int:
    """Of all inputs together."""
    return sum(len(one.encode()) // BYTES_PER_TOKEN + 1 if isinstance(one, str) else len(one) for one in request.inputs)
