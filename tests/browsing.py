"""A real browser, and one person's window in it: for tests of the dashboard, here or in a network namespace."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
NEEDS_CHROMIUM = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's Chromium: apt-get install chromium")
PATIENCE_MILLISECONDS = 15_000
PASSWORD = "correct horse battery 7"


@contextmanager
def open_browser(program: Path = CHROMIUM) -> Iterator[Browser]:
    """Chromium without a screen; `program` is what starts it."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
        opened = playwright.chromium.launch(executable_path=str(program), args=arguments)
        yield opened
        opened.close()


class Visit:
    """One person's window; collects what the browser complains about."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        context.set_default_timeout(PATIENCE_MILLISECONDS)
        self.context = context
        self.url = url
        self.page: Page = context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))

    def go(self, path: str) -> None:
        self.page.goto(self.url + path)

    def log_in(self, name: str) -> "Visit":
        self.go("/login")
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password", exact=True).fill(PASSWORD)
        self.page.get_by_role("button", name="Log in").click()
        self.page.wait_for_url(self.url + "/")
        return self

    def say(self, words: str) -> None:
        self.page.get_by_label("Your message").fill(words)
        self.page.keyboard.press("Enter")


@contextmanager
def visit(browser: Browser, url: str, *, width: int = 1280, scheme: str = "light") -> Iterator[Visit]:
    """A window with cookies of its own."""
    context = browser.new_context(
        viewport={"width": width, "height": 820},
        color_scheme="dark" if scheme == "dark" else "light",
        permissions=["clipboard-read", "clipboard-write"],
    )
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    try:
        yield Visit(context, url)
    finally:
        context.close()
