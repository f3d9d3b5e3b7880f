"""How usage lies in this node's own corner of the store, and what is written and dropped when. Pure.

| name | holds |
| --- | --- |
| `r/<microseconds><number>` | a `UsageRecord`: one request |
| `h/<second><digest>` | a `UsageTotal` of one hour |
| `d/<second><digest>` | a `UsageTotal` of one day |
| `counts` | `Counts`: how many there are of each |

Numbers are big endian, so that the names sort by time. Totals are brought up to date in the batch that writes the
records, so they agree whatever was cut off; they outlive the records that they add up.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from struct import Struct as Layout
from typing import TypeVar

import msgspec

from covey.contracts.usage import Dimension, UsageRecord, UsageSums
from covey.contracts.usage_sums import DAY_SECONDS, HOUR_SECONDS, add, day_of, hour_of, sums_of, sums_of_all
from covey.store.kv import Reader

AREA = "usage"
RECORDS, HOURS, DAYS, COUNTS = b"r/", b"h/", b"d/", b"counts"
PRUNED_MAX = 500
"""Of each kind, in one batch: what it costs the event loop is some milliseconds."""

_RECORD = Layout("!QQ")
_START = Layout("!I")
_MICROSECONDS = 1_000_000
_SECONDS_MAX = 0xFFFF_FFFF

Place = tuple[str, str, str, str, str, str]
"""What requests of one total agree in."""
Changes = list[tuple[bytes, bytes | None]]


class UsageTotal(msgspec.Struct, frozen=True):
    """What requests of one hour or day that agree in everything else add up to. `start`: its first Unix second."""

    start: int
    model: str
    key: str
    user: str
    node: str
    route: str
    outcome: str
    sums: UsageSums


class Counts(msgspec.Struct, frozen=True):
    """How many of each are stored. `numbered`: how many records ever were."""

    records: int = 0
    hours: int = 0
    days: int = 0
    numbered: int = 0


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept for how long, and how much at most; the oldest goes first.

    `records_days`: records, and totals of hours. `days`: totals of days. `totals_max`: of hours, and of days.
    """

    records_days: float = 30.0
    days: float = 400.0
    records_max: int = 500_000
    totals_max: int = 200_000


DIMENSIONS: Mapping[Dimension, Callable[[UsageTotal], str]] = {
    "day": lambda total: day_of(total.start),
    "hour": lambda total: hour_of(total.start),
    "model": lambda total: total.model,
    "key": lambda total: total.key,
    "user": lambda total: total.user,
    "node": lambda total: total.node,
    "route": lambda total: total.route,
    "outcome": lambda total: total.outcome,
}
"""What totals are told apart by."""

_Row = TypeVar("_Row")
_records = msgspec.msgpack.Decoder(UsageRecord)
_totals = msgspec.msgpack.Decoder(UsageTotal)
_counts = msgspec.msgpack.Decoder(Counts)
_encode = msgspec.msgpack.Encoder().encode


def _read(decoder: msgspec.msgpack.Decoder[_Row], value: bytes | None) -> _Row | None:
    try:
        return None if value is None else decoder.decode(value)
    except msgspec.DecodeError:
        return None


def read_record(value: bytes) -> UsageRecord | None:
    """A stored record; `None` for one that `covey store repair` saved in part."""
    return _read(_records, value)


def read_total(value: bytes | None) -> UsageTotal | None:
    """A stored total, if it is there; likewise."""
    return _read(_totals, value)


def seconds_within(at: float) -> float:
    """A moment that a name can hold, whatever the clock said."""
    return min(max(at, 0.0), float(_SECONDS_MAX))


def record_name(at: float, number: int = 0) -> bytes:
    """Where a record lies; with number 0, where those of a moment begin."""
    return RECORDS + _RECORD.pack(int(seconds_within(at) * _MICROSECONDS), number)


def total_start(kind: bytes, at: float) -> bytes:
    """Where the totals of an hour or a day begin."""
    return kind + _START.pack(_begin(kind, at))


def _begin(kind: bytes, at: float) -> int:
    size = HOUR_SECONDS if kind == HOURS else DAY_SECONDS
    return int(seconds_within(at)) // size * size


def total_of(kind: bytes, record: UsageRecord) -> tuple[bytes, UsageTotal]:
    """The total that a record counts in, with this record alone, and its name."""
    return _total(kind, _begin(kind, record.ended_at), _place_of(record), sums_of(record))


def _place_of(record: UsageRecord) -> Place:
    return record.model, record.key_id, record.owner, record.node, record.route, record.outcome


def _total(kind: bytes, start: int, place: Place, sums: UsageSums) -> tuple[bytes, UsageTotal]:
    name = kind + _START.pack(start) + blake2b(_encode(place), digest_size=12).digest()
    return name, UsageTotal(start, *place, sums)


