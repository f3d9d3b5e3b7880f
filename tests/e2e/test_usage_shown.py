"""What was used, from an HTTP request to the table in the terminal and the bars in a browser: the real program."""

import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, expect
from running import ECHO, NodeProcess, running_node, wait_for

from browsing import NEEDS_CHROMIUM, PASSWORD, open_browser, visit

TWO_MODELS = ECHO + '[backends.echo]\nmodels = ["echo", "other"]\n'
SHOTS = os.environ.get("COVEY_SHOTS")


def chat(
    node: NodeProcess, key: str, model: str = "echo", text: str = "one two three", **fields: Any
) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{node.url}/v1/chat/completions", json=body, headers=headers)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with running_node(tmp_path_factory.mktemp("node"), config=TWO_MODELS) as running:
        running.add_user("ada", admin=True, password=PASSWORD)
        running.add_user("grace", admin=False, password=PASSWORD)
        yield running


@pytest.fixture(scope="module")
def keys(node: NodeProcess) -> dict[str, str]:
    """By their labels; each was used."""
    made = {
        "night job": node.create_key("ada", "--label", "night job"),
        "=notes": node.create_key("grace", "--label", "=notes"),
        "all": node.create_key("ada", "--label", "all", "--admin"),
    }
    for _ in range(3):
        assert chat(node, made["night job"]).status_code == 200
    assert chat(node, made["=notes"], "other", stream=True).text.endswith("data: [DONE]\n\n")
    assert chat(node, made["=notes"], "none-such").status_code == 404
    return made


def test_the_table_names_people_keys_and_models(node: NodeProcess, keys: dict[str, str]) -> None:
    done = node.covey("usage", "--by", "user", "--by", "key")
    assert re.search(r"ada +night job +3 +0 ", done.stdout)
    assert re.search(r"grace +=notes +2 +1 ", done.stdout)
    assert re.search(r"total +5 +1 ", done.stdout)
    assert "UTC" in done.stderr
    by_model = {row["model"]: row for row in node.json("usage", "--since", "1h")}
    assert set(by_model) == {"echo", "other", ""}
    assert (by_model["echo"]["requests"], by_model["echo"]["failed"]) == (3, 0)
    assert by_model["echo"]["completion_tokens"] > 0
    assert by_model["echo"]["first_token_seconds_mean"] is not None
    assert by_model[""]["failed"] == 1


def test_filters_leave_out_all_others(node: NodeProcess, keys: dict[str, str]) -> None:
    assert [row["requests"] for row in node.json("usage", "--by", "outcome", "--user", "grace")] == [1, 1]
    assert [row["outcome"] for row in node.json("usage", "--by", "outcome", "--user", "grace")] == ["not_found", "ok"]
    assert [row["model"] for row in node.json("usage", "--model", "echo")] == ["echo"]
    assert node.json("usage", "--until", "2020-01-01", "--since", "2019-12-01") == []
    assert "Nothing was asked" in node.covey("usage", "--until", "2020-01-01", "--since", "2019-12-01").stderr
    assert "There is no user 'nobody'" in node.covey("usage", "--user", "nobody", code=1).stderr
    assert "has to end after it begins" in node.covey("usage", "--until", "2020-01-01", code=1).stderr
    assert "is no time" in node.covey("usage", "--since", "yesterday", code=2).stderr
    assert node.covey("usage", "--csv", "--json", code=2).stdout == ""


def test_files_for_other_programs(node: NodeProcess, keys: dict[str, str]) -> None:
    records = [*csv.DictReader(io.StringIO(node.covey("usage", "--records", "--csv").stdout))]
    assert [row["key_name"] for row in records] == ["night job"] * 3 + ["'=notes"] * 2
    assert {row["user_name"] for row in records} == {"ada", "grace"}
    assert len({row["request_id"] for row in records}) == 5
    totals = [*csv.DictReader(io.StringIO(node.covey("usage", "--by", "key", "--csv").stdout))]
    assert sorted(row["key_name"] for row in totals) == ["'=notes", "night job"]
    lines = node.covey("usage", "--records", "--json").stdout.splitlines()
    assert len(lines) == 5
    shown = node.covey("usage", "--records", "--key", records[-1]["key"])
    assert re.search(r"grace +=notes +other .* ok ", shown.stdout)
    for text in (node.covey("usage", "--records", "--csv").stdout, *lines):
        assert "one two three" not in text, "no prompt, ever"


