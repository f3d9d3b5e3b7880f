"""Every contract is complete, and every error code travels in the conformance suite."""

import inspect
import re
from typing import get_args

import msgspec
import pytest

from covey.contracts.method import Party, Streaming
from covey.contracts.registry import AnyMethod, contracts
from covey.errors import CODES
from covey.testing.conformance import BusConformance

FAMILIES = {"auth", "cluster", "feeds", "gateway", "inference", "store"}
EVERY = contracts()


@pytest.fixture(params=sorted(EVERY))
def contract(request: pytest.FixtureRequest) -> AnyMethod:
    return EVERY[request.param]


def test_it_has_a_name_of_a_family(contract: AnyMethod) -> None:
    assert re.fullmatch(r"[a-z]+\.[a-z_]+", contract.name)
    assert contract.name.partition(".")[0] in FAMILIES


def test_somebody_may_call_it(contract: AnyMethod) -> None:
    assert contract.access
    assert contract.access <= set(get_args(Party))


def test_it_ends(contract: AnyMethod) -> None:
    seconds = contract.idle_seconds if isinstance(contract, Streaming) else contract.timeout_seconds
    assert 0 < seconds <= 900


def test_its_messages_are_frozen_and_explained(contract: AnyMethod) -> None:
    for message in (contract.request, contract.response):
        assert issubclass(message, msgspec.Struct)
        assert message.__struct_config__.frozen, message
        assert (inspect.getdoc(message) or "").strip(), f"{message.__name__} has no docstring"


def test_every_error_code_travels_in_the_conformance_suite() -> None:
    assert len(CODES) == len(set(CODES))
    assert "for code in CODES:" in inspect.getsource(BusConformance.test_every_error_arrives_as_it_was_raised)
