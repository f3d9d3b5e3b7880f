"""Every route under thousands of hostile requests: no 5xx, no hang, always the documented body.

The requests are the same in every run; `FUZZ_SEED` and `FUZZ_MIXTURES` make others, and more.
"""

import base64
import json
import os
from collections.abc import Iterator

import pytest
import trio
from fuzz_requests import REQUESTS
from gateway_harness import Gateway, gateway

from covey.dialects.operations import OPERATIONS
from hostile import mixtures, mutants

SEED = int(os.environ.get("FUZZ_SEED", "20261125"))
MIXTURES = int(os.environ.get("FUZZ_MIXTURES", "600"))
LEAST = 20_000
"""Requests in a run, over all routes."""
CONNECTIONS = 4
ANSWER_SECONDS = 20.0
STATUSES = {200, 400, 403, 404, 413}


def bodies(route: str) -> Iterator[bytes]:
    for template in REQUESTS[route]:
        yield from mutants(template)
        yield from mixtures(template, MIXTURES, SEED)


def test_there_are_enough_for_every_route_that_takes_a_body() -> None:
    assert set(REQUESTS) == {one.path for one in OPERATIONS if one.method == "POST"}
    assert sum(sum(1 for _ in bodies(route)) for route in REQUESTS) >= LEAST


def check_error(route: str, status: int, body: bytes) -> None:
    """The documented shape of an error, in the route's own dialect."""
    said = json.loads(body)
    if route.startswith("/api/"):
        assert set(said) == {"error"}
        assert said["error"]
        assert isinstance(said["error"], str)
    elif route.startswith("/v1/messages"):
        assert said["type"] == "error"
        assert isinstance(said["error"]["type"], str)
        assert said["error"]["message"]
    else:
        assert set(said) == {"error"}
        assert set(said["error"]) == {"message", "type", "param", "code"}
        assert said["error"]["message"]
        assert isinstance(said["error"]["code"], str)
        assert status != 400 or said["error"]["type"] == "invalid_request_error"


@pytest.mark.slow
@pytest.mark.parametrize("route", sorted(REQUESTS))
async def test_hostile_bodies(route: str) -> None:
    waiting = iter(list(bodies(route)))
    seen: dict[int, int] = {}

    async def ask_on(node: Gateway) -> None:
        async with node.served.client() as client:
            for body in waiting:
                with trio.fail_after(ANSWER_SECONDS):
                    await client.send(node.request(route, body))
                    answer = await client.answer()
                assert answer.status in STATUSES, (answer.status, answer.body[:300], base64.b64encode(body[:2_000]))
                seen[answer.status] = seen.get(answer.status, 0) + 1
                assert answer.headers["x-request-id"]
                if answer.status != 200:
                    check_error(route, answer.status, answer.body)

    async with gateway() as node, trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS):
            nursery.start_soon(ask_on, node)
    assert seen[400] > 100
    print(f"{route}: {seen}")
