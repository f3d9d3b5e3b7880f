"""What a request needs of a model, as words of `Capability`, and the refusal where a model lacks it. Pure."""

from collections.abc import Collection, Iterator

from covey.contracts.inference import Capability, ChatRequest
from covey.errors import CallError

_WORDS: dict[Capability, str] = {
    "chat": "converse",
    "completion": "go on from a raw prompt",
    "embed": "embed texts",
    "tools": "call tools",
    "vision": "see pictures",
    "json": "keep to a format",
    "logprobs": "tell its tokens' probabilities",
}


def needs(request: ChatRequest) -> Iterator[tuple[Capability, str]]:
    """Each capability that a request asks for, with the field that does (OpenAI's name for it)."""
    if request.prompt is None:
        yield "chat", "messages"
    else:
        yield "completion", "prompt"
    if any(message.images for message in request.messages):
        yield "vision", "messages"
    if request.tools and request.tool_use != "none":
        yield "tools", "tools"
    if request.format.kind != "text":
        yield "json", "response_format"
    if request.logprobs is not None:
        yield "logprobs", "logprobs"


def check_capable(request: ChatRequest, capabilities: Collection[str]) -> None:
    """Raise `unsupported` (`capability`), with the field as `param`, unless the model can do all that is asked for."""
    for capability, field in needs(request):
        if capability not in capabilities:
            raise unable(request.model, capability, field)


def unable(model: str, capability: Capability, field: str) -> CallError:
    """The refusal."""
    return CallError(
        "unsupported",
        f"The model {model[:200]} cannot {_WORDS[capability]}; leave {field} out or choose another model.",
        reason="capability",
        param=field,
    )


def no_embeddings(model: str) -> CallError:
    """The refusal of a model that embeds nothing."""
    return CallError(
        "unsupported",
        f"The model {model[:200]} cannot embed texts; choose one that does.",
        reason="capability",
        param="model",
    )
