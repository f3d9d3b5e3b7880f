"""The dashboard's pages against honest fakes: who sees what, what is refused, what is escaped."""

import hashlib
import re
from collections.abc import AsyncGenerator
from html.parser import HTMLParser
from typing import Any

import pytest
import trio
from msgspec.structs import replace
from web_world import NOW, PASSWORD, ROOT, Browser, World, node, open_world

from covey.contracts import auth, cluster, gateway
from covey.contracts.audit import AuditRecord
from covey.errors import CallError

XSS = "<script>alert(1)</script>"


@pytest.fixture
async def world() -> AsyncGenerator[World, None]:
    async with open_world() as opened:
        opened.auth.add("ada", "admin")
        opened.auth.add("grace")
        opened.auth.setup_secret = ""
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


# Who sees what


PERSONAL = ("/", "/overview/live", "/keys", "/chat", "/usage", "/account")
ADMINS = ("/users", "/nodes", "/nodes/live", "/audit")


@pytest.mark.parametrize("path", PERSONAL + ADMINS)
async def test_a_stranger_is_sent_to_the_log_in_page(world: World, path: str) -> None:
    page = await Browser(world).get(path)
    assert page.status == 303
    assert page.headers["Location"].split("?")[0] == "/login"


@pytest.mark.parametrize("path", PERSONAL)
async def test_a_person_sees_their_pages(grace: Browser, path: str) -> None:
    page = await grace.get(path)
    assert page.status == 200
    assert "/users" not in page.text


async def test_a_person_does_not_see_the_administrators_page(grace: Browser) -> None:
    page = await grace.get("/users")
    assert page.status == 403
    assert "administrators" in page.text


@pytest.mark.parametrize("path", PERSONAL + ADMINS)
async def test_an_administrator_sees_everything(ada: Browser, path: str) -> None:
    assert (await ada.get(path)).status == 200


@pytest.mark.parametrize("path", ["/", "/login", "/nothing"])
async def test_every_answer_carries_the_security_headers(world: World, path: str) -> None:
    page = await Browser(world).get(path)
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    assert page.headers["Referrer-Policy"] == "same-origin"
    assert page.headers["Cache-Control"] == "no-store"


