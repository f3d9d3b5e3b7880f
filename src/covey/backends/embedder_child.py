"""The embedder's child process, as this process sees it: one request at a time, to be left at any moment."""

import base64
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from covey.backends import embedder_worker
from covey.backends.child_process import EngineDiedError, Words, cause_of_death, spawn, stop
from covey.errors import CallError

START_SECONDS_MAX = 60.0
GIVE_UP_SECONDS_MAX = 1.0
"""A child that does not leave a request by then is killed."""
LINE_BYTES_MAX = 1024 * 1024
Got = Callable[[bytes, int], Awaitable[None]]


class EmbedderChild:
    """Made by `open_embedder_child`.

    Args:
        process: running.
        words: what it says on standard error.
        input_seconds: the longest that one input may take.
    """

    def __init__(self, process: trio.Process, words: Words, input_seconds: float) -> None:
        self.process = process
        self._words = words
        self._input_seconds = input_seconds
        self._rest = b""
        self._number = 0
        self._turn = trio.Lock()
        self.dimensions = self.tokens_max = self.vocabulary = 0

    async def start(self, path: Path) -> None:
        """Hand over the weights and wait until they are loaded.

        Raises:
            EngineDiedError: they could not be.
        """
        with trio.move_on_after(START_SECONDS_MAX) as patience:
            await self._send({"path": str(path)})
            said = await self._line()
            if "ready" not in said:
                raise EngineDiedError(f"it refuses the file {path.name} ({said.get('error', 'no reason given')}).")
            ready: dict[str, int] = said["ready"]
            self.dimensions, self.tokens_max = ready["dimensions"], ready["tokens_max"]
            self.vocabulary = ready["vocabulary"]
        if patience.cancelled_caught:
            raise EngineDiedError(f"it did not come up within {START_SECONDS_MAX:g} s.")

    @property
    def busy(self) -> bool:
        """Whether it works for somebody."""
        return self._turn.locked()

    async def embed(self, inputs: tuple[str | tuple[int, ...], ...], got: Got) -> None:
        """Give each input's vector and count of tokens to `got`, in order; leaving gives the rest up.

        Raises:
            CallError: `invalid` for an input that the model cannot take, `upstream` where it takes too long.
            EngineDiedError: the child is gone.
        """
        async with self._turn:
            self._number += 1
            number, answered, whole = self._number, 0, False
            try:
                await self._send({"id": number, "inputs": inputs})
                whole = True
                for _ in inputs:
                    line = await self._answer()
                    answered += 1
                    if "stopped" in line:
                        answered = len(inputs)
                        raise self._refusal(line)
                    await got(base64.b64decode(line["vector"]), line["tokens"])
            finally:
                if not whole:
                    self.process.kill()  # half a request is in the pipe
                elif answered < len(inputs):
                    await self._give_up(number, len(inputs) - answered)

    async def _answer(self) -> dict[str, Any]:
        with trio.move_on_after(self._input_seconds):
            return await self._line()
        self.process.kill()
        raise CallError("upstream", "The embedder fell silent; it is started again.", reason="silent")

    def _refusal(self, line: dict[str, Any]) -> CallError:
        if line["stopped"] == "too_long":
            return CallError(
                "invalid",
                f"This model's maximum context length is {self.tokens_max} tokens, but input {line['input']} has "
                f"{line['tokens']} or more. Shorten it.",
                reason="context_length_exceeded",
                param="input",
            )
        return CallError(
            "invalid",
            f"Input {line['input']} has a token that the model does not know: they are 0 to {self.vocabulary - 1}.",
            param="input",
        )

    async def _give_up(self, number: int, left: int) -> None:
        with trio.CancelScope(shield=True), trio.move_on_after(GIVE_UP_SECONDS_MAX):
            try:
                await self._send({"cancel": number})
                while left and "stopped" not in await self._line():
                    left -= 1
            except EngineDiedError:
                return
            else:
                return
        self.process.kill()

    async def _send(self, line: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            await self.process.stdin.send_all(json.dumps(line).encode() + b"\n")
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise await self._death() from error

    async def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            try:
                data = await self.process.stdout.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise await self._death() from error
            if not data or len(self._rest) > LINE_BYTES_MAX:
                raise await self._death()
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    async def _death(self) -> EngineDiedError:
        with trio.move_on_after(GIVE_UP_SECONDS_MAX):
            await self.process.wait()
        if self.process.poll() is None:
            self.process.kill()
        return EngineDiedError(cause_of_death(await self.process.wait(), await self._words.last()))


@asynccontextmanager
async def open_embedder_child(
    path: Path, threads: int, input_seconds: float, nursery: trio.Nursery
) -> AsyncGenerator[EmbedderChild, None]:
    """Start the child and wait until it has its weights; leaving stops it, with force if need be.

    Raises:
        EngineDiedError: it could not be started.
    """
    process = await spawn(embedder_worker.__file__, {"OPENBLAS_NUM_THREADS": str(threads)})
    try:
        words = Words()
        assert process.stderr is not None
        nursery.start_soon(words.listen, process.stderr, name="errors of the embedder")
        child = EmbedderChild(process, words, input_seconds)
        await child.start(path)
        yield child
    finally:
        with trio.CancelScope(shield=True):
            await stop(process)
