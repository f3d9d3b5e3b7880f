"""What an engine's model can do, as llama.cpp tells of its chat template and its inputs."""

from dataclasses import dataclass

import httpx
import msgspec

from covey.backends.sse_client import get_json
from covey.contracts.inference import Capability

ALWAYS: tuple[Capability, ...] = ("chat", "completion", "json", "logprobs", "tools")
"""Of any model: grammars force formats and calls, whatever the template."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """`tools`: the chat template has a place for them, and for calls and results."""

    tools: bool = False
    vision: bool = False

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """In our words, sorted."""
        return (*ALWAYS, "vision") if self.vision else ALWAYS


class _Template(msgspec.Struct):
    supports_tools: bool = False
    supports_tool_calls: bool = False


class _Modalities(msgspec.Struct):
    vision: bool = False


class _Properties(msgspec.Struct):
    chat_template_caps: _Template = msgspec.field(default_factory=_Template)
    modalities: _Modalities = msgspec.field(default_factory=_Modalities)


async def ask_abilities(client: httpx.AsyncClient, root: str = "") -> Abilities:
    """Ask an engine that has come up; `root`: its URL, where the client's own is a path below.

    Raises:
        SilentUpstreamError, RefusedError, CallError: as `get_json`.
        msgspec.MsgspecError: it says something else.
    """
    told = msgspec.json.decode(await get_json(client, f"{root}/props"), type=_Properties)
    template = told.chat_template_caps
    return Abilities(template.supports_tools and template.supports_tool_calls, told.modalities.vision)
