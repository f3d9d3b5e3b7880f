"""The chat: a conversation that lives in the page alone."""

from typing import Annotated

import msgspec
from quart import Blueprint, Response, render_template, request

from covey.contracts.gateway import LIST_MODELS, Completion, ListModels, ModelSummary
from covey.contracts.inference import MESSAGES_MAX, MODEL_NAME_PATTERN, ChatRequest, Message, Sampling
from covey.roles.web.completion import CompletionBody
from covey.roles.web.context import ask, web
from covey.roles.web.faults import as_json
from covey.roles.web.sessions import visitor

blueprint = Blueprint("chat", __name__)


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the page sends: the whole conversation, the newest message last."""

    model: Annotated[str, msgspec.Meta(pattern=f"^{MODEL_NAME_PATTERN}$")]
    messages: Annotated[tuple[Message, ...], msgspec.Meta(min_length=1, max_length=MESSAGES_MAX)]
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None


@blueprint.get("/chat")
async def page() -> str:
    """The page; without a gateway there is nobody to talk to, and it says so."""
    listed = await ask(LIST_MODELS, ListModels(visitor().actor))
    models = [model for model in listed.models if "chat" in model.capabilities]
    models.sort(key=_readiness)
    return await render_template("chat.html", models=models, wanted=request.args.get("model", ""))


def _readiness(model: ModelSummary) -> tuple[int, str]:
    order = ("loaded", "remote", "on_disk", "loading", "failed")
    return (order.index(model.state), model.name)


@blueprint.post("/chat/stream")
async def stream() -> Response:
    """Answer with lines of JSON while the model speaks (`covey.roles.web.completion`)."""
    if not request.is_json:
        return as_json(415, "content_type", "Send JSON.")
    try:
        question = msgspec.json.decode(await request.get_data(), type=Question)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        return as_json(400, "invalid", f"The question was not understood: {error}.")
    chat = ChatRequest(
        question.model,
        question.messages,
        max_tokens=min(question.max_tokens or web().config.chat_tokens_max, web().config.chat_tokens_max),
        sampling=Sampling(temperature=question.temperature),
    )
    response = Response(
        CompletionBody(web().bus, Completion(visitor().actor, chat)),
        content_type="application/x-ndjson",
        headers={"X-Accel-Buffering": "no"},  # else nginx holds the tokens back
    )
    response.timeout = None  # Quart would cut the answer silently after a minute
    return response
