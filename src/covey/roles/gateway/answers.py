"""The answers to one request, one for each choice, as they come."""

import math
from collections.abc import Sequence

import trio

from covey.contracts.inference import ChatDelta, ChatRequest, Usage
from covey.dialects.base import Gathered
from covey.errors import CallError
from covey.roles.gateway.books import Asked
from covey.roles.gateway.way import Way
from covey.transport.base import PeerId

CHOICES_AT_ONCE = 8
"""How many answers to one request are under way at once; more wait."""

ANSWER_SIZE_MAX = 4 * 1024 * 1024
"""Characters of one answer, beyond what any model has to say: a server that never ends costs no more memory."""
TOKENS_MAX = 2**31
"""Of one answer, and of its prompt."""

Batch = list[tuple[int, list[ChatDelta]]]
"""Deltas by choice."""


class Choice:
    """One chat of a request: what of its answer is `gathered` so far.

    Args:
        chat: what was asked.
        way: to the node that answers.
        prompt_tokens: a guess, for where the engine does not get to count.
    """

    def __init__(self, chat: ChatRequest, way: Way[ChatRequest, ChatDelta], prompt_tokens: int) -> None:
        self.chat = chat
        self.way = way
        self.gathered = Gathered()
        self._prompt_tokens = prompt_tokens
        self._refused = False

    async def batch(self, until: float = math.inf) -> list[ChatDelta] | None:
        """The next deltas, all that wait; [] at the end; `None` where none has come `until` then, on trio's clock.

        Raises:
            CallError: the back end's; `upstream` where it ended without saying how, or does not end.
        """
        try:
            deltas = await self.way.batch(until)
        except CallError as error:
            # Nothing was delivered: neither is the prompt billed. Where it was ended here, somebody worked on it.
            is_ended_here = error.code == "deadline" or self.way.live.has_ended
            self._refused = not self.gathered.tokens and not is_ended_here
            raise
        if deltas:
            self.gathered.add(deltas)
            if self.gathered.size > ANSWER_SIZE_MAX:
                raise CallError("upstream", f"The model {self.chat.model!r} does not end its answer.")
            if self.gathered.usage is not None or not 0 <= self.gathered.tokens <= TOKENS_MAX:
                self._check_counts()
        elif deltas is not None and self.gathered.finish is None:
            raise CallError("upstream", f"The model {self.chat.model!r} broke off in the middle of its answer.")
        return deltas

    def _check_counts(self) -> None:
        """Believe no node what nobody can have counted: the books and the owners of limits would choke on it."""
        gathered = self.gathered
        counts = [gathered.tokens]
        if gathered.usage is not None:
            counts += [gathered.usage.prompt_tokens, gathered.usage.completion_tokens, gathered.usage.cached_tokens]
        if min(counts) < 0 or max(counts) > TOKENS_MAX:
            gathered.usage, gathered.tokens = None, 0
            raise miscounted(self.chat.model)

    @property
    def billed(self) -> Usage:
        """What the engine counted; where it was cut short, what was delivered, and a guess at the prompt."""
        if self.gathered.usage is not None:
            return self.gathered.usage
        is_asked = self.way.node is not None and not self._refused
        return Usage(self._prompt_tokens if is_asked else 0, self.gathered.tokens)


class Answers:
    """Take `batch()` until it is empty. Made by `Completions.open`.

    Args:
        asked: whose request.
        choices: one way each.
        nursery: where several choices are waited for at once; one alone needs none.
    """

    def __init__(self, asked: Asked, choices: Sequence[Choice], nursery: trio.Nursery | None = None) -> None:
        self._asked = asked
        self._choices = choices
        self._feed: trio.MemoryReceiveChannel[tuple[int, list[ChatDelta] | CallError]] | None = None
        if nursery is not None:
            give, self._feed = trio.open_memory_channel[tuple[int, list[ChatDelta] | CallError]](len(choices))
            turns = trio.Semaphore(CHOICES_AT_ONCE)
            with give:
                for index, choice in enumerate(choices):
                    nursery.start_soon(_deliver, index, choice, give.clone(), turns)

    @property
    def model(self) -> str:
        """Its name here."""
        return self._asked.model

    @property
    def node(self) -> PeerId | None:
        """Who works on it; of several, on the first that somebody works on."""
        return next((choice.way.node for choice in self._choices if choice.way.node is not None), None)

    @property
    def gathered(self) -> list[Gathered]:
        """What there is so far, by choice."""
        return [choice.gathered for choice in self._choices]

    @property
    def is_complete(self) -> bool:
        """Whether every choice has ended well."""
        return all(choice.gathered.finish is not None for choice in self._choices)

    @property
    def billed(self) -> Usage:
        """Over all choices. A prompt that several of them share counts once, as with OpenAI."""
        if len(self._choices) == 1:
            return self._choices[0].billed
        prompts: dict[tuple[int, int], tuple[int, int]] = {}
        completion_tokens = 0
        for choice in self._choices:
            bill = choice.billed
            completion_tokens += bill.completion_tokens
            key = prompt_key(choice.chat)
            known_tokens, known_cached = prompts.get(key, (0, bill.cached_tokens))
            prompts[key] = max(known_tokens, bill.prompt_tokens), min(known_cached, bill.cached_tokens)
        return Usage(
            sum(tokens for tokens, _ in prompts.values()),
            completion_tokens,
            sum(cached for _, cached in prompts.values()),
        )

    async def batch(self, until: float = math.inf) -> Batch | None:
        """The next deltas; [] at the end of all; `None` where none has come `until` then, on trio's clock.

        Raises:
            CallError: a back end's; `upstream`, `deadline`; `unauthenticated` where what the request was let in with
                counts no more.
        """
        asked = self._asked
        asked.live.check()
        batch = await self._next(until)
        asked.live.check()
        if batch:
            choices = self._choices
            tokens = choices[0].gathered.tokens
            if len(choices) > 1:
                tokens = sum([choice.gathered.tokens for choice in choices])
            if tokens > asked.tokens:
                asked.tokens = tokens
                asked.last_token_at = now = trio.current_time()
                if asked.first_token_at is None:
                    asked.first_token_at = now
        return batch

    async def _next(self, until: float) -> Batch | None:
        if not self._choices:
            return []
        if self._feed is None:
            deltas = await self._choices[0].batch(until)
            if deltas:
                return [(0, deltas)]
            return None if deltas is None else []
        index, found = -1, None
        with trio.CancelScope(deadline=until):
            try:
                index, found = await self._feed.receive()
            except trio.EndOfChannel:
                return []
        if isinstance(found, CallError):
            raise found
        return None if found is None else [(index, found)]


async def _deliver(
    index: int,
    choice: Choice,
    give: trio.MemorySendChannel[tuple[int, list[ChatDelta] | CallError]],
    turns: trio.Semaphore,
) -> None:
    async with give, turns:
        choice.way.begin()
        try:
            while deltas := await choice.batch():
                await give.send((index, deltas))
        except CallError as error:
            await give.send((index, error))
        finally:
            await choice.way.leave()


def miscounted(model: str) -> CallError:
    """The error of a node that says it has counted the impossible."""
    return CallError("upstream", f"The node that runs {model!r} counted an impossible number of tokens.")


def prompt_key(chat: ChatRequest) -> tuple[int, int]:
    """The same for choices that share their prompt: a dialect makes them of one and the same object."""
    return id(chat.messages), id(chat.prompt)