class Inline(HTMLParser):
    """Finds what the policy would block, and labels that are missing."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.labels: set[str] = set()
        self.inputs: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = dict(attrs)
        if tag == "style" or (tag == "script" and "src" not in fields):
            self.found.append(tag)
        self.found += [name for name in fields if name == "style" or name.startswith("on")]
        if tag == "label" and fields.get("for"):
            self.labels.add(str(fields["for"]))
        if tag in ("input", "select", "textarea") and fields.get("type") not in ("hidden", "checkbox"):
            self.inputs.append(fields)


@pytest.mark.parametrize("path", PERSONAL + ADMINS)
async def test_pages_have_no_inline_script_or_style_and_every_field_a_label(ada: Browser, path: str) -> None:
    seen = Inline((await ada.get(path)).text)
    assert seen.found == []
    assert {str(fields.get("id")) for fields in seen.inputs} <= seen.labels


async def test_static_files_are_kept_for_ever_under_their_own_version(ada: Browser) -> None:
    page = await ada.get("/account")
    found = re.search(r'href="(/static/[0-9a-f]{12}/covey\.css)"', page.text)
    assert found
    file = await ada.get(found[1])
    assert file.status == 200
    assert "immutable" in file.headers["Cache-Control"]
    assert file.headers["Content-Type"].startswith("text/css")
    stale = await ada.get("/static/000000000000/covey.css")
    assert stale.headers["Cache-Control"] == "no-cache"
    assert (await ada.get("/static/x/../../../pyproject.toml")).status == 404
    assert (await ada.get("/static/x/%2e%2e/templates/base.html")).status == 404


def test_vendored_files_are_what_their_readme_says() -> None:
    folder = ROOT / "static" / "vendor"
    rows = re.findall(r"^\| `([^`]+)` .*`([0-9a-f]{64})` \|$", (folder / "README.md").read_text("utf-8"), re.MULTILINE)
    assert len(rows) == len([*folder.glob("*/*.js"), *folder.glob("*/*.css")])
    for name, digest in rows:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


# The ways in and out


async def test_the_first_account_is_made_with_the_secret() -> None:
    async with open_world() as world:
        browser = Browser(world)
        assert (await browser.get("/login")).headers["Location"] == "/setup"
        assert "Set-up secret" in (await browser.get("/setup")).text
        form = {"secret": "wrong", "name": "Ada", "password": PASSWORD, "again": PASSWORD}
        refused = await browser.post("/setup", form)
        assert refused.status == 401
        assert "not the one that was printed" in refused.text
        assert PASSWORD not in refused.text
        made = await browser.post("/setup", form | {"secret": world.auth.setup_secret})
        assert (made.status, made.headers["Location"]) == (303, "/")
        welcome = await browser.get("/")
        assert "Welcome!" in welcome.text
        assert "Welcome!" not in (await browser.get("/")).text
        assert [account.name for account in world.auth.accounts.values()] == ["ada"]
        assert (await Browser(world).get("/setup")).headers["Location"] == "/login"


@pytest.mark.parametrize(
    ("password", "again", "words"),
    [("short", "short", "Choose a password"), (PASSWORD, PASSWORD + "!", "The two passwords differ")],
)
async def test_a_new_password_is_checked(password: str, again: str, words: str) -> None:
    async with open_world() as world:
        browser = Browser(world)
        await browser.get("/setup")
        form = {"secret": world.auth.setup_secret, "name": "ada", "password": password, "again": again}
        page = await browser.post("/setup", form)
        assert page.status == 422
        assert words in page.text
        assert 'aria-invalid="true"' in page.text
        assert not world.auth.accounts


async def test_logging_in_begins_a_new_session_and_tells_the_clients_address(world: World) -> None:
    browser = Browser(world)
    await browser.get("/login?next=/keys")
    page = await browser.post("/login", {"name": " Ada ", "password": PASSWORD, "next": "/keys"})
    assert (page.status, page.headers["Location"]) == (303, "/keys")
    cookie = next(cookie for cookie in page.cookies if cookie.startswith("covey_session="))
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert world.auth.log_ins == [auth.LogIn("ada", PASSWORD, "192.0.2.7")]


async def test_a_header_cannot_claim_another_address(world: World) -> None:
    browser = Browser(world)
    await browser.get("/login")
    await browser.post("/login", {"name": "ada", "password": "wrong"}, Remote_Addr="1.2.3.4", X_Forwarded_For="1.2.3.4")
    assert world.auth.log_ins[0].address == "192.0.2.7"


async def test_under_tls_cookies_are_secure_and_bound_to_the_host(world: World) -> None:
    browser = Browser(world, scheme="https")
    await browser.get("/login")
    page = await browser.post("/login", {"name": "ada", "password": PASSWORD})
    cookie = next(cookie for cookie in page.cookies if cookie.startswith("__Host-covey_session="))
    assert "Secure" in cookie
    assert "Path=/" in cookie
    assert "Domain" not in cookie
    assert (await browser.get("/account")).status == 200


async def test_a_refused_log_in_says_so_and_keeps_the_name(world: World) -> None:
    browser = Browser(world)
    await browser.get("/login")
    page = await browser.post("/login", {"name": "ada", "password": "wrong"})
    assert page.status == 401
    assert 'value="ada"' in page.text
    assert "wrong, or the account" in page.text
    world.auth.locked_seconds = 30
    page = await browser.post("/login", {"name": "ada", "password": PASSWORD})
    assert page.status == 429
    assert page.headers["Retry-After"] == "30"


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example/", "/\\evil.example", "/a\\b", "evil", "/\t/evil.example"]
)
async def test_nobody_is_led_elsewhere_after_logging_in(world: World, target: str) -> None:
    browser = Browser(world)
    await browser.get("/login")
    page = await browser.post("/login", {"name": "ada", "password": PASSWORD, "next": target})
    assert page.headers["Location"] == "/"


async def test_logging_out_ends_the_session(world: World, ada: Browser) -> None:
    page = await ada.post("/logout")
    assert page.headers["Location"] == "/login"
    assert not world.auth.sessions
    assert "You are logged out" in (await ada.get("/login")).text
    assert (await ada.get("/keys")).status == 303


async def test_logging_out_is_not_a_link(ada: Browser) -> None:
    assert (await ada.get("/logout")).status == 405


async def test_a_session_that_ended_elsewhere_is_told_kindly(world: World, ada: Browser) -> None:
    world.auth.sessions.clear()
    page = await ada.post("/keys", {"label": "late"})
    assert page.status == 303
    assert "Your session has ended" in (await ada.get("/login")).text
    live = await ada.get("/overview/live", HX_Request="true")
    assert (live.status, live.headers["HX-Redirect"]) == (401, "/login")


async def test_registering_by_invitation(world: World, ada: Browser) -> None:
    page = await ada.post("/users/invite", {"role": "user", "days": "2"})
    found = re.search(r"http://localhost/register#([\w-]+)", page.text)
    assert found
    browser = Browser(world)
    await browser.get("/register")
    form = {"name": "linus", "password": PASSWORD, "again": PASSWORD}
    assert "used up" in (await browser.post("/register", form | {"invitation": "guess"})).text
    assert (await browser.post("/register", form | {"invitation": found[1]})).headers["Location"] == "/"
    assert (await browser.get("/keys")).status == 200


async def test_registering_with_approval(world: World, ada: Browser) -> None:
    world.auth.registration = "approval"
    browser = Browser(world)
    await browser.get("/register")
    page = await browser.post("/register", {"name": "linus", "password": PASSWORD, "again": PASSWORD})
    assert "waits for an administrator" in page.text
    await browser.get("/login")
    assert (await browser.post("/login", {"name": "linus", "password": PASSWORD})).status == 401
    linus = world.auth.one("linus")
    assert "Approve linus" in (await ada.get("/users")).text
    assert (await ada.post(f"/users/{linus.id}/standing", {"active": "yes"})).status == 303
    assert (await browser.post("/login", {"name": "linus", "password": PASSWORD})).status == 303


async def test_a_taken_name_is_shown_beside_its_field(world: World) -> None:
    world.auth.registration = "open"
    browser = Browser(world)
    await browser.get("/register")
    page = await browser.post("/register", {"name": "grace", "password": PASSWORD, "again": PASSWORD})
    assert page.status == 422
    assert re.search(r'id="h-name" class="wrong">[^<]*is taken', page.text)


async def test_changing_the_password_begins_a_new_session(world: World, grace: Browser) -> None:
    other = Browser(world)
    await other.log_in("grace")
    wrong = await grace.post(
        "/account/password", {"old": "no", "password": "new password 12", "again": "new password 12"}
    )
    assert "This is not your password now" in wrong.text
    page = await grace.post(
        "/account/password", {"old": PASSWORD, "password": "new password 12", "again": "new password 12"}
    )
    assert page.headers["Location"] == "/account"
    assert "Your password is changed" in (await grace.get("/account")).text
    assert (await other.get("/account")).status == 303


# Forged requests


CHANGES = (
    "/logout", "/keys", "/keys/k1/revoke", "/users", "/users/invite", "/users/a1/standing", "/users/a1/password",
    "/users/a1/limits", "/nodes/12D3KooWbeta/labels", "/account/password", "/account/name", "/chat/stream",
    "/nodes/invite", "/nodes/invites/i1/revoke", "/nodes/12D3KooWbeta/rename",
    "/nodes/12D3KooWbeta/drain", "/nodes/12D3KooWbeta/remove",
)  # fmt: skip


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize("token", ["", "0" * 64, "é"])
async def test_a_change_without_the_forms_token_is_refused(world: World, ada: Browser, path: str, token: str) -> None:
    sessions = dict(world.auth.sessions)
    page = await ada.post(path, {"csrf": token, "label": "x", "name": "mallory"})
    assert page.status == 403
    assert (world.auth.sessions, world.auth.keys, len(world.auth.accounts)) == (sessions, [], 2)
    assert world.machines.asked == []


@pytest.mark.parametrize("path", [*CHANGES, "/login", "/register", "/setup"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:8080"},
    ],
)
async def test_a_change_from_another_site_is_refused(world: World, ada: Browser, path: str, headers: Any) -> None:
    page = await ada.post(path, None, **headers)
    assert page.status == 403
    assert world.auth.log_ins[1:] == []
    assert world.auth.sessions
    assert world.machines.asked == []


@pytest.mark.parametrize("headers", [{"Sec_Fetch_Site": "same-origin", "Origin": "http://localhost"}, {}])
async def test_our_own_forms_are_let_in(ada: Browser, headers: Any) -> None:
    assert (await ada.post("/logout", None, **headers)).status == 303


async def test_another_sessions_token_does_not_fit(world: World, ada: Browser, grace: Browser) -> None:
    ada.csrf = grace.csrf
    assert (await ada.post("/keys", {"label": "x"})).status == 403


async def test_an_anonymous_form_is_bound_to_its_browser(world: World) -> None:
    mine, theirs = Browser(world), Browser(world)
    await mine.get("/login")
    await theirs.get("/login")
    mine.csrf = theirs.csrf
    assert (await mine.post("/login", {"name": "ada", "password": PASSWORD})).status == 403
    assert world.auth.log_ins == []


async def test_a_form_that_is_too_large_is_refused(world: World, ada: Browser) -> None:
    assert (await ada.post("/keys", {"label": "x" * 70_000})).status == 413
    assert (await ada.post("/keys", {"label": "x" * 3_000})).status == 422
    assert world.auth.keys == []


# Keys


async def test_a_key_is_shown_once_with_something_to_paste(world: World, grace: Browser) -> None:
    await grace.get("/keys")
    page = await grace.post(
        "/keys", {"label": "notes", "models": "tiny", "expires_days": "30", "requests_per_minute": "60"}
    )
    assert page.status == 200
    made = world.auth.keys[0]
    assert (made.label, made.models, made.limits.requests_per_minute) == ("notes", ("tiny",), 60)
    assert made.expires_at == NOW + 30 * 86_400
    found = re.search(r'id="new-key">(cvy_\w+)<', page.text)
    assert found
    assert f"Authorization: Bearer {found[1]}" in page.text.replace("&#39;", "'")
    assert "http://localhost/v1/chat/completions" in page.text
    assert "from openai import OpenAI" in page.text
    assert found[1] not in (await grace.get("/keys")).text


async def test_snippets_name_the_gateway_where_this_node_is_none(world: World, grace: Browser) -> None:
    world.nodes[:] = [node(roles=("web",)), node("beta", roles=("gateway",), urls=("http://beta:26839",))]
    await grace.get("/keys")
    assert "http://beta:26839/v1/chat/completions" in (await grace.post("/keys", {"label": "notes"})).text


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"label": ""}, "Give it a name"),
        ({"label": "x" * 65}, "Give it a name"),
        ({"label": "x", "requests_per_minute": "-1"}, "Give a whole number"),
        ({"label": "x", "requests_per_minute": "٣"}, "Give a whole number"),
        ({"label": "x", "expires_days": "8"}, "one of the times"),
        ({"label": "x", "tokens_per_day": "0"}, "Give a whole number from 1 to 1000000000000"),
        ({"label": "x", "concurrency": "10001"}, "Give a whole number from 1 to 10000"),
        ({"label": "x", "node_labels": [f"l{number}" for number in range(17)]}, "Tick up to 16 labels"),
    ],
)
async def test_a_key_with_a_slip_is_not_made(
    world: World, grace: Browser, form: dict[str, str | list[str]], words: str
) -> None:
    await grace.get("/keys")
    page = await grace.post("/keys", form)
    assert page.status == 422
    assert words in page.text
    assert world.auth.keys == []


async def test_a_key_with_limits_on_some_machines_and_paths(world: World, grace: Browser) -> None:
    page = (await grace.get("/keys")).text
    assert '<details class="more">' in page  # folded, and no script opens it
    assert "Only machines with one of these labels" not in page  # there are none
    world.machines.labels[world.nodes[0].peer_id] = ("gpu", "trusted")
    assert 'name="node_labels" value="gpu"' in (await grace.get("/keys")).text
    limits = {"requests_per_minute": "60", "tokens_per_minute": "", "concurrency": "2", "tokens_per_day": "10000",
              "tokens_per_month": "30000000000000"}  # fmt: skip
    page = (
        await grace.post(
            "/keys", {"label": "bench", "node_labels": ["gpu"], "routes": ["/v1/models", "/api/tags"], **limits}
        )
    ).text
    made = world.auth.keys[0]
    assert made.limits == auth.KeyLimits(
        requests_per_minute=60, concurrency=2, tokens_per_day=10_000, tokens_per_month=30_000_000_000_000
    )
    assert (made.node_labels, made.routes) == (("gpu",), ("/v1/models", "/api/tags"))
    assert "60 requests a minute · 2 requests at once · 10,000 tokens a day · 30,000,000,000,000 tokens a month" in page
    assert "every model · on machines labelled gpu · /v1/models, /api/tags" in page


async def test_a_slip_among_the_limits_opens_them_and_keeps_what_was_typed(world: World, grace: Browser) -> None:
    world.machines.labels[world.nodes[0].peer_id] = ("gpu",)
    fields = {"label": "x", "concurrency": "none", "tokens_per_day": "7", "node_labels": "gpu", "routes": "/v1/models"}
    page = (await grace.post("/keys", fields)).text
    assert '<details class="more" open>' in page
    assert re.search(r'id="h-concurrency" class="wrong">Give a whole number', page)
    assert 'name="tokens_per_day" type="number" value="7"' in page
    assert 'value="gpu" checked' in page
    assert 'value="/v1/models" checked' in page


async def test_labels_to_choose_from_are_left_out_while_nobody_can_say(world: World, grace: Browser) -> None:
    world.machines.labels[world.nodes[0].peer_id] = ("gpu",)
    world.machines.failures[cluster.LINKS.name] = CallError("internal", "no")
    page = await grace.get("/keys")
    assert page.status == 200
    assert "node_labels" not in page.text


async def test_revoking_a_key(world: World, ada: Browser, grace: Browser) -> None:
    await grace.post("/keys", {"label": "graces own"})
    assert "graces own" not in (await ada.get("/keys")).text
    assert "graces own" in (await ada.get("/keys?everyone=1")).text
    assert (await grace.post("/keys/nothing/revoke")).status == 404
    assert (await grace.post("/keys/k1/revoke")).headers["Location"] == "/keys"
    page = await grace.get("/keys")
    assert "is revoked" in page.text
    assert world.auth.keys[0].state == "revoked"


async def test_a_revocation_says_how_far_it_has_come(world: World) -> None:
    grace = Browser(world)
    await grace.log_in("grace")
    for number, (held_by, missing, said) in enumerate(
        [
            (("beta",), (), "It is on the node that took it and 1 other."),
            (("beta", "gw1"), ("carol",), "and 2 others. 1 has not confirmed it yet."),
            ((), ("beta", "gw1"), "It is on the node that took it alone. 2 have not confirmed it yet."),
        ],
        start=1,
    ):
        world.auth.held_by, world.auth.not_held_by = held_by, missing
        await grace.post("/keys", {"label": "laptop", "expires_days": ""})
        await grace.post(f"/keys/k{number}/revoke")
        page = await grace.get("/keys")
        assert "The key is revoked." in page.text
        assert said in page.text


async def test_a_person_cannot_look_at_everybodys_keys(world: World, ada: Browser, grace: Browser) -> None:
    await ada.post("/keys", {"label": "adas own"})
    assert "adas own" not in (await grace.get("/keys?everyone=1")).text


# People


async def test_adding_disabling_and_a_new_password(world: World, ada: Browser) -> None:
    page = await ada.post("/users", {"name": "linus", "role": "user"})
    found = re.search(r'id="handover-secret">([a-z0-9-]{23})<', page.text)
    assert found
    linus = Browser(world)
    assert (await linus.log_in("linus", found[1])).status == 303
    account = world.auth.one("linus")
    assert (await ada.post(f"/users/{account.id}/standing", {"active": "no"})).status == 303
    assert (await linus.get("/account")).status == 303
    assert (await ada.post(f"/users/{account.id}/standing", {"active": "yes"})).status == 303
    page = await ada.post(f"/users/{account.id}/password")
    renewed = re.search(r'id="handover-secret">([a-z0-9-]{23})<', page.text)
    assert renewed
    assert renewed[1] != found[1]
    assert (await linus.log_in("linus", renewed[1])).status == 303


async def test_limits_of_a_person(world: World, ada: Browser) -> None:
    grace = world.auth.one("grace")
    assert f'href="/users?limit={grace.id}"' in (await ada.get("/users")).text
    form = (await ada.get(f"/users?limit={grace.id}")).text
    assert "The limits of grace" in form
    assert f'action="/users/{grace.id}/limits"' in form
    sent = {"requests_per_minute": "60", "was_requests_per_minute": "", "tokens_per_day": "500"}
    assert (await ada.post(f"/users/{grace.id}/limits", sent)).headers["Location"] == "/users"
    assert world.auth.limited == [{"requests_per_minute": 60, "tokens_per_day": 500}]
    page = (await ada.get("/users")).text
    assert "The limits hold from now on" in page
    assert "60 requests a minute · 500 tokens a day" in page
    # One is taken away, and what another administrator changed meanwhile is left alone.
    sent = {"was_requests_per_minute": "60", "tokens_per_day": "500", "was_tokens_per_day": "500"}
    await ada.post(f"/users/{grace.id}/limits", sent)
    assert world.auth.limited[1:] == [{"requests_per_minute": None}]
    mine = Browser(world)
    await mine.log_in("grace")
    assert "Over all keys and the chat: 500 tokens a day." in (await mine.get("/account")).text


async def test_limits_with_a_slip_are_not_set(world: World, ada: Browser) -> None:
    grace = world.auth.one("grace")
    page = await ada.post(f"/users/{grace.id}/limits", {"concurrency": "-1", "tokens_per_day": "5"})
    assert page.status == 422
    assert re.search(r'id="h-concurrency" class="wrong">Give a whole number from 1 to 10000', page.text)
    assert 'name="tokens_per_day" type="number" value="5"' in page.text
    assert (await ada.post("/users/nobody/limits", {"concurrency": "1"})).status == 422
    assert (await ada.get("/users?limit=nobody")).status == 200
    assert world.auth.limited == []


async def test_a_person_cannot_do_what_administrators_do(world: World, grace: Browser) -> None:
    for path in ("/users", "/users/invite", "/users/a1/standing", "/users/a1/password", "/users/a1/limits"):
        assert (await grace.post(path, {"name": "mallory", "active": "no"})).status == 403
    assert len(world.auth.accounts) == 2


# Names


async def test_a_person_takes_another_name(world: World, grace: Browser) -> None:
    await grace.get("/account")
    taken = await grace.post("/account/name", {"name": "ada"})
    assert taken.status == 422
    assert "is taken" in taken.text
    assert 'value="ada"' in taken.text
    done = await grace.post("/account/name", {"name": "Amazing.Grace"})
    assert (done.status, done.headers["Location"]) == (303, "/account")
    page = await grace.get("/account")
    assert "<h1>amazing.grace</h1>" in page.text
    assert "You have a new log-in name." in page.text


async def test_whoever_has_lost_their_name_is_told_on_every_page_until_they_choose_another(
    world: World, ada: Browser, grace: Browser
) -> None:
    lost = world.auth.one("grace")
    world.auth.accounts[lost.id] = replace(lost, name_lost=True)
    for path in PERSONAL:
        page = await grace.get(path)
        assert ("Somebody else had the name grace before you." in page.text) == ("/live" not in path), path
    assert "before you" not in (await ada.get("/")).text
    assert "name taken: choose another" in (await ada.get("/users")).text
    await grace.post("/account/name", {"name": "gracie"})
    assert "before you" not in (await grace.get("/")).text
    assert "name taken" not in (await ada.get("/users")).text


# The audit


def record(number: int, **more: Any) -> AuditRecord:
    fields: dict[str, Any] = {
        "at": NOW - 60 * number, "node": "alpha", "peer": "12D3KooWalpha", "by": "a1", "by_name": "ada",
        "what": f"Thing {number} was done.", "subject": f"s{number}", "subject_name": "",
    }  # fmt: skip
    return AuditRecord(**(fields | more))


async def test_the_audit_has_pages(world: World, ada: Browser) -> None:
    assert "Nothing was done yet." in (await ada.get("/audit")).text
    world.auth.records = [record(number) for number in range(90)]
    page = await ada.get("/audit")
    assert "Thing 0 was done." in page.text
    assert "by ada · on alpha" in page.text
    assert "Thing 40 was done." not in page.text
    older = re.search(r'href="(/audit\?before=[^"]+)">Earlier', page.text)
    assert older
    page = await ada.get(older[1])
    assert "Thing 40 was done." in page.text
    assert "The latest" in page.text
    page = await ada.get("/audit?before=80")
    assert "Thing 89 was done." in page.text
    assert "Earlier</a>" not in page.text
    assert not any(wish.sessions for wish in world.auth.audits)


async def test_the_audit_keeps_to_log_ins_from_page_to_page(world: World, ada: Browser) -> None:
    world.auth.records = [record(number) for number in range(90)]
    page = await ada.get("/audit?sessions=1")
    assert "/audit?before=40&amp;sessions=1" in page.text
    assert world.auth.audits[-1].sessions


async def test_the_audit_marks_what_does_not_count(world: World, ada: Browser) -> None:
    world.auth.records = [record(0, standing="void"), record(1, standing="waits"), record(2, by_name="")]
    page = await ada.get("/audit")
    assert page.text.count("does not count") == 1
    assert page.text.count(">waits<") == 1
    assert "by  ·" not in page.text


async def test_a_place_in_the_audit_that_is_none_is_said_on_the_page(world: World, ada: Browser) -> None:
    page = await ada.get("/audit?before=nonsense")
    assert page.status == 422
    assert "begin anew" in page.text


# Strangers' words


async def test_what_people_and_machines_are_called_is_only_text(world: World, ada: Browser) -> None:
    world.auth.records = [record(0, what=XSS, by_name=XSS, node=XSS)]
    world.auth.accounts["a9"] = auth.Account("a9", XSS, "user", "pending", int(NOW))
    world.gateway.models.append(gateway.ModelSummary(XSS, "failed", ("chat",), (XSS,), detail=XSS))
    world.nodes.append(node(XSS, peer_id=XSS, version=XSS, roles=(XSS,)))
    await ada.get("/keys")
    made = await ada.post("/keys", {"label": XSS, "models": XSS})
    for page in [made] + [
        await ada.get(path) for path in ("/", "/keys", "/chat", "/users", "/audit", f"/chat?model={XSS}")
    ]:
        assert page.status == 200
        assert "alert(1)" in page.text
        assert "<script>alert" not in page.text
        assert Inline(page.text).found == []


async def test_a_bad_name_comes_back_escaped(world: World) -> None:
    browser = Browser(world)
    await browser.get('/login?next=/"><script>alert(1)</script>')
    page = await browser.post("/login", {"name": f'"{XSS}', "password": "x"})
    assert "<script>alert" not in page.text
    assert f"<h1>{XSS}" not in (await browser.get(f"/{XSS}")).text


# When somebody is away


async def test_without_auth_the_page_says_so() -> None:
    async with open_world(absent=frozenset({"auth"})) as world:
        for path in ("/login", "/setup", "/register"):
            page = await Browser(world).get(path)
            assert page.status == 503
            assert "role “auth”" in page.text
            assert page.headers["Retry-After"]


async def test_a_session_survives_a_while_without_auth(world: World, ada: Browser) -> None:
    async with open_world(absent=frozenset({"auth"})) as lonely:
        ada.client.app = lonely.router._find("/")
        page = await ada.get("/keys")
        assert page.status == 503
        assert page.cookies == []
        assert (await ada.get("/nothing")).status == 404
    ada.client.app = world.router._find("/")
    assert (await ada.get("/keys")).status == 200


async def test_without_a_gateway_only_its_parts_are_missing() -> None:
    async with open_world(absent=frozenset({"gateway"})) as world:
        world.auth.add("ada", "admin")
        ada = Browser(world)
        await ada.log_in("ada")
        overview = await ada.get("/")
        assert overview.status == 200
        assert "No figures: no node with the role “gateway”" in overview.text
        assert "alpha" in overview.text
        assert "will allow every model" in (await ada.get("/keys")).text
        assert (await ada.post("/keys", {"label": "early"})).status == 200
        chat = await ada.get("/chat")
        assert chat.status == 503
        assert "role “gateway”" in chat.text
        api = await Browser(world).open("/v1/chat/completions", "POST", data="{}")
        assert (api.status, api.headers["Content-Type"]) == (404, "application/json")


async def test_a_bug_is_a_page_too(world: World, ada: Browser, caplog: pytest.LogCaptureFixture) -> None:
    world.auth.keys.append("not a key")  # type: ignore[arg-type]
    page = await ada.get("/keys")
    assert page.status == 500
    assert "Something broke" in page.text
    assert "Traceback" not in page.text
    assert caplog.records


async def test_no_models_and_no_keys_are_explained(world: World, ada: Browser) -> None:
    world.gateway.models.clear()
    assert "No model to talk to yet" in (await ada.get("/chat")).text
    assert "No models yet" in (await ada.get("/")).text
    assert "No keys yet" in (await ada.get("/keys")).text


async def test_stopping_takes_the_dashboard_away() -> None:
    async with open_world() as world:
        router = world.router
        assert router.mounted
    assert not router.mounted


async def test_the_overview_shows_what_there_is(world: World, ada: Browser, grace: Browser) -> None:
    world.gateway.stats = gateway.GatewayStats(
        12_843, 3, 1_830_442, 923_551, 2, 0.4, 23.7, 0.182, 0.93, 2.4, 11.2, ((1, 40), (0, 0), (2, 80))
    )
    world.gateway.models.append(gateway.ModelSummary("big", "loading", ("chat",), ("alpha",), progress=0.42))
    page = await ada.get("/overview/live")
    for words in ("12.8\u202fk", "924\u202fk", "182\u202fms", "42\u202f%", "peak 16 tokens a second", "12D3KooWalpha"):
        assert words in page.text
    assert page.text.count("<rect") == 60
    assert "12D3KooWalpha" not in (await grace.get("/overview/live")).text
    assert "<html" not in page.text


async def test_a_slow_part_does_not_hold_the_page_up(world: World, ada: Browser, autojump_clock: Any) -> None:
    world.gateway.thinking_seconds = 60
    started = trio.current_time()
    page = await ada.get("/")
    assert page.status == 200
    assert "No figures: gateway.stats did not answer within 2 s." in page.text
    assert trio.current_time() - started < 3
