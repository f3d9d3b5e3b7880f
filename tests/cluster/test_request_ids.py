"""One request on two machines: followed by its id through both logs, and as large as a gateway takes."""

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hosts import API_PORT, CHEAP_PASSWORDS, ECHO, NETWORK, Host, eventually, open_network

pytestmark = pytest.mark.slow
TOLD = NETWORK + ECHO + CHEAP_PASSWORDS + '[telemetry]\nlog_level = "debug"\nlog_style = "json"\naccess_log = true\n'
REQUEST_ID = "order-66.a_b"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    with open_network(tmp_path) as network:
        desk = network.host("desk", TOLD).start("--role", "auth", "--role", "gateway").ready()
        attic = network.host("attic", TOLD).join(desk.invite("inference")).ready()
        desk.key = desk.create_key()
        eventually(lambda: desk.chat("ready?").good, 10, lambda: desk.said() + attic.said())
        yield desk, attic


def ask(host: Host, request_id: str, messages: list[dict[str, str]]) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", API_PORT, timeout=30)
    connection.sock = host.connect("127.0.0.1", API_PORT, 30)
    headers = {"authorization": f"Bearer {host.key}", "content-type": "application/json", "x-request-id": request_id}
    try:
        body = json.dumps({"model": "echo", "messages": messages})
        connection.request("POST", "/v1/chat/completions?secret=in-the-query", body, headers)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def lines_of(host: Host, request_id: str) -> list[dict[str, Any]]:
    """What its log has of one request, in order."""
    lines = [json.loads(line) for line in host.said().splitlines() if line.startswith('{"ts"')]
    return [line for line in lines if line.get("request_id") == request_id]


def test_one_request_is_followed_by_its_id_through_the_logs_of_two_machines(two: tuple[Host, Host]) -> None:
    desk, attic = two
    response, _ = ask(desk, REQUEST_ID, [{"role": "user", "content": "one two three"}])
    assert (response.status, response.headers["x-request-id"]) == (200, REQUEST_ID)

    eventually(lambda: len(lines_of(desk, REQUEST_ID)) == len(lines_of(attic, REQUEST_ID)) == 2, 5, desk.said)
    near, far = lines_of(desk, REQUEST_ID), lines_of(attic, REQUEST_ID)
    assert [line["message"] for line in near[:-1]] == ["inference.chat for the model echo runs on attic."]
    assert [line["logger"] for line in far] == ["roles.inference.attempt"] * 2
    assert far[0]["message"] == "The back end echo begins to answer with echo."
    assert far[1]["message"].startswith("The back end echo has ended (ok) after ")
    (access,) = [line for line in near if line["logger"] == "access"]
    assert {name: access[name] for name in ("method", "route", "status", "model", "node", "outcome")} == {
        "method": "POST",
        "route": "/v1/chat/completions",
        "status": 200,
        "model": "echo",
        "node": "attic",
        "outcome": "ok",
    }
    assert access["completion_tokens"] > 0
    assert access["client"] == "127.0.0.1"
    print(*(f"{host.name}: {json.dumps(line)}" for host in two for line in lines_of(host, REQUEST_ID)), sep="\n")

    # Nothing else of it is anywhere: no query, no key, no word of the prompt.
    for host in two:
        assert "in-the-query" not in host.said()
        assert desk.key not in host.said()
        assert "one two three" not in host.said()

    # What is no id does not become one: the gateway makes its own, and that travels.
    response, _ = ask(desk, "a b", [{"role": "user", "content": "again"}])
    made = response.headers["x-request-id"]
    assert made.startswith("req_")
    eventually(lambda: len(lines_of(desk, made)) == len(lines_of(attic, made)) == 2, 5, attic.said)


def test_a_request_longer_than_a_frame_is_answered_far_away(two: tuple[Host, Host]) -> None:
    desk, attic = two
    messages = [{"role": "system", "content": "x" * 7_500_000}, {"role": "user", "content": "short"}]
    response, body = ask(desk, "long-1", messages)
    assert response.status == 200, body[:500]
    assert json.loads(body)["choices"][0]["message"]["content"] == "short"
    assert len(lines_of(attic, "long-1")) == 2
