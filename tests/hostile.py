"""Bodies that no client should send: every field of a request missing, null, of another kind, out of range, and worse.

`mutants` walks a request that uses every field; what it gives is always the same, in the same order.
"""

import json
import random
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]

DEEP = 2_000
LONG = 20_000


class Raw(str):
    """JSON text to be put in as it is."""

    __slots__ = ()


STRANGE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    1.5,
    -0.0,
    2**31,
    -(2**63) - 1,
    2**64,
    10**400,
    "",
    " ",
    "x",
    "\0",
    "\u202eabc",
    "é€🦆",
    "x" * LONG,
    [],
    [[]],
    [None],
    [0],
    ["x"] * 3_000,
    {},
    {"": None},
    {"type": None},
    {"type": "x" * 300},
    Raw("NaN"),
    Raw("Infinity"),
    Raw("1e999"),
    Raw("-1e999"),
    Raw("00"),
    Raw('"\\ud800"'),
    Raw('"\\u0000"'),
    Raw("[" * DEEP + "]" * DEEP),
    Raw('{"a":' * DEEP + "1" + "}" * DEEP),
    Raw("[" * 200),
    Raw('"unterminated'),
    Raw(""),
)
NOT_UTF_8 = (b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80")


def paths(value: Any, at: Path = ()) -> Iterator[Path]:
    """Every place in a value, itself first."""
    yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths(inner, (*at, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths(inner, (*at, index))


def encoded(value: Any) -> bytes:
    """JSON, with the raw pieces as they are."""
    if isinstance(value, Raw):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, dict):
        return b"{" + b",".join(encoded(key) + b":" + encoded(inner) for key, inner in value.items()) + b"}"
    if isinstance(value, (list, tuple)):
        return b"[" + b",".join(map(encoded, value)) + b"]"
    return json.dumps(value).encode()


def with_at(value: Any, at: Path, new: Any) -> Any:
    """The value with another one at a place."""
    if not at:
        return new
    if isinstance(value, dict):
        return {key: with_at(inner, at[1:], new) if key == at[0] else inner for key, inner in value.items()}
    return [with_at(inner, at[1:], new) if index == at[0] else inner for index, inner in enumerate(value)]


def without(value: Any, at: Path) -> Any:
    """The value without the field or the entry at a place."""
    if isinstance(value, dict):
        return {
            key: without(inner, at[1:]) if len(at) > 1 and key == at[0] else inner
            for key, inner in value.items()
            if len(at) > 1 or key != at[0]
        }
    return [
        without(inner, at[1:]) if len(at) > 1 and index == at[0] else inner
        for index, inner in enumerate(value)
        if len(at) > 1 or index != at[0]
    ]


def mutants(request: dict[str, Any]) -> Iterator[bytes]:
    """One thing wrong with each."""
    yield from (b"", b"null", b"[]", b"0", b'"x"', b"{", b"{}", b"\xef\xbb\xbf{}", b"{}{}", b"\0")
    for place in paths(request):
        if place:
            yield encoded(without(request, place))
        for strange in STRANGE:
            yield encoded(with_at(request, place, strange))
        for broken in NOT_UTF_8:
            mark = "\uffff"
            whole = encoded(with_at(request, place, Raw(f'"{mark}"')))
            yield whole.replace(mark.encode(), broken)


def mixtures(request: dict[str, Any], count: int, seed: int) -> Iterator[bytes]:
    """Several things wrong with each, or fields left out at random."""
    choose = random.Random(seed)
    for _ in range(count):
        value: Any = request
        for _ in range(choose.randint(1, 4)):
            place = choose.choice(list(paths(value))[1:] or [()])
            value = (
                without(value, place)
                if place and choose.random() < 0.4
                else with_at(value, place, choose.choice(STRANGE))
            )
            if not isinstance(value, (dict, list)):
                break
        yield encoded(value)
