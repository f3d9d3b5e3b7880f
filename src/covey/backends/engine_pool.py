"""The engines that are awake: started on demand, put to sleep when unused, never more than there is room for."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from covey.backends.engine import Engine, EngineSettings
from covey.errors import CallError

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Awake:
    """An engine that is wanted, and how to stop it. `outdated`: its file has been replaced since."""

    engine: Engine
    outdated: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    gone: trio.Event = field(default_factory=trio.Event)


class EnginePool:
    """At most `awake_max` engines; the one unused for longest makes room.

    Args:
        nursery: where engines run.
        awake_max: engines at once.
        keep_alive_seconds: an unused engine is put to sleep after this; 0: never.
        pinned: the model whose engine stays awake, unless it is the only room there is.
    """

    def __init__(self, nursery: trio.Nursery, *, awake_max: int, keep_alive_seconds: float, pinned: str) -> None:
        self._nursery = nursery
        self._awake_max = max(awake_max, 1)
        self._keep_alive_seconds = keep_alive_seconds
        self._pinned = pinned
        self._awake: dict[str, _Awake] = {}

    def find(self, name: str) -> Engine | None:
        """The engine of a model, if it is awake."""
        awake = self._awake.get(name)
        return awake.engine if awake and not awake.scope.cancel_called else None

    async def wake(self, settings: EngineSettings, on_restart: Callable[[], None]) -> Engine:
        """Start a model's engine, which must be asleep; it is not ready yet. One at a time: see the caller's lock.

        Raises:
            CallError: `no_capacity` where the others are busy.
        """
        await self._make_room(settings.name)
        awake = _Awake(Engine(settings, self._nursery, on_restart))
        self._awake[settings.name] = awake
        self._nursery.start_soon(self._run, awake, name=f"engine of {settings.name}")
        return awake.engine

    async def _run(self, awake: _Awake) -> None:
        name = awake.engine.settings.name
        try:
            with awake.scope:
                await awake.engine.run()
        finally:
            if self._awake.get(name) is awake:
                del self._awake[name]
            awake.gone.set()

    async def _make_room(self, name: str) -> None:
        while len(self._awake) >= self._awake_max or name in self._awake:
            if leaving := [awake for awake in self._awake.values() if awake.scope.cancel_called]:
                await leaving[0].gone.wait()
                continue
            idle = [
                awake
                for other, awake in self._awake.items()
                if not awake.engine.running and (other != self._pinned or self._awake_max == 1)
            ]
            if not idle:
                raise CallError(
                    "no_capacity",
                    f"No room to load {name}: the other models of this node are busy.",
                    reason="models_busy",
                    retry_after_seconds=10,
                )
            await self._sleep(min(idle, key=lambda awake: awake.engine.used_at))

    async def put_to_sleep(self, name: str) -> None:
        """Stop a model's engine, if it is awake; answers that it still gives break off. Returns once it is gone."""
        if awake := self._awake.get(name):
            await self._sleep(awake)

    async def _sleep(self, awake: _Awake) -> None:
        awake.scope.cancel()
        await awake.gone.wait()

    def replaced(self, name: str) -> None:
        """A model's file was replaced: its engine, which still reads the old one, sleeps once nobody uses it."""
        if awake := self._awake.get(name):
            awake.outdated = True
            if not awake.engine.running:
                awake.scope.cancel()

    async def sweep(self, now: float) -> None:
        """Put those to sleep that were not used for `keep_alive_seconds`, or are outdated."""
        for name, awake in list(self._awake.items()):
            if awake.engine.running:
                continue
            unused = bool(self._keep_alive_seconds) and awake.engine.used_at < now - self._keep_alive_seconds
            if awake.outdated or (unused and name != self._pinned):
                log.info("The engine of %s goes to sleep.", name)
                await self._sleep(awake)
