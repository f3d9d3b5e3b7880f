"""The page of usage and its files, against an honest fake of a gateway."""

import csv
import html
import io
import json
import re
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from web_world import NOW, Browser, World, open_world

from covey.contracts.usage import UsageRecord
from covey.errors import CallError

XSS = "<script>alert(1)</script>"
FILES = ("totals.csv", "totals.json", "requests.csv", "requests.json")


def used(owner: str, key: str, **fields: Any) -> UsageRecord:
    known: dict[str, Any] = {
        "request_id": f"{owner}-{key}", "model": "tiny", "node": "alpha", "route": "/v1/x", "outcome": "ok",
        "prompt_tokens": 70, "completion_tokens": 30, "seconds": 0.5, "first_token_seconds": 0.1,
    }  # fmt: skip
    return UsageRecord(fields.pop("at", NOW - 60), key_id=key, owner=owner, **(known | fields))


@pytest.fixture
async def world() -> AsyncGenerator[World, None]:
    async with open_world() as opened:
        ada, grace = opened.auth.add("ada", "admin"), opened.auth.add("grace")
        opened.auth.setup_secret = ""
        opened.gateway.used = [
            used(ada.id, f"session:{ada.id}"),
            used(grace.id, "k1", model=XSS),
            used(grace.id, "k1", at=NOW - 20 * 86_400, outcome="upstream"),
        ]
        yield opened


@pytest.fixture
async def ada(world: World) -> Browser:
    browser = Browser(world)
    assert (await browser.log_in("ada")).status == 303
    return browser


@pytest.fixture
async def grace(world: World) -> Browser:
    browser = Browser(world)
    assert (await browser.log_in("grace")).status == 303
    return browser


def bars(text: str) -> Any:
    found = re.search(r'data-bars="([^"]*)"', text)
    assert found
    return json.loads(html.unescape(found[1]))


async def test_a_person_sees_their_own(grace: Browser, world: World) -> None:
    page = await grace.get("/usage")
    assert page.status == 200
    assert XSS not in page.text
    assert html.escape(XSS) in page.text
    assert bars(page.text)["series"] == [{"name": XSS, "values": [0, 0, 0, 0, 0, 0, 100], "colour": 0}]
    assert "Only mine" not in page.text
    assert world.gateway.asked_usage[-1].group_by == ("day", "model")
    month = await grace.get("/usage?days=30&by=key&measure=requests")
    assert sum(bars(month.text)["series"][0]["values"]) == 2
    assert "1 failed" in month.text


async def test_an_administrator_sees_all_or_their_own(ada: Browser, world: World) -> None:
    page = await ada.get("/usage?by=user")
    assert [one["name"] for one in bars(page.text)["series"]] == ["ada", "grace"]
    mine = await ada.get("/usage?by=key&mine=1")
    assert [one["name"] for one in bars(mine.text)["series"]] == ["dashboard (ada)"]
    assert world.gateway.asked_usage[-1].user == next(iter(world.auth.accounts))


async def test_keys_are_called_by_their_labels(grace: Browser, world: World) -> None:
    await grace.get("/keys")
    assert (await grace.post("/keys", {"label": "=notes", "expires_days": ""})).status == 200
    page = await grace.get("/usage?by=key")
    assert bars(page.text)["series"][0]["name"] == "=notes"
    rows = [*csv.DictReader(io.StringIO((await grace.get("/usage/requests.csv")).text))]
    assert [row["key_name"] for row in rows] == ["'=notes"], "no formula"


async def test_a_gateway_that_did_not_answer_is_named(grace: Browser, world: World) -> None:
    world.gateway.silent = ("attic",)
    assert "attic" in (await grace.get("/usage")).text


async def test_without_any_use_it_says_so(grace: Browser, world: World) -> None:
    world.gateway.used.clear()
    page = await grace.get("/usage")
    assert "Nothing was asked in that time" in page.text
    assert "data-bars" not in page.text
    assert json.loads((await grace.get("/usage/requests.json")).text) == []
    assert json.loads((await grace.get("/usage/totals.json")).text) == []
    assert (await grace.get("/usage/requests.csv")).text.count("\n") == 1


@pytest.mark.parametrize("name", FILES)
async def test_the_files_hold_what_one_may_see(ada: Browser, grace: Browser, name: str) -> None:
    for browser, there in ((grace, 1), (ada, 2)):
        page = await browser.get(f"/usage/{name}")
        assert page.status == 200
        assert re.fullmatch(
            r'attachment; filename="covey-(totals|requests)-2025-10-03-2025-10-09\.(csv|json)"',
            page.headers["Content-Disposition"],
        )
        assert page.headers["Cache-Control"] == "no-store"
        if name.endswith("csv"):
            assert page.headers["Content-Type"].startswith("text/csv")
            found: list[dict[str, Any]] = [*csv.DictReader(io.StringIO(page.text))]
        else:
            assert page.headers["Content-Type"] == "application/json"
            found = json.loads(page.text)
        assert len(found) == there
        assert {one["user_name"] for one in found} == ({"grace"} if there == 1 else {"ada", "grace"})
        assert int(found[0]["prompt_tokens"]) == 70
    assert len((await grace.get(f"/usage/{name}?days=30")).text) > len((await grace.get(f"/usage/{name}")).text)


@pytest.mark.parametrize("name", FILES)
async def test_strangers_get_no_files(world: World, name: str) -> None:
    page = await Browser(world).get(f"/usage/{name}")
    assert page.status == 303
    assert page.headers["Location"].startswith("/login")


async def test_another_kind_of_file_is_none(grace: Browser) -> None:
    assert (await grace.get("/usage/totals.xls")).status == 404
    assert (await grace.get("/usage/requests.xls")).status == 404


@pytest.mark.parametrize("path", ["/usage", *(f"/usage/{name}" for name in FILES)])
async def test_without_a_gateway_it_says_so(path: str) -> None:
    async with open_world(absent=frozenset({"gateway"})) as world:
        world.auth.add("ada", "admin")
        browser = Browser(world)
        await browser.log_in("ada")
        page = await browser.get(path)
        assert page.status == 503
        assert "The gateway is away" in page.text


async def test_too_much_at_once_is_said_in_place(grace: Browser, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Any) -> list[UsageRecord]:
        raise CallError("too_large", "This has more than 3 lines: ask for a shorter time, or group by less.")

    monkeypatch.setattr(world.gateway, "_seen", refuse)
    page = await grace.get("/usage")
    assert page.status == 200
    assert "ask for a shorter time" in page.text
