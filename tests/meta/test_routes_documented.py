"""docs/api.md has every route with its methods, and no other; every error, with its status and its names."""

import ast
import inspect
import re

import pytest
from documents import ROOT, code, read, table
from quart_trio import QuartTrio

from covey.errors import CODES, CallError
from covey.http.health import PATHS
from covey.http.problems import STATUS_BY_REASON, TABLE
from covey.roles.gateway import routes
from covey.roles.gateway.routes import Api, Exchange
from covey.roles.web.app import build
from covey.roles.web.config import WebConfig
from covey.roles.web.context import Web

PAGE = read("docs/api.md")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
DOCUMENTED = {tuple(code(row[0])[0].split(" ")): row for row in table(PAGE, "The HTTP API")}


def dashboard() -> QuartTrio:
    """The pages, that nobody opens here."""
    return build(Web(WebConfig(), None, None, None, ROOT, "x"))  # type: ignore[arg-type]


def served(method: str, path: str) -> bool:
    """Whether the gateway has a handler."""
    exchange = Exchange({"method": method, "path": path, "headers": []}, None, None)  # type: ignore[arg-type]
    try:
        Api._route(object.__new__(Api), exchange)
    except CallError:
        return False
    return True


async def test_the_api_serves_what_is_documented_and_by_no_other_method() -> None:
    for path in {path for _, path in DOCUMENTED if path.startswith("/v1/")}:
        for method in METHODS:
            assert served(method, path.replace("{id}", "some-model")) == ((method, path) in DOCUMENTED), (method, path)


def test_every_path_in_the_gateway_is_documented() -> None:
    texts = [node.value for node in ast.walk(ast.parse(inspect.getsource(routes))) if isinstance(node, ast.Constant)]
    paths = {text for text in texts if isinstance(text, str) and re.fullmatch(r"/v1/[a-z/]*", text)}
    assert len(paths) >= 3
    known = {path.partition("{")[0] for _, path in DOCUMENTED}
    assert paths <= known


def test_health_is_documented() -> None:
    assert {path for _, path in DOCUMENTED if not path.startswith("/v1/")} == set(PATHS)


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