class Delta:
    """What some records change: made outside the store's turn, since it takes the longest."""

    def __init__(self) -> None:
        self.records: list[tuple[float, bytes]] = []
        self._alike: dict[tuple[int, Place], list[UsageRecord]] = {}

    def add(self, record: UsageRecord) -> None:
        """One more."""
        self.records.append((record.ended_at, _encode(record)))
        self._alike.setdefault((_begin(HOURS, record.ended_at), _place_of(record)), []).append(record)

    def totals(self) -> dict[bytes, UsageTotal]:
        """What they add up to, by name."""
        found: dict[bytes, UsageTotal] = {}
        for (hour, place), records in self._alike.items():
            sums = sums_of_all(records)
            for kind, start in ((HOURS, hour), (DAYS, _begin(DAYS, hour))):
                name, total = _total(kind, start, place, sums)
                found[name] = total if (known := found.get(name)) is None else _sum(known, total)
        return found

    def apply(self, reader: Reader, key: Callable[[bytes], bytes]) -> tuple[Changes, Counts]:
        """What to write.

        Args:
            reader: what is stored.
            key: the whole key of a name.
        """
        counts = read_counts(reader, key)
        changes: Changes = [
            (key(record_name(at, number)), value)
            for number, (at, value) in enumerate(self.records, start=counts.numbered + 1)
        ]
        fresh = {HOURS: 0, DAYS: 0}
        for name, total in self.totals().items():
            stored = reader.get(key(name))
            fresh[name[:2]] += stored is None
            known = read_total(stored)
            changes.append((key(name), _encode(total if known is None else _sum(known, total))))
        counts = Counts(
            counts.records + len(self.records),
            counts.hours + fresh[HOURS],
            counts.days + fresh[DAYS],
            counts.numbered + len(self.records),
        )
        changes.append((key(COUNTS), _encode(counts)))
        return changes, counts


def _sum(one: UsageTotal, other: UsageTotal) -> UsageTotal:
    return msgspec.structs.replace(one, sums=add(one.sums, other.sums))


def read_counts(reader: Reader, key: Callable[[bytes], bytes]) -> Counts:
    """How many there are."""
    return _read(_counts, reader.get(key(COUNTS))) or Counts()


def is_over(counts: Counts, retention: Retention) -> bool:
    """Whether there are too many of something."""
    most = retention.totals_max
    return counts.records > retention.records_max or counts.hours > most or counts.days > most


def prune(reader: Reader, key: Callable[[bytes], bytes], now: float, retention: Retention) -> tuple[Changes, bool]:
    """What is too old, or too much; and whether there may be more of it.

    Args:
        reader: what is stored.
        key: the whole key of a name.
        now: Unix seconds.
        retention: what is kept.
    """
    counts = read_counts(reader, key)
    records_since = now - retention.records_days * DAY_SECONDS
    dropped = [
        _oldest(reader, key(RECORDS), key(record_name(records_since)), counts.records - retention.records_max),
        _oldest(reader, key(HOURS), key(total_start(HOURS, records_since)), counts.hours - retention.totals_max),
        _oldest(
            reader,
            key(DAYS),
            key(total_start(DAYS, now - retention.days * DAY_SECONDS)),
            counts.days - retention.totals_max,
        ),
    ]
    if not any(dropped):
        return [], False
    records, hours, days = map(len, dropped)
    left = Counts(
        max(counts.records - records, 0), max(counts.hours - hours, 0), max(counts.days - days, 0), counts.numbered
    )
    changes: Changes = [(name, None) for name in chain(*dropped)]
    changes.append((key(COUNTS), _encode(left)))
    return changes, any(len(names) == PRUNED_MAX for names in dropped)


def _oldest(reader: Reader, prefix: bytes, since: bytes, excess: int) -> list[bytes]:
    names: list[bytes] = []
    for name, _ in reader.scan(prefix, limit=PRUNED_MAX):
        if name >= since and len(names) >= excess:
            break
        names.append(name)
    return names


@dataclass(frozen=True, slots=True)
class Question:
    """Which requests are meant; "" is all. Unix seconds, `until` not included."""

    since: float
    until: float
    user: str = ""
    key: str = ""
    model: str = ""

    def means_record(self, record: UsageRecord) -> bool:
        """Whether it is one of them."""
        return self.since <= record.ended_at < self.until and self._means(record.owner, record.key_id, record.model)

    def means_total(self, total: UsageTotal) -> bool:
        """Whether it may hold some of them, whatever its time: they agree in the rest."""
        return self._means(total.user, total.key, total.model)

    def _means(self, user: str, key: str, model: str) -> bool:
        return self.user in ("", user) and self.key in ("", key) and self.model in ("", model)


def group_of(total: UsageTotal, group_by: Iterable[Dimension]) -> tuple[str, ...]:
    """The line that a total counts in."""
    return tuple(DIMENSIONS[one](total) for one in group_by)
