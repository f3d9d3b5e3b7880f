"""What a back end is: something that runs models. It never blocks the loop."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec

from covey.bus.replies import Emit
from covey.contracts.inference import ChatDelta, ChatRequest, Embeddings, EmbedRequest, ModelStatus, PullProgress
from covey.telemetry.metrics import Metrics

Report = Callable[[PullProgress], Awaitable[None]]


class Backend(Protocol):
    """An open back end."""

    name: str

    def models(self) -> tuple[ModelStatus, ...]:
        """What it has now, from memory: called often. Kept fresh by the back end's own task.

        A model's `capabilities` are promises: whatever else a request needs (`covey.backends.capable`) is refused.
        """
        ...

    async def generate(self, request: ChatRequest, emit: Emit[ChatDelta]) -> None:
        """Answer a chat or go on from a prompt, token by token; the last delta carries `finish` and `usage`.

        Every field of the request is honoured or refused, none ignored. Cancelling stops the engine.

        Raises:
            CallError: `not_found` (`model_not_found`), `loading`, `unsupported`, `invalid`, `no_capacity`, `upstream`.
        """
        ...

    async def embed(self, request: EmbedRequest, emit: Emit[Embeddings]) -> None:
        """Embed every input, in order, a few at a time; cancelling stops the engine.

        Raises:
            CallError: as `generate`; `unsupported` where no model here embeds.
        """
        ...

    async def pull(self, model: str, report: Report) -> None:
        """Fetch a model; returns once it is verified and in place.

        Raises:
            CallError: `unsupported` where this back end cannot fetch it, `upstream`, `storage`, `invalid`.
        """
        ...


@runtime_checkable
class Remover(Protocol):
    """A back end that can also take models away again."""

    async def remove(self, model: str) -> int:
        """Remove a model of `Backend.models`, by that name; returns how many bytes that freed, 0 where it is unknown.

        Raises:
            CallError: `not_found`, `conflict`, `upstream`, `storage`.
        """
        ...


@dataclass(frozen=True, slots=True)
class BackendParts:
    """What a back end may touch. `folder` holds the node's models."""

    folder: Path
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class BackendPlugin:
    """What an entry point of the group `covey.backends` names: its table `[backends.<name>]` has the type `config`."""

    name: str
    config: type[msgspec.Struct]
    open: Callable[[Any, BackendParts], AbstractAsyncContextManager[Backend]]


@dataclass(frozen=True, slots=True)
class Plugged:
    """A configured back end: the plug-in with its settings."""

    plugin: BackendPlugin
    config: msgspec.Struct
