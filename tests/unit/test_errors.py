"""The one error that crosses boundaries, and what is told of any other."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.errors import CODES, CallError, Problem, describe, leaves


@given(
    st.builds(
        Problem,
        st.sampled_from(CODES),
        st.text(),
        st.text(),
        st.text(),
        st.none() | st.floats(0, 1e6),
    )
)
def test_an_error_survives_the_journey(problem: Problem) -> None:
    travelled = msgspec.msgpack.decode(msgspec.msgpack.encode(problem), type=Problem)
    assert CallError.of(travelled).problem == problem


def test_an_error_names_its_code() -> None:
    assert str(CallError("conflict", "The name is taken.")) == "The name is taken. [conflict]"


def test_the_leaves_of_a_group_come_in_order() -> None:
    first, second, third = ValueError("1"), KeyError("2"), CallError("internal", "3")
    group = BaseExceptionGroup("", [first, BaseExceptionGroup("", [second, third])])
    assert list(leaves(group)) == [first, second, third]
    assert list(leaves(first)) == [first]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CallError("invalid", "Say it again."), "Say it again."),
        (ValueError("  one\ntwo\n"), "ValueError: one"),
        (RuntimeError(), "RuntimeError"),
        (BaseExceptionGroup("many", [CallError("invalid", "Say it again."), ValueError()]), "Say it again."),
    ],
)
def test_any_error_is_one_line(error: BaseException, line: str) -> None:
    assert describe(error) == line
