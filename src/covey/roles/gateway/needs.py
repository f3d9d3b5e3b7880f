"""Which capabilities of a model a request needs. Pure."""

from collections.abc import Mapping

from covey.contracts.inference import Capability, ChatRequest

OPENAI_FIELDS: Mapping[Capability, str] = {
    "chat": "model",
    "completion": "prompt",
    "embed": "model",
    "tools": "tools",
    "vision": "messages",
    "json": "response_format",
    "logprobs": "logprobs",
}


def needs(request: ChatRequest, fields: Mapping[Capability, str]) -> dict[Capability, str]:
    """Each capability that the request needs, with the field that asked for it.

    Args:
        request: the chat.
        fields: what its dialect calls them; OpenAI's names for the rest.
    """
    found: list[Capability] = ["chat" if request.prompt is None else "completion"]
    if request.tools and request.tool_use != "none":
        found.append("tools")
    if any(message.images for message in request.messages):
        found.append("vision")
    if request.format.kind != "text":
        found.append("json")
    if request.logprobs is not None:
        found.append("logprobs")
    return {capability: fields.get(capability) or OPENAI_FIELDS[capability] for capability in found}
