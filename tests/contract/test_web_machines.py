"""The page of machines against honest fakes: what it shows, what it does, what it refuses, what it escapes."""

import re
from collections.abc import AsyncGenerator
from html import escape
from html.parser import HTMLParser

import pytest
from machines_world import link
from msgspec.structs import replace
from web_world import NOW, Browser, World, node, open_world

from covey.contracts import cluster, membership
from covey.errors import CallError

XSS = "<script>alert(1)</script>"
BETA = "12D3KooWbeta"


@pytest.fixture
async def world() -> AsyncGenerator[World, None]:
    async with open_world() as opened:
        opened.auth.add("ada", "admin")
        opened.auth.add("grace")
        opened.auth.setup_secret = ""
        opened.machines.join("beta")
        yield opened


@pytest.fixture
async def ada(world: World) -> Browser:
    browser = Browser(world)
    assert (await browser.log_in("ada")).status == 303
    await browser.get("/nodes")
    return browser


class Rows(HTMLParser):
    """The text of each row of the page, without the space between words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "li":
            self._inside = True
            self.rows.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "li"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1] = " ".join(f"{self.rows[-1]} {data}".split())


# What it shows


async def test_every_member_is_there_with_how_it_is_and_the_link_to_it(world: World, ada: Browser) -> None:
    machines = world.machines
    machines.links += [
        link("gamma", path="relayed", rtt_seconds=0.123, reconnects=3),
        link("delta", path="down", rtt_seconds=None, failure="It did not answer within 5 s.", reconnects=1),
        link("epsilon", rtt_seconds=None),
        link("zeta", path="down", rtt_seconds=None),
    ]
    machines.nodes.append(node("gamma", draining=True, roles=("inference", "web"), version="0.2.0"))
    rows = Rows((await ada.get("/nodes/live")).text).rows
    assert len(rows) == 6
    for row, words in zip(
        rows,
        (
            [
                "alpha",
                "auth · gateway · inference · web",
                "up 1 hour · 180 MB · 0.1.0",
                "this page comes from it",
                "live",
            ],
            ["beta", "up 1 hour · 180 MB · 0.1.0", "direct · 4.2 ms there and back 12D3KooWbeta live", "Drain Remove"],
            ["gamma", "inference · web", "0.2.0", "through another member · 123.0 ms", "3 times", "draining", "Resume"],
            ["delta", "It did not answer within 5 s. · lost and found again once", "away Rename Label Remove"],
            ["epsilon", "direct 12D3KooWepsilon no answer Rename Label Remove"],
            ["zeta", "no link yet", "away"],
        ),
        strict=True,
    ):
        for some in words:
            assert some in row.replace("\u202f", " "), row
    assert "Remove" not in rows[0]


async def test_what_is_asked_for_again_and_again_is_a_part_only(ada: Browser) -> None:
    whole, part = (await ada.get("/nodes")).text, (await ada.get("/nodes/live")).text
    assert 'hx-get="/nodes/live"' in whole
    assert "beta" in whole
    assert "<html" not in part


async def test_somebody_else_sees_the_overview_alone(world: World) -> None:
    grace = Browser(world)
    await grace.log_in("grace")
    overview = (await grace.get("/")).text
    assert "beta" in overview
    assert "/nodes" not in overview
    for path in ("/nodes", "/nodes/live"):
        assert (await grace.get(path)).status == 403
    for path in ("invite", "invites/i1/revoke", f"{BETA}/rename", f"{BETA}/labels", f"{BETA}/drain", f"{BETA}/remove"):
        assert (await grace.post(f"/nodes/{path}", {"roles": "inference", "name": "mine"})).status == 403
    assert world.machines.asked == []


async def test_who_must_log_in_anew_comes_back_to_the_whole_page(world: World, ada: Browser) -> None:
    world.auth.sessions.clear()
    live = await ada.get("/nodes/live", HX_Request="true")
    assert (live.status, live.headers["HX-Redirect"]) == (401, "/login?next=%2Fnodes")


async def test_a_machine_that_was_removed_itself_says_so(world: World, ada: Browser) -> None:
    world.machines.removed = "This machine was removed from the network."
    assert "This machine was removed from the network." in (await ada.get("/nodes")).text


# Inviting


async def test_an_invite_is_shown_once_with_what_to_do_with_it(world: World, ada: Browser) -> None:
    page = await ada.post("/nodes/invite", {"roles": ["inference", "web"], "expires_seconds": "86400", "uses": "3"})
    assert page.status == 200
    [wish] = world.machines.asked
    assert (wish.roles, wish.expires_seconds, wish.uses) == (("inference", "web"), 86_400, 3)
    assert wish.actor.session in world.auth.sessions
    assert re.search(r'id="join-line">covey join covey1secretofi1</code>', page.text)
    assert 'data-copy="join-line"' in page.text
    assert "lets in 3 machines as inference and web, whoever has it, within 1 day" in page.text
    again = await ada.get("/nodes")
    assert "secretof" not in again.text
    assert "for 3 more machines · expires in 1 day" in Rows(again.text).rows[-1]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"roles": []}, "Tick what the machine is to do"),
        ({"roles": ["auth"]}, "Tick what the machine is to do"),
        ({"roles": [XSS]}, "Tick what the machine is to do"),
        ({"expires_seconds": "60"}, "Choose one of the times offered"),
        ({"expires_seconds": ""}, "Choose one of the times offered"),
        ({"uses": "0"}, "Give a whole number from 1 to 1000"),
        ({"uses": "1001"}, "Give a whole number from 1 to 1000"),
    ],
)
async def test_an_invite_with_a_slip_is_not_made(
    world: World, ada: Browser, form: dict[str, str | list[str]], words: str
) -> None:
    right = {"roles": ["gateway"], "expires_seconds": "604800", "uses": "2"}
    page = await ada.post("/nodes/invite", right | form)
    assert page.status == 422
    assert words in page.text
    assert world.machines.asked == []
    if "expires_seconds" not in form:
        assert '<option value="604800" selected>' in page.text
    if "roles" not in form:
        assert 'value="gateway" checked' in page.text
        assert 'value="inference" checked' not in page.text


async def test_why_no_invite_can_be_made_is_said(world: World, ada: Browser) -> None:
    why = CallError("conflict", "This node only dials out: invite from one that listens.")
    world.machines.failures[membership.INVITE_NODE.name] = why
    page = await ada.post("/nodes/invite", {"roles": "inference", "expires_seconds": "3600"})
    assert page.status == 422
    assert f'role="alert">{why.message}' in page.text
    assert "join-line" not in page.text


async def test_open_invites_are_listed_and_revoked(world: World, ada: Browser) -> None:
    for _ in range(4):
        await ada.post("/nodes/invite", {"roles": "inference", "expires_seconds": "3600"})
    invites = world.machines.invites
    invites[0] = replace(invites[0], uses_left=0)
    invites[1] = replace(invites[1], expires_at=int(NOW))
    invites[2] = replace(invites[2], used=(membership.InviteUse(BETA, "beta", int(NOW)),))
    page = (await ada.get("/nodes")).text
    assert re.findall(r"/nodes/invites/(\w+)/revoke", page) == ["i2", "i1"]
    assert "for one more machine · expires in 1 hour · let in beta" in Rows(page).rows[-2]
    assert (await ada.post("/nodes/invites/i2/revoke")).headers["Location"] == "/nodes"
    page = (await ada.get("/nodes")).text
    assert "The invite lets nobody in any more" in page
    assert re.findall(r"/nodes/invites/(\w+)/revoke", page) == ["i1"]
    assert [one.id for one in invites if one.revoked] == ["i2"]
    unknown = await ada.post("/nodes/invites/i9/revoke")
    assert unknown.status == 422
    assert "no such invite" in unknown.text


# Naming, draining, removing


async def test_renaming(world: World, ada: Browser) -> None:
    assert 'action="/nodes/12D3KooWbeta/rename"' not in (await ada.get("/nodes")).text
    form = (await ada.get(f"/nodes?rename={BETA}")).text
    assert f'action="/nodes/{BETA}/rename"' in form
    assert 'value="beta"' in form
    for name, words in (("alpha", "Another node is called alpha"), ("", "1 to 63"), (XSS, "1 to 63")):
        refused = await ada.post(f"/nodes/{BETA}/rename", {"name": name})
        assert refused.status == 422
        assert re.search(rf'id="h-name" class="wrong">[^<]*{words}', refused.text)
        assert f'value="{escape(name)}"' in refused.text
    assert (await ada.post(f"/nodes/{BETA}/rename", {"name": " attic "})).headers["Location"] == "/nodes"
    page = (await ada.get("/nodes")).text
    assert "The machine has its new name" in page
    assert Rows(page).rows[1].startswith("attic ")
    gone = await ada.post("/nodes/nothing/rename", {"name": "x"})
    assert gone.status == 422
    assert "There is no node" in gone.text
    assert (await ada.get(f"/nodes?rename={XSS}")).status == 200


async def test_labelling(world: World, ada: Browser) -> None:
    world.machines.labels[BETA] = ("attic", "gpu")
    form = (await ada.get(f"/nodes?label={BETA}")).text
    assert f'action="/nodes/{BETA}/labels"' in form
    assert 'value="attic gpu"' in form
    refused = await ada.post(f"/nodes/{BETA}/labels", {"labels": f"gpu {XSS}", "was": "attic gpu"})
    assert refused.status == 422
    assert re.search(r'id="h-labels" class="wrong">[^<]* is no label', refused.text)
    assert f'value="{escape(f"gpu {XSS}")}"' in refused.text
    sent = {"labels": " GPU, trusted  cold ", "was": "attic gpu"}
    assert (await ada.post(f"/nodes/{BETA}/labels", sent)).headers["Location"] == "/nodes"
    wish = world.machines.asked[-1]
    assert (wish.node, wish.add, wish.remove) == (BETA, ("cold", "trusted"), ("attic",))
    page = (await ada.get("/nodes")).text
    assert "The machine has its labels" in page
    assert "labelled cold, gpu, trusted" in Rows(page).rows[1]
    # Nothing that this form did not change: another administrator's labels stay.
    asked = len(world.machines.asked)
    await ada.post(f"/nodes/{BETA}/labels", {"labels": "gpu", "was": "gpu"})
    assert len(world.machines.asked) == asked
    assert (await ada.post("/nodes/nothing/labels", {"labels": "x"})).status == 422


async def test_draining_and_working_again(world: World, ada: Browser) -> None:
    assert (await ada.post(f"/nodes/{BETA}/drain", {"undo": "no"})).headers["Location"] == "/nodes"
    page = (await ada.get("/nodes")).text
    assert "takes no new work" in page
    assert "draining Rename Label Resume" in Rows(page).rows[1]
    await ada.post(f"/nodes/{BETA}/drain", {"undo": "yes"})
    assert "takes work again" in (await ada.get("/nodes")).text
    asked = [(wish.node, wish.undo, wish.actor.session in world.auth.sessions) for wish in world.machines.asked]
    assert asked == [(BETA, False, True), (BETA, True, True)]


@pytest.mark.parametrize("code", ["unreachable", "forbidden"])
async def test_why_a_machine_cannot_be_drained_is_said_on_the_page(world: World, ada: Browser, code: str) -> None:
    world.machines.failures[cluster.DRAIN.name] = CallError(code, "There is no link to beta now.")  # type: ignore[arg-type]
    page = await ada.post(f"/nodes/{BETA}/drain", {"undo": "no"})
    assert page.status == (503 if code == "unreachable" else 422)
    assert 'role="alert">There is no link to beta now.' in page.text
    assert "Invite a machine" in page.text


async def test_removing_asks_first_and_is_for_ever(world: World, ada: Browser) -> None:
    page = (await ada.get("/nodes")).text
    asks = re.search(rf'action="/nodes/{BETA}/remove" data-confirm="([^"]*)" data-confirm-text="([^"]*)"', page)
    assert asks
    assert asks[1] == "Remove “beta” for ever?"
    assert "no way back" in asks[2]
    assert (await ada.post(f"/nodes/{BETA}/remove")).headers["Location"] == "/nodes"
    page = (await ada.get("/nodes")).text
    assert "removed for ever" in page
    assert len(Rows(page).rows) == 1
    refused = await ada.post("/nodes/alpha/remove")
    assert refused.status == 422
    assert "alpha is the last auth node." in refused.text


async def test_the_only_machine_that_knows_people_is_not_offered_for_removal(world: World, ada: Browser) -> None:
    world.nodes[0] = node(roles=("web",))
    world.machines.links[0] = link("beta", roles=("auth",))
    assert "/remove" not in (await ada.get("/nodes")).text
    world.machines.links.append(link("gamma", roles=("auth",)))
    assert (await ada.get("/nodes")).text.count("/remove") == 2


# Strangers' words


async def test_what_machines_are_called_and_say_is_only_text(world: World, ada: Browser) -> None:
    evil = f"\"'>{XSS}"
    world.nodes[0] = node(evil, peer_id=evil, version=evil, roles=(evil,))
    world.machines.removed = evil
    world.machines.links[:] = [
        link(evil, peer=evil, path="down", failure=evil, roles=(evil,)),
        link("beta", path="relayed"),
    ]
    use = membership.InviteUse(evil, evil, int(NOW))
    world.machines.invites.append(membership.InviteInfo(evil, evil, (evil,), 1, (use,), int(NOW) + 60, False))
    for failing in (None, cluster.NODES, cluster.LINKS, membership.LIST_INVITES):
        world.machines.failures = {failing.name: CallError("internal", evil)} if failing else {}
        for path in ("/nodes", "/nodes/live", f"/nodes?rename={evil}", f"/nodes?label={evil}"):
            page = await ada.get(path)
            assert page.status == 200
            assert "alert(1)" in page.text
            assert "<script>alert" not in page.text
            assert "<img" not in page.text.partition("<main")[2]
            assert 'data-confirm="Remove “"' not in page.text
    world.machines.failures = {}
    refused = await ada.post("/nodes/nothing/remove")
    assert "<script>alert" not in refused.text


# When somebody is away


async def test_without_auth_the_page_says_so_kindly(world: World, ada: Browser) -> None:
    async with open_world(absent=frozenset({"auth"})) as lonely:
        ada.client.app = lonely.router._find("/")
        for path in ("/nodes", "/nodes/live"):
            page = await ada.get(path)
            assert page.status == 503
            assert "The people's register is away" in page.text.replace("&#39;", "'")
            assert page.cookies == []


async def test_where_auth_goes_in_between_only_its_parts_are_missing(world: World, ada: Browser) -> None:
    away = CallError("unreachable", "No live node serves auth.list_invites.")
    world.machines.failures[membership.LIST_INVITES.name] = away
    page = await ada.get("/nodes")
    assert page.status == 200
    assert "No invites to show: no node with the role “auth” can be reached now." in page.text
    assert len(Rows(page.text).rows) == 2
    world.machines.failures[membership.REMOVE_NODE.name] = away
    gone = await ada.post(f"/nodes/{BETA}/remove")
    assert (gone.status, len(world.nodes)) == (503, 2)
    assert "register is away" in gone.text


async def test_a_part_that_fails_leaves_the_others(world: World, ada: Browser) -> None:
    world.machines.failures[cluster.LINKS.name] = CallError("deadline", "cluster.links did not answer within 3 s.")
    page = await ada.get("/nodes")
    assert "The links to other machines cannot be shown: cluster.links did not answer" in page.text
    assert Rows(page.text).rows[0].startswith("alpha ")
    world.machines.failures[cluster.NODES.name] = CallError("deadline", "cluster.nodes did not answer within 3 s.")
    page = await ada.get("/nodes")
    assert "No machines to show: cluster.nodes did not answer" in page.text
    assert "Invite a machine" in page.text
    world.machines.failures.clear()
    world.nodes.clear()
    assert (await ada.get("/nodes")).status == 200
