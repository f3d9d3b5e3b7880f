"""The gateway with a key for clients that send none, over real sockets."""

import json
from pathlib import Path

import pytest
from gateway_harness import gateway

from covey.contracts.keys import MINT_BYTES, mint

LOCAL = mint(b"\7" * MINT_BYTES)


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "local.key"
    path.write_text(LOCAL.text)
    return str(path)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("", 200),
        ("Authorization: Bearer\r\n", 200),
        ("Authorization: Bearer wrong\r\n", 401),
        ("X-Forwarded-For: 203.0.113.9\r\n", 401),
        ("Origin: https://evil.example\r\n", 401),
        ("Origin: http://localhost\r\n", 200),
        ("Sec-Fetch-Site: cross-site\r\n", 401),
    ],
)
async def test_a_program_of_this_machine_needs_no_key_and_a_page_does(file: str, headers: str, status: int) -> None:
    async with gateway(loopback_key_file=file) as node:
        node.auth.know(LOCAL, requests_per_minute=5)
        answer = await node.ask("/v1/models", headers=headers)
        assert answer.status == status
        assert node.auth.verified == (status == 200)
        if status == 401:
            assert json.loads(answer.body)["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_key_is_one_as_any_other(file: str) -> None:
    """Its limits hold, and once it is revoked nobody is let in by it."""
    async with gateway(loopback_key_file=file) as node:
        assert (await node.ask("/v1/models", headers="")).status == 401
        node.auth.know(LOCAL, models=("scripted",))
        answer = await node.ask("/v1/models", headers="")
        assert [one["id"] for one in json.loads(answer.body)["data"]] == ["scripted"]
        node.auth.revoke(LOCAL.text)
        assert (await node.ask("/v1/models", headers="")).status == 401


async def test_it_is_off_by_default() -> None:
    async with gateway() as node:
        node.auth.know(LOCAL)
        assert (await node.ask("/v1/models", headers="")).status == 401
