"""`covey chat`: one question, or a conversation."""

import re
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import click

from covey.cli.asking import ask_node
from covey.cli.output import plain
from covey.cli.verbs import Settings, verb
from covey.errors import CallError

if TYPE_CHECKING:
    from covey.client import Client
    from covey.contracts.inference import Finish, Message

STDIN_BYTES_MAX = 4 * 1024 * 1024
LOADING_SECONDS_MAX = 3_600
RETRY_SECONDS = 1.0


@verb("chat")
@click.argument("model", required=False, default="")
@click.argument("message", required=False)
@click.option("--system", default="", metavar="TEXT", help="What the model is told before everything else.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="The longest answer.")
@click.pass_obj
def chat(settings: Settings, model: str, message: str | None, *, system: str, max_tokens: int | None) -> None:
    """Talk with a model: the one that answers by default, or MODEL.

    With a MESSAGE (or text on standard input) it is asked that alone. Otherwise a conversation begins, which is kept
    nowhere: Ctrl-C stops an answer, Ctrl-D leaves. A sole argument with a space in it is a message.
    """
    from covey.contracts.inference import MODEL_NAME_PATTERN, Message

    if message is None and model and not re.fullmatch(MODEL_NAME_PATTERN, model):
        model, message = "", model
    if message is None and not sys.stdin.isatty():
        message = _read_standard_input()
    history = [Message("system", system)] if system else []
    talk = Talk(settings, model, max_tokens)
    if message is None:
        converse(talk, history)
        return
    if not message.strip():
        raise click.UsageError("The message is empty.")
    talk.answer([*history, Message("user", message)])
    if talk.interrupted:
        raise KeyboardInterrupt
    if talk.finish == "length":
        click.echo("(cut: the answer reached its longest)", err=True)


def converse(talk: "Talk", history: "list[Message]") -> None:
    """Ask and answer until the person leaves."""
    from covey.contracts.inference import Message

    click.echo("Ctrl-C stops an answer, Ctrl-D leaves.", err=True)
    while (said := _prompt()) is not None:
        if not said.strip():
            continue
        turn = [*history, Message("user", said)]
        try:
            text = talk.answer(turn)
        except CallError as error:
            if error.code in ("unreachable", "forbidden", "not_found"):
                raise
            click.echo(f"covey: {error.message}", err=True)  # the conversation goes on
            continue
        # What was said before an interruption counts: the next answer builds on it.
        history = [*turn, Message("assistant", text)] if text else history


class Talk:
    """Asks one model. `finish` says how the last answer ended; `interrupted`, whether Ctrl-C ended it."""

    def __init__(self, settings: Settings, model: str, max_tokens: int | None) -> None:
        self._settings = settings
        self._model = model
        self._max_tokens = max_tokens
        self.finish: Finish | None = None
        self.interrupted = False

    def answer(self, conversation: "Sequence[Message]") -> str:
        """Print the answer as it comes, and return it.

        Raises:
            CallError: the model's, or `unreachable`.
        """
        self.finish, self.interrupted = None, False
        pieces: list[str] = []
        try:
            ask_node(self._settings, lambda client: self._ask(client, conversation, pieces))
        finally:
            if pieces:
                click.echo("")
        return "".join(pieces)

    async def _ask(self, client: "Client", conversation: "Sequence[Message]", pieces: list[str]) -> None:
        import trio

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                with trio.open_signal_receiver(signal.SIGINT) as interrupts:

                    async def watch() -> None:
                        await anext(interrupts)
                        self.interrupted = True
                        scope.cancel()

                    nursery.start_soon(watch)
                    deadline = trio.current_time() + LOADING_SECONDS_MAX
                    while not await self._try(client, conversation, pieces, patient=trio.current_time() < deadline):
                        pass
                    nursery.cancel_scope.cancel()

    async def _try(
        self, client: "Client", conversation: "Sequence[Message]", pieces: list[str], *, patient: bool
    ) -> bool:
        """Whether there was an answer; while the model is loading, wait a little instead."""
        import trio

        try:
            async with client.stream_chat(conversation, model=self._model, max_tokens=self._max_tokens) as chunks:
                async for text in chunks:
                    pieces.append(text)
                    click.echo(plain(text), nl=False)
            self.finish = chunks.finish
        except CallError as error:
            if error.code != "loading" or not patient or pieces:
                raise
            _say_loading(error.message)
            await trio.sleep(error.retry_after_seconds or RETRY_SECONDS)
            return False
        return True


def _say_loading(message: str) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r\033[K{message}", nl=False, err=True)


def _read_standard_input() -> str:
    content = sys.stdin.buffer.read(STDIN_BYTES_MAX + 1)
    if len(content) > STDIN_BYTES_MAX:
        raise CallError("too_large", f"Standard input holds more than {STDIN_BYTES_MAX} bytes.")
    return content.decode(errors="replace")


def _prompt() -> str | None:
    """What the person types next; `None` at Ctrl-D."""
    import_module("readline")  # gives `input` its line editing

    while True:
        try:
            return input("> ")
        except KeyboardInterrupt:
            click.echo("  (Ctrl-D leaves)", err=True)
        except EOFError:
            click.echo("")
            return None