def test_a_key_tells_only_its_own_use(node: NodeProcess, keys: dict[str, str]) -> None:
    def rows(key: str, *arguments: str, code: int = 0) -> str:
        asked = node.place.covey("usage", "--csv", *arguments, code=code, environment={"COVEY_ADMIN_KEY": key})
        return asked.stdout + asked.stderr

    assert rows(keys["=notes"], "--by", "outcome").count("\n") == 3
    assert "grace" not in rows(keys["night job"], "--by", "user")
    assert "ada" in rows(keys["all"], "--by", "user")
    assert "grace" in rows(keys["all"], "--by", "user")
    ada = node.json("users", "list")[0]["id"]
    assert "Only an administrator may see what others use." in rows(keys["=notes"], "--user", ada, code=1)


def commits(node: NodeProcess) -> float:
    found = re.search(r"^covey_store_commits_total (\S+)$", httpx.get(f"{node.url}/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


def test_a_stop_and_a_power_cut_lose_nothing_that_was_written(tmp_path: Path) -> None:
    def used(node: NodeProcess) -> list[int]:
        return [row["requests"] for row in node.json("usage", "--by", "model")]

    with running_node(tmp_path, config=TWO_MODELS) as node:
        key = node.create_key()
        assert chat(node, key).status_code == 200
        assert node.stop() == 0
        again = node.place.start().wait_ready()
        try:
            assert used(again) == [1]
            before = commits(again)
            assert chat(again, key).status_code == 200
            wait_for(lambda: commits(again) > before, 10)
            again.kill()
        finally:
            again.end()
        last = node.place.start().wait_ready()
        try:
            assert used(last) == [2]
            assert "sound" in last.covey("store", "check").stdout
        finally:
            last.end()


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.mark.browser
@pytest.mark.slow
@NEEDS_CHROMIUM
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_draws_its_bars(browser: Browser, node: NodeProcess, keys: dict[str, str], scheme: str) -> None:
    with visit(browser, node.url, scheme=scheme) as ada:
        ada.log_in("ada")
        ada.page.get_by_role("link", name="Usage").click()
        expect(ada.page.locator("#usage-bars canvas")).to_be_visible()
        expect(ada.page.get_by_role("row", name="echo")).to_contain_text("3")
        ada.page.get_by_role("link", name="By person").click()
        expect(ada.page.get_by_role("row", name="grace")).to_contain_text("2")
        bars = ada.page.locator("#usage-bars .u-over")
        size = bars.bounding_box()
        assert size is not None
        bars.hover(position={"x": size["width"] - 20, "y": size["height"] - 5})
        expect(ada.page.locator("#usage-day")).to_contain_text("ada")
        for width in (360, 390, 1280):
            ada.page.set_viewport_size({"width": width, "height": 820})
            drawn = "document.querySelector('#usage-bars canvas').getBoundingClientRect().right"
            # The bars follow the window a moment later.
            wait_for(lambda: ada.page.evaluate(drawn) <= width, 5)  # noqa: B023
            assert ada.page.evaluate("document.documentElement.scrollWidth") <= width
            if SHOTS:
                ada.page.screenshot(path=f"{SHOTS}/usage-{width}-{scheme}.png", full_page=True)
        with ada.page.expect_download() as download:
            ada.page.get_by_role("link", name="CSV").last.click()
        assert len([*csv.DictReader(io.StringIO(Path(download.value.path()).read_text()))]) == 5
        assert re.fullmatch(r"covey-requests-.*\.csv", download.value.suggested_filename)
        assert ada.complaints == []


@pytest.mark.browser
@pytest.mark.slow
@NEEDS_CHROMIUM
def test_a_person_sees_their_own_and_without_scripts_a_table(
    browser: Browser, node: NodeProcess, keys: dict[str, str]
) -> None:
    with visit(browser, node.url) as grace:
        grace.log_in("grace")
        cookies = grace.context.cookies()
    plain = browser.new_context(java_script_enabled=False)
    try:
        plain.add_cookies(cookies)  # type: ignore[arg-type]
        page = plain.new_page()
        page.goto(f"{node.url}/usage?by=key")
        expect(page.get_by_role("row", name="=notes")).to_contain_text("2")
        expect(page.locator("figure")).to_be_hidden()
        assert "night job" not in page.content()
        page.get_by_role("link", name="30 days").click()
        expect(page.get_by_role("heading", name="The last 30 days")).to_be_visible()
    finally:
        plain.close()
