"""docs/api.md has every route with its methods, and no other; every error, with its status and its names."""

import re
from typing import Any

import pytest
from documents import ROOT, code, read, table
from quart_trio import QuartTrio

from covey.contracts.gateway import API_ROUTES
from covey.dialects.openapi import OPENAPI_PATH
from covey.dialects.operations import OPERATIONS
from covey.dialects.problems import TABLE
from covey.errors import CODES
from covey.http.health import PATHS
from covey.http.problems import STATUS_BY_REASON
from covey.roles.gateway.chats import Answering
from covey.roles.gateway.listing import Listing
from covey.roles.gateway.table import Table
from covey.roles.web.app import build
from covey.roles.web.config import WebConfig
from covey.roles.web.context import Web

PAGE = read("docs/api.md")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
DOCUMENTED = {tuple(code(row[0])[0].split(" ")): row for row in table(PAGE, "The HTTP API")}


def dashboard() -> QuartTrio:
    """The pages, that nobody opens here."""
    return build(Web(WebConfig(), None, None, None, ROOT, "x"))  # type: ignore[arg-type]


def served() -> set[tuple[str, str]]:
    """What the gateway has handlers for; HEAD goes with GET."""
    nothing: Any = None
    answering = Answering(
        nothing, bodies_bytes_max=1, body_bytes_max=1, body_seconds_max=1, ping_seconds=1, name_of=None
    )
    routes = Table(answering, Listing(nothing, answering)).routes
    return {(method, route.path) for route in routes for method in route.handlers if method != "HEAD"}


def test_the_api_serves_what_is_documented_and_nothing_else() -> None:
    assert served() == {row for row in DOCUMENTED if row[1] not in (*PATHS, OPENAPI_PATH)}


def test_the_description_has_every_route() -> None:
    described = {(one.method, one.path) for one in OPERATIONS}
    assert described == served() | {("GET", OPENAPI_PATH)}


def test_a_key_can_be_held_to_each_of_them_and_to_no_other() -> None:
    assert sorted(API_ROUTES) == sorted({path for _, path in served()})


def test_health_is_documented() -> None:
    assert set(PATHS) <= {path for _, path in DOCUMENTED}


def test_every_page_of_the_dashboard_is_documented() -> None:
    listed = {one for row in table(PAGE, "The dashboard's own paths") for one in code(row[0])}
    rules = {
        f"{method} " + re.sub(r"<(?:path:)?(\w+)>", r"{\1}", rule.rule)
        for rule in dashboard().url_map.iter_rules()
        for method in (rule.methods or set()) & set(METHODS)
    }
    assert listed == rules


def test_every_error_is_documented_as_it_is() -> None:
    rows = {code(row[0])[0]: row for row in table(PAGE, "Errors")}
    assert set(rows) == set(CODES)
    for name, (status, kind, word) in TABLE.items():
        assert (int(rows[name][1]), code(rows[name][2])[0], code(rows[name][3])[0]) == (status, kind, word), name


@pytest.mark.parametrize("reason", sorted(STATUS_BY_REASON))
def test_https_own_refusals_are_documented(reason: str) -> None:
    assert f"`{STATUS_BY_REASON[reason]} {reason}`" in PAGE
