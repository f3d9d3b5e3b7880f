"""The dashboard as people meet it: a real node, a real browser, with scripts, styles and the policy on both.

`COVEY_SHOTS=folder` keeps a picture of every page, in both widths and both lights.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect
from running import NodeProcess, Place, place_for, running_node, wait_for

from browsing import NEEDS_CHROMIUM, PASSWORD, open_browser, visit

pytestmark = [pytest.mark.browser, pytest.mark.slow, NEEDS_CHROMIUM]

SHOTS = os.environ.get("COVEY_SHOTS")
SLOW_ECHO = """
[inference]
backends = ["echo"]
default_model = ""
[backends.echo]
token_seconds = 0.05
[web]
refresh_seconds = 1
"""
ON_LOOPBACK = """
[network]
listen = "127.0.0.1:0"
discovery = false
"""
EVIL = "<img src=x onerror=alert(1)> <script>alert(1)</script> [x](javascript:alert(1)) **bold** `code`"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with running_node(tmp_path_factory.mktemp("node"), config=SLOW_ECHO) as running:
        running.add_user("ada", admin=True, password=PASSWORD)
        running.add_user("grace", admin=False, password=PASSWORD)
        yield running


def everywhere(page: Page, name: str) -> None:
    """The page as it is now fits a telephone and a desk, by day and by night."""
    for width in (360, 390, 1280):
        page.set_viewport_size({"width": width, "height": 820})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
        for scheme in ("light", "dark") if SHOTS else ():
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light", reduced_motion="reduce")
            page.screenshot(path=f"{SHOTS}/{name}-{width}-{scheme}.png", full_page=True)


def running_now(node: NodeProcess) -> float:
    """How many answers the engine works on."""
    metrics = httpx.get(f"{node.url}/metrics").text
    found = re.findall(r'^covey_num_requests_running\{model="echo"\} (\S+)$', metrics, re.MULTILINE)
    return float(found[0]) if found else 0.0


def test_from_the_set_up_link_to_an_answer(browser: Browser, tmp_path: Path) -> None:
    with running_node(tmp_path, config=SLOW_ECHO) as fresh, visit(browser, fresh.url) as ada:
        link = re.search(r"http://\S+/setup#\S+", fresh.said())
        assert link
        requests: list[str] = []
        ada.page.on("request", lambda request: requests.append(request.url))
        ada.page.goto(link[0])
        expect(ada.page.get_by_label("Set-up secret")).to_be_hidden()
        assert "#" not in ada.page.url
        ada.page.get_by_label("Log-in name").fill("Ada")
        ada.page.get_by_label("New password").fill(PASSWORD)
        ada.page.get_by_label("The same again").fill(PASSWORD)
        ada.page.get_by_role("button", name="Make my account").click()
        expect(ada.page.get_by_text("Welcome!")).to_be_visible()
        assert not any(link[0].split("#")[1] in url for url in requests)
        ada.page.get_by_role("link", name="Chat", exact=True).click()
        ada.say("one two three four")
        expect(ada.page.locator(".said.assistant .words")).to_have_text("one two three four")
        assert ada.complaints == []


def test_a_key_from_the_page_works_until_it_is_revoked(browser: Browser, node: NodeProcess) -> None:
    with visit(browser, node.url) as grace:
        grace.log_in("grace")
        grace.page.get_by_role("link", name="Keys").click()
        grace.page.get_by_label("What is it for?").fill("<b>notes</b>")
        grace.page.get_by_role("button", name="Make the key").click()
        key = grace.page.locator("#new-key").inner_text()
        expect(grace.page.get_by_role("heading", name="<b>notes</b>")).to_be_focused()
        grace.page.get_by_role("button", name="Copy: the key").click()
        expect(grace.page.get_by_role("button", name="Copy: the key")).to_have_text("Copied")
        assert grace.page.evaluate("navigator.clipboard.readText()") == key
        assert f"{node.url}/v1/chat/completions" in grace.page.locator("#snippet-curl").inner_text()
        headers = {"authorization": f"Bearer {key}"}
        question = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
        assert httpx.post(f"{node.url}/v1/chat/completions", json=question, headers=headers).status_code == 200
        grace.go("/keys")
        assert key not in grace.page.content()
        revoke = grace.page.get_by_role("button", name="Revoke <b>notes</b>")
        revoke.click()
        grace.page.keyboard.press("Escape")
        revoke.click()
        grace.page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        expect(grace.page.get_by_text("The key is revoked.")).to_be_visible()
        assert httpx.post(f"{node.url}/v1/chat/completions", json=question, headers=headers).status_code == 401
        assert grace.complaints == []


def test_an_answer_streams_and_stop_stops_the_engine(browser: Browser, node: NodeProcess) -> None:
    with visit(browser, node.url) as grace:
        grace.log_in("grace").go("/chat")
        grace.say("word " * 400)
        words = grace.page.locator(".said.assistant .words")
        expect(words).to_contain_text("word word")
        early = len(words.inner_text())
        wait_for(lambda: len(words.inner_text()) > early, 10)
        wait_for(lambda: running_now(node) == 1, 10)
        grace.page.get_by_role("button", name="Stop").click()
        wait_for(lambda: running_now(node) == 0, 5)
        expect(grace.page.get_by_text("stopped")).to_be_visible()
        assert len(words.inner_text()) < 2_000
        grace.say("and once more")
        expect(grace.page.locator(".said.assistant .words").last).to_have_text("and once more")
        assert grace.complaints == []


def test_closing_the_page_stops_the_engine(browser: Browser, node: NodeProcess) -> None:
    with visit(browser, node.url) as grace:
        grace.log_in("grace").go("/chat")
        grace.say("word " * 400)
        expect(grace.page.locator(".said.assistant .words")).to_contain_text("word word")
        grace.page.close()
        wait_for(lambda: running_now(node) == 0, 5)


def test_what_a_model_says_is_never_markup(browser: Browser, node: NodeProcess) -> None:
    with visit(browser, node.url) as grace:
        grace.log_in("grace").go("/chat")
        grace.say(EVIL)
        words = grace.page.locator(".said.assistant .words")
        expect(grace.page.get_by_role("button", name="Again")).to_be_visible()
        assert "<img src=x onerror=alert(1)>" in words.inner_text()
        assert words.locator("img, script, a").count() == 0
        assert words.locator("strong").inner_text() == "bold"
        assert words.locator("code").inner_text() == "code"
        assert grace.complaints == []


def test_an_invitation_brings_somebody_in(browser: Browser, node: NodeProcess) -> None:
    with visit(browser, node.url) as ada, visit(browser, node.url) as linus:
        ada.log_in("ada")
        ada.page.get_by_role("link", name="People").click()
        ada.page.get_by_role("button", name="Make the link").click()
        link = ada.page.locator("#handover-secret").inner_text()
        linus.page.goto(link)
        linus.page.get_by_label("Log-in name").fill("linus")
        linus.page.get_by_label("New password").fill("short")
        linus.page.get_by_label("The same again").fill("short")
        linus.page.get_by_role("button", name="Make my account").click()
        assert "/register" in linus.page.url
        linus.page.get_by_label("New password").fill("Linus's long sentence 5")
        linus.page.get_by_label("The same again").fill("Linus's long sentence 5")
        linus.page.get_by_role("button", name="Make my account").click()
        expect(linus.page.get_by_text("Welcome!")).to_be_visible()
        ada.go("/users")
        ada.page.get_by_role("button", name="Disable linus").click()
        ada.page.get_by_role("dialog").get_by_role("button", name="Disable").click()
        expect(ada.page.get_by_text("The account is disabled")).to_be_visible()
        # The overview asks by itself, learns that the session is over, and says so.
        expect(linus.page.get_by_text("Your session has ended")).to_be_visible()
        assert ada.complaints == []


@contextmanager
def joining(place: Place, line: str) -> Iterator[subprocess.Popen[bytes]]:
    """A machine that joins with a line of the page, as its owner would type it; killed at the end."""
    ready = place.folder / "ready.json"
    arguments = ["--data", str(place.data), "--config", str(place.config), "--listen", "127.0.0.1:0"]
    command = [*place.command, *line.split()[1:], "--name", "attic", *arguments, "--ready-file", str(ready)]
    with (place.folder / "join.log").open("wb") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=dict(place.environment)
        )
        try:
            wait_for(lambda: ready.exists() or process.poll() is not None, 30)
            yield process
        finally:
            process.kill()
            process.wait(10)


def test_a_machine_is_let_in_looked_after_and_removed(browser: Browser, tmp_path: Path) -> None:
    with (
        running_node(tmp_path / "first", "--name", "den", config=SLOW_ECHO + ON_LOOPBACK) as den,
        place_for(tmp_path / "second", config=SLOW_ECHO + ON_LOOPBACK) as place,
        visit(browser, den.url) as ada,
    ):
        den.add_user("ada", admin=True, password=PASSWORD)
        ada.log_in("ada").page.get_by_role("link", name="Machines", exact=True).click()
        page, rows = ada.page, ada.page.locator("#live section").first.get_by_role("listitem")
        expect(rows).to_have_count(1)
        page.get_by_role("button", name="Make the invite").click()
        expect(page.get_by_role("heading", name="The invite is ready")).to_be_focused()
        line = page.locator("#join-line").inner_text()
        page.get_by_role("button", name="Copy: the line").click()
        expect(page.get_by_role("button", name="Copy: the line")).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == line
        expect(page.get_by_text("for one more machine")).to_be_visible()
        with joining(place, line) as attic:
            # The page learns of it by itself.
            expect(rows).to_have_count(2)
            expect(rows.nth(1).locator(".state")).to_have_text("live")
            expect(rows.nth(1)).to_contain_text("there and back")
            expect(page.get_by_text("for one more machine")).to_be_hidden()
            expect(page.locator("#join-line")).to_be_visible()
            everywhere(page, "nodes-invite")
            page.reload()
            assert line not in page.content()
            page.get_by_role("button", name="Rename attic").click()
            page.get_by_label("New name").fill("den")
            page.get_by_role("button", name="Rename", exact=True).click()
            expect(page.get_by_text("Another node is called den")).to_be_visible()
            everywhere(page, "nodes-rename")
            page.get_by_label("New name").fill("cellar")
            page.get_by_role("button", name="Rename", exact=True).click()
            expect(rows.nth(1)).to_contain_text("cellar")
            page.get_by_role("button", name="Drain cellar").click()
            expect(rows.nth(1).locator(".state")).to_have_text("draining")
            everywhere(page, "nodes-draining")
            page.get_by_role("button", name="Resume cellar").click()
            expect(rows.nth(1).locator(".state")).to_have_text("live")
            # What is asked about stays, and so does the place of the keyboard, while the page asks for news.
            page.get_by_role("button", name="Drain den").focus()
            with page.expect_response("**/nodes/live"):
                pass
            with page.expect_response("**/nodes/live"):
                expect(page.get_by_role("button", name="Drain den")).to_be_focused()
            page.get_by_role("button", name="Remove cellar").click()
            asks = page.get_by_role("dialog")
            expect(asks).to_contain_text("no way back")
            page.wait_for_timeout(2_500)  # two refreshes, that must not come
            asks.get_by_role("button", name="Remove for ever").click()
            expect(page.get_by_text("The machine is removed for ever")).to_be_visible()
            expect(rows).to_have_count(1)
            wait_for(lambda: "was removed from its network" in (place.folder / "join.log").read_text(), 10)
            attic.kill()
        page.get_by_role("button", name="Make the invite").click()
        expect(page.locator("#join-line")).to_be_visible()
        page.get_by_role("button", name="Revoke the invite").click()
        page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        expect(page.get_by_text("The invite lets nobody in any more")).to_be_visible()
        expect(page.get_by_role("heading", name="Open invites")).to_have_count(0)
        # The refused rename above is an answer of 422, which the browser remarks on.
        assert [said for said in ada.complaints if "422" not in said] == []


def test_everything_is_within_reach_of_the_keyboard(browser: Browser, node: NodeProcess) -> None:
    with visit(browser, node.url) as grace:
        grace.go("/login")
        grace.page.keyboard.type("grace")
        grace.page.keyboard.press("Tab")
        grace.page.keyboard.type(PASSWORD)
        grace.page.keyboard.press("Enter")
        grace.page.wait_for_url(grace.url + "/")
        grace.page.keyboard.press("Tab")
        expect(grace.page.get_by_role("link", name="Skip to the content")).to_be_focused()
        grace.page.keyboard.press("Enter")
        expect(grace.page.locator("#page")).to_be_focused()


def test_the_overview_says_when_it_has_lost_its_node(browser: Browser, tmp_path: Path) -> None:
    with running_node(tmp_path, config=SLOW_ECHO) as short, visit(browser, short.url) as ada:
        short.add_user("ada", password=PASSWORD)
        ada.log_in("ada")
        expect(ada.page.get_by_text("This page has lost the node")).to_be_hidden()
        short.stop()
        expect(ada.page.get_by_text("This page has lost the node")).to_be_visible()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_and_nothing_is_blocked(browser: Browser, node: NodeProcess, width: int, scheme: str) -> None:
    with visit(browser, node.url, width=width, scheme=scheme) as ada:

        def look(name: str) -> None:
            assert ada.page.evaluate("document.documentElement.scrollWidth") <= width, name
            assert ada.page.evaluate("document.documentElement.lang") == "en"
            assert ada.page.title().endswith("· Covey")
            if SHOTS:
                ada.page.screenshot(path=f"{SHOTS}/{name}-{width}-{scheme}.png", full_page=True)

        for path in ("/login", "/register"):
            ada.go(path)
            look(path[1:])
        ada.log_in("ada")
        look("overview")
        for path in ("/chat", "/keys", "/users", "/nodes", "/account"):
            ada.go(path)
            look(path[1:])
        assert ada.complaints == []
        ada.go("/nothing")
        look("nothing")
