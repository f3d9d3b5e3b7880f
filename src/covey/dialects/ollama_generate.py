"""The body of Ollama's `POST /api/generate` to our chats. Pure.

Source: Ollama's API reference, "Generate a completion".
"""

from functools import partial

import msgspec

from covey.contracts.inference import Capability, ChatRequest, Message, Prompt
from covey.dialects.base import ChatCall
from covey.dialects.bodies import decode, model_name
from covey.dialects.ollama_chat import pictures
from covey.dialects.ollama_options import FIELDS, Answering, settings
from covey.dialects.ollama_writer import LineWriter, generate_fields
from covey.dialects.pictures import check_picture_count
from covey.errors import CallError


class GenerateBody(Answering):
    """What a client sends. `context`, deprecated by Ollama, is ignored."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    raw: bool | None = None
    images: list[str] | None = None


_decoder = msgspec.json.Decoder(GenerateBody)


def parse_generate(body: bytes) -> ChatCall:
    """A request body to ours: a chat of one turn, or with `raw` or `suffix` the text itself, without a template.

    Without a prompt it only asks that the model be ready.

    Raises:
        CallError: `invalid` or `unsupported`, with `param` naming the field.
    """
    sent = decode(body, _decoder)
    model_name(sent.model)
    how = settings(sent)
    _refuse_unsupported(sent)
    check_picture_count(len(sent.images or ()), "images")
    chat = ChatRequest(
        model=sent.model,
        messages=() if _is_raw(sent) else _messages(sent),
        max_tokens=how.max_tokens,
        stop=how.stop,
        sampling=how.sampling,
        format=how.format,
        logprobs=how.logprobs,
        prompt=Prompt(sent.prompt or "", suffix=sent.suffix or "") if _is_raw(sent) else None,
    )
    has_logprobs = how.logprobs is not None
    writer = partial(LineWriter, names=generate_fields, thinking=sent.is_thinking_shown, logprobs=has_logprobs)
    chats = (chat,) if sent.prompt else ()
    fields: dict[Capability, str] = {**FIELDS, "completion": "suffix" if sent.suffix else "raw"}
    return ChatCall(chats, sent.is_streamed, writer, fields, sent.model)


def _is_raw(sent: GenerateBody) -> bool:
    return bool(sent.raw or sent.suffix)


def _messages(sent: GenerateBody) -> tuple[Message, ...]:
    turn = Message("user", sent.prompt or "", images=pictures(sent.images, "images"))
    return (Message("system", sent.system), turn) if sent.system else (turn,)


def _refuse_unsupported(sent: GenerateBody) -> None:
    if sent.template:
        raise CallError(
            "unsupported",
            "template is not supported: a model's own is used. With raw: true the prompt is taken as it is.",
            param="template",
        )
    if _is_raw(sent):
        for name, asked in (("system", sent.system), ("images", sent.images)):
            if asked:
                with_name = "raw" if sent.raw else "suffix"
                raise CallError("unsupported", f"{name} cannot be had together with {with_name}.", param=name)
