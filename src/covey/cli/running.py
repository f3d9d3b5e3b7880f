"""A node in the foreground: says where it is, runs until it is told to stop, and leaves nothing behind."""

import dataclasses
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click
import msgspec
import trio

from covey.backends.catalogue import find
from covey.bus.background import open_background
from covey.cli.progress import Display, Step, open_display
from covey.config import Config
from covey.contracts.inference import MODELS, ModelStatus
from covey.contracts.method import Nothing
from covey.errors import CallError
from covey.node import Node, open_node

if TYPE_CHECKING:
    from covey.cli.up import Signals

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
FORCED = 1
GRACE_SECONDS = 2.0
"""Beyond `shutdown_seconds`, for closing the roles and the store after everything else was cut."""


class Ready(msgspec.Struct, frozen=True):
    """What `--ready-file` holds. `url` is "" where no role listens."""

    url: str
    pid: int
    peer_id: str


class Running:
    """One run of `covey up`.

    Args:
        config: the checked configuration.
        folder: the data folder.
        ready_file: written once the node is ready, removed at the end.
        signals: those that came before the loop ran.
    """

    def __init__(self, config: Config, folder: Path, ready_file: Path | None, signals: "Signals") -> None:
        self._config = config
        self._folder = folder
        self._ready_file = ready_file
        self._signals = signals
        self._node: Node | None = None
        self._scope = trio.CancelScope()
        self._again = False
        """Whether the node starts anew once it has stopped: it was given another role."""

    async def run(self) -> None:
        """Until a signal has stopped the node.

        Raises:
            CallError: the configuration, the folder or the address is refused.
            RoleCrashed: a role failed.
        """
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
            async with open_background() as nursery:
                nursery.start_soon(self._watch, received)
                while not self._signals.asked:
                    with self._scope:
                        await self._serve()
                    if self._scope.cancelled_caught and self._node is not None:
                        log.warning("The node did not stop in time; what still ran was cut.")
                    if not self._again:
                        return
                    self._again, self._node, self._scope = False, None, trio.CancelScope()

    async def _watch(self, received: "AsyncIterator[int]") -> None:
        asked = 0
        async for number in received:
            asked += 1
            self._again = False
            if asked == 1:
                self._stop()
            elif number == signal.SIGINT:
                self._remove_ready_file()
                os._exit(FORCED)  # whatever still runs is what the person does not want to wait for

    def _stop(self) -> None:
        if self._node is None:
            self._scope.cancel()  # while it starts: nothing has been promised to anybody
            return
        click.echo("Stopping ... (Ctrl-C again to stop at once)", err=True)
        self._drain(self._node)

    def _drain(self, node: Node) -> None:
        self._scope.deadline = trio.current_time() + self._config.node.shutdown_seconds + GRACE_SECONDS
        node.stop()

    async def _start_anew_when_promoted(self, node: Node) -> None:
        """Take up the roles that this machine is given while it runs: stop in order, and start again with them."""
        gained = await node.promoted()
        if node.is_stopping:
            return
        log.info("This machine may run %s now, and starts anew to do so.", ", ".join(gained))
        self._again = True
        self._config = at_the_same_address(self._config, node.urls)
        self._drain(node)

    async def _serve(self) -> None:
        async with open_node(self._config, data=self._folder, listen=True) as node:
            await self._greet(node)
            self._node = node
            try:
                self._write_ready_file(node)
                async with open_background() as nursery:
                    nursery.start_soon(self._show_models, node)
                    nursery.start_soon(self._start_anew_when_promoted, node)
                    await node.wait_stopped()
            finally:
                self._remove_ready_file()

    async def _greet(self, node: Node) -> None:
        where = "\n  ".join(node.urls) or "no listener: the roles here have none"
        click.echo(f"Covey runs as {node.name} ({', '.join(node.roles)}).\n  {where}")
        if link := await node.set_up_url():
            click.echo(f"\nMake the first administrator on this page (the link works once):\n  {link}")
        if recovery_key := await node.take_recovery_key():
            click.echo(
                "\nThe recovery key of this network, shown this once. Keep it safe, and not on this machine:\n"
                f"it alone settles a dispute between nodes, or replaces the last auth node.\n  {recovery_key}"
            )
        if node.urls:
            click.echo("\nStop with Ctrl-C.")

    async def _show_models(self, node: Node) -> None:
        """On a terminal: a bar for each model that is fetched or loaded, until none is. Elsewhere the log tells."""
        if "inference" not in node.roles or not sys.stdout.isatty():
            return
        try:
            if any(map(_is_coming, await _models(node))):
                with open_display(sys.stdout) as display:
                    await _show_until_there(node, display)
        except CallError as error:
            log.info("The models' progress cannot be shown: %s", error)

    def _write_ready_file(self, node: Node) -> None:
        if self._ready_file is None:
            return
        ready = Ready(node.urls[0] if node.urls else "", os.getpid(), str(node.peer_id))
        draft = self._ready_file.with_name(f".{self._ready_file.name}.{os.getpid()}")
        try:
            draft.write_bytes(msgspec.json.encode(ready))
            draft.replace(self._ready_file)
        except OSError as error:
            raise CallError("storage", f"{self._ready_file} cannot be written: {error.strerror}.") from error

    def _remove_ready_file(self) -> None:
        if self._ready_file is None:
            return
        with suppress(OSError, msgspec.DecodeError):
            # Only our own: another node may have been started over it.
            if msgspec.json.decode(self._ready_file.read_bytes(), type=Ready).pid == os.getpid():
                self._ready_file.unlink()


def at_the_same_address(config: Config, urls: tuple[str, ...]) -> Config:
    """With the port that the node had, where it took a free one: whoever uses it is to find it again."""
    host, _, port = config.http.listen.rpartition(":")
    taken = urlsplit(urls[0]).port if urls else None
    if port != "0" or taken is None:
        return config
    return dataclasses.replace(config, http=msgspec.structs.replace(config.http, listen=f"{host}:{taken}"))


async def _show_until_there(node: Node, display: Display) -> None:
    coming: set[str] = set()
    while True:
        for model in await _models(node):
            if _is_coming(model):
                coming.add(model.name)
                display.show(_step(model))
            elif model.name in coming:
                coming.discard(model.name)
                display.show(Step(model.name, "failed" if model.state == "failed" else "done"))
        if not coming:
            return
        await trio.sleep(POLL_SECONDS)


async def _models(node: Node) -> tuple[ModelStatus, ...]:
    return (await node.bus.call(MODELS, Nothing(), to=node.peer_id)).models


def _is_coming(model: ModelStatus) -> bool:
    return model.state == "loading"


def _step(model: ModelStatus) -> Step:
    entry = find(model.name)
    return Step(model.name, model.detail or "loading", model.progress, entry.model_bytes if entry else 0)
