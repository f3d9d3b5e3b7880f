"""Opens the answers to a request: counted, placed, streamed, and ended with whoever asked."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import TracebackType

import trio
from msgspec.structs import replace

from covey.bus.background import open_background
from covey.bus.bus import BusHandle
from covey.contracts.auth import Identity
from covey.contracts.inference import CHAT, EMBED, Capability, ChatRequest, EmbedRequest, Usage
from covey.contracts.method import Streaming
from covey.dialects.counting import estimated_input_tokens, estimated_tokens
from covey.errors import CallError
from covey.roles.gateway.admission import check_model
from covey.roles.gateway.answers import TOKENS_MAX, Answers, Choice, miscounted, prompt_key
from covey.roles.gateway.books import Asked, Books, Entry
from covey.roles.gateway.limiting import Limiter
from covey.roles.gateway.needs import OPENAI_FIELDS, needs
from covey.roles.gateway.patience import Patiences
from covey.roles.gateway.placement import Fleet, Wanted
from covey.roles.gateway.way import Reply, Request, Way


class Completions:
    """What the API's handlers and the bus's share.

    Args:
        bus: to the inference nodes.
        fleet: what they have.
        limiter: counts what keys and people may use.
        books: what became of each request.
        patiences: how long requests wait, by model.
    """

    def __init__(self, bus: BusHandle, fleet: Fleet, limiter: Limiter, books: Books, patiences: Patiences) -> None:
        self._bus = bus
        self._fleet = fleet
        self._limiter = limiter
        self._books = books
        self._patiences = patiences

    async def count_refused(self, asked: Asked) -> None:
        """Count a request that could not be read: it is one all the same, and its answer tells the limits."""
        asked.charge = await self._limiter.admit(asked.identity, prompt_tokens=0, answer_tokens_max=0)
        asked.charge.settle(0)

    def open(
        self, asked: Asked, chats: Sequence[ChatRequest], fields: Mapping[Capability, str], *, model: str
    ) -> AbstractAsyncContextManager[Answers]:
        """Run a request's chats; leaving the block stops the engines and closes the books.

        Args:
            asked: whose request; what becomes of it is written there.
            chats: one for each choice, all for one model. None: it only has to be there.
            fields: what the dialect calls the field behind a capability.
            model: as the client wrote it; "" is the first that can answer.

        Raises:
            CallError: `draining`, `rate_limited`, `forbidden`, `not_found`, `unsupported`, `no_capacity`, and what the
                node says.
        """
        return _Opened(self._books.entry(asked), asked, partial(self._choices, asked, chats, fields, model))

    async def _choices(
        self, asked: Asked, chats: Sequence[ChatRequest], fields: Mapping[Capability, str], written: str
    ) -> list[Choice]:
        once: dict[tuple[int, int], int] = {}
        for chat in chats:  # a long prompt is counted once, however many answers it is to have
            if (key := prompt_key(chat)) not in once:
                once[key] = estimated_tokens(chat)
        estimates = [once[prompt_key(chat)] for chat in chats]
        caps = [chat.max_tokens for chat in chats if chat.max_tokens is not None]
        share = await self._admit(
            asked, sum(once.values()), sum(caps) if len(caps) == len(chats) else None, answers=len(chats)
        )
        model = await self._fleet.name_of(written, asked.identity)
        check_model(asked.identity, model)
        if not chats:
            await self._fleet.place(_wanted(asked.identity, model, {}))
            asked.model = model
        choices: list[Choice] = []
        for chat, prompt_tokens in zip(chats, estimates, strict=True):
            limits = [limit for limit in (chat.max_tokens, share) if limit is not None]
            request = replace(chat, model=model, tenant=asked.identity.key_id, max_tokens=min(limits, default=None))
            way = await self._way(asked, model, CHAT, request, needs(chat, fields))
            choices.append(Choice(chat, way, prompt_tokens))
        return choices

    async def embed(self, asked: Asked, request: EmbedRequest) -> list[bytes]:
        """Embed all inputs; their vectors in order. `asked.usage` tells the tokens.

        Raises:
            CallError: as `open`.
        """
        with self._books.entry(asked):
            estimate = estimated_input_tokens(request)
            await self._admit(asked, estimate, 0, answers=1)
            model = await self._fleet.name_of(request.model, asked.identity)
            check_model(asked.identity, model)
            request = replace(request, model=model, tenant=asked.identity.key_id)
            way = await self._way(asked, model, EMBED, request, {"embed": OPENAI_FIELDS["embed"]})
            vectors: list[bytes] = []
            tokens = 0
            try:
                while batch := await way.batch():
                    asked.live.check()
                    for part in batch:
                        if not 0 <= part.prompt_tokens <= TOKENS_MAX:
                            raise miscounted(model)
                        vectors.extend(part.vectors)
                        tokens += part.prompt_tokens
                asked.live.check()
            finally:
                asked.usage, asked.node = Usage(tokens, 0), way.node
                await way.leave()
            if len(vectors) != len(request.inputs):
                raise CallError("upstream", f"The model {model!r} did not embed every input.")
            return vectors

    async def _way(
        self,
        asked: Asked,
        model: str,
        method: Streaming[Request, Reply],
        request: Request,
        needed: Mapping[Capability, str],
    ) -> Way[Request, Reply]:
        """The way to where a request is placed first."""
        wanted = _wanted(asked.identity, model, needed)
        # A model that nobody has is refused here, before it is a label of the metrics.
        first = await self._fleet.place(wanted)
        asked.model = model
        return Way(
            self._bus, self._fleet, self._books.tally, method, request, wanted, self._patiences.of(model), asked.live,
            first=first,
        )  # fmt: skip

    async def _admit(self, asked: Asked, prompt_tokens: int, answer_tokens: int | None, *, answers: int) -> int | None:
        """Count a request; returns how many tokens each of its answers may have, `None`: any."""
        charge = await self._limiter.admit(
            asked.identity, prompt_tokens=prompt_tokens, answer_tokens_max=answer_tokens, answers=answers
        )
        asked.charge = charge
        if charge.refusal is not None:
            raise charge.refusal
        if charge.answer_tokens_max is None or not answers:
            return None
        return max(charge.answer_tokens_max // answers, 1)


class _Opened(AbstractAsyncContextManager[Answers]):
    """Made by `Completions.open`. No generator: those cost a request as much as all of this.

    Args:
        entry: the request's, in the books.
        asked: the same request.
        choose: places its chats.
    """

    def __init__(self, entry: Entry, asked: Asked, choose: Callable[[], Awaitable[list[Choice]]]) -> None:
        self._entry = entry
        self._asked = asked
        self._choose = choose
        self._side_by_side: AbstractAsyncContextManager[trio.Nursery] | None = None

    async def __aenter__(self) -> Answers:
        self._entry.__enter__()
        try:
            self._choices = await self._choose()
            nursery: trio.Nursery | None = None
            if len(self._choices) > 1:
                self._side_by_side = open_background()
                nursery = await self._side_by_side.__aenter__()
        except BaseException as error:
            self._entry.close(error)
            raise
        self._answers = Answers(self._asked, self._choices, nursery)
        return self._answers

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._side_by_side is not None:
                await self._side_by_side.__aexit__(kind, error, traceback)
        except BaseException as failure:
            error = failure
            raise
        finally:
            await self._close(error)

    async def _close(self, error: BaseException | None) -> None:
        try:
            self._asked.usage, self._asked.node = self._answers.billed, self._answers.node
            if error is None and not self._answers.is_complete:
                self._asked.outcome = "cancelled"
            for choice in self._choices:
                await choice.way.leave()
        finally:
            self._entry.close(error)


def _wanted(identity: Identity, model: str, needed: Mapping[Capability, str]) -> Wanted:
    return Wanted(model, needed, frozenset(identity.node_labels))
