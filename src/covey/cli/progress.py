"""How the fetching of a model shows: a bar on a terminal, plain lines otherwise, JSON lines where asked for."""

from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Protocol, Self

import click

from covey.cli.output import print_json_line, size

if TYPE_CHECKING:
    from rich.progress import TaskID

PLAIN_STEPS = 10
"""A plain line for every tenth."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far a model is. `share` 0 to 1, `None`: not known; `bytes_total` 0: not known. `stage` `done` ends it.

    `already`: nothing had to be fetched.
    """

    model: str
    stage: str
    share: float | None = None
    bytes_total: int = 0
    already: bool = False

    @property
    def ending(self) -> str:
        """What to say once it is done."""
        return "in place already, and verified" if self.already else "done"

    @property
    def amount(self) -> str:
        """`45% of 98.4 MB`."""
        if self.share is None:
            return "..."
        return f"{self.share:.0%}" + (f" of {size(self.bytes_total)}" if self.bytes_total else "")


class Display(Protocol):
    """Use it as a block."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def show(self, step: Step) -> None:
        """The latest state of one model; several may be shown in turn."""
        ...


def open_display(stream: IO[str], *, as_json: bool = False) -> Display:
    """JSON lines where asked for; a bar where the stream is a terminal; else plain lines."""
    if as_json:
        return JsonLines()
    return Bars() if stream.isatty() else Lines()


class JsonLines:
    """An object a line, one per report."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to close."""

    def show(self, step: Step) -> None:
        """Print it."""
        print_json_line(step)


class Lines:
    """One line per stage and per tenth."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to close."""

    def show(self, step: Step) -> None:
        """Print a line where there is news."""
        news = step.stage, int((step.share or 0) * PLAIN_STEPS)
        if self._said.get(step.model) == news:
            return
        self._said[step.model] = news
        click.echo(
            f"{step.model}: {step.ending}" if step.stage == "done" else f"{step.model}: {step.stage} {step.amount}"
        )


class Bars:
    """A bar per model."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from covey.cli.output import open_console

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.fields[stage]}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[amount]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=open_console(),
            expand=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, step: Step) -> None:
        """Move its bar."""
        task = self._tasks.get(step.model)
        if task is None:
            task = self._tasks[step.model] = self._progress.add_task(step.model, stage="", amount="", total=None)
        done = step.stage == "done"
        known = done or step.share is not None
        self._progress.update(
            task,
            completed=1.0 if done else step.share or 0.0,
            total=1.0 if known else None,
            stage=step.ending if done else step.stage,
            amount="" if done else step.amount,
        )
