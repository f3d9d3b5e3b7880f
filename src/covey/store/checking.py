"""Whether a store is what it claims: every signature, hash and link of its feeds, and the view that they add up to."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from covey.contracts.store import CheckReport
from covey.errors import CallError
from covey.store.entries import KINDS, NO_HEAD, EntryError, FeedId, Head, Sealed, check_place, check_signature, unseal
from covey.store.feed_log import GENESIS_KEY, apply_entry, entry_key, lost_key, read_heads
from covey.store.genesis import network_hash, read_genesis
from covey.store.kv import Reader
from covey.store.membership import AUTHOR_ROLE
from covey.store.memory import MemoryStore
from covey.store.rows import MemberRow
from covey.store.view import View, hash_rows
from covey.store.writer import Overlay

PROBLEMS_MAX = 100
"""The first of them tell enough."""


@dataclass(slots=True)
class Chain:
    """One feed as far as it can be believed, and what lies behind that.

    `beyond`: the keys of all that is not `sound`. `stranded`: those among them that are of this network and well
    signed by the feed's author, but behind a gap.
    """

    feed: str
    head: Head = NO_HEAD
    sound: list[Sealed] = field(default_factory=list[Sealed])
    stranded: list[Sealed] = field(default_factory=list[Sealed])
    beyond: list[bytes] = field(default_factory=list[bytes])
    problem: EntryError | None = None


def check_reader(reader: Reader) -> CheckReport:
    """Check everything of a store, or better of a snapshot of it. Takes a minute per million entries: use a thread.

    Raises:
        StoreError: the disk itself failed while it was read.
    """
    records = sum(1 for _ in reader.scan(b""))
    genesis = reader.get(GENESIS_KEY)
    if genesis is None:
        stray = ["There are feeds but no genesis."] if next(reader.scan(b"e/"), None) else []
        return CheckReport(
            network_id="", records=records, feeds=0, entries=0, operations=0, rows=0, view_hashes={},
            problems=tuple(stray),
        )  # fmt: skip
    net = network_hash(genesis)
    derived = Overlay(MemoryStore())
    heads: dict[str, Head] = {}
    problems: list[str] = []
    entries = operations = 0
    for chain in chains(reader, net):
        heads[chain.feed] = chain.head
        entries += len(chain.sound)
        if chain.problem:
            problems.append(chain.problem.message)
        for sealed in chain.sound:
            operations += len(sealed.entry.ops)
            apply_entry(derived, sealed)
    problems += _check_heads(reader, heads)
    problems += _check_authors(derived, heads, read_genesis(genesis).founder)
    problems += _check_rows(reader, derived)
    return CheckReport(
        network_id=net.hex(),
        records=records,
        feeds=len(heads),
        entries=entries,
        operations=operations,
        rows=len(derived.changes),
        view_hashes={kind: hash_rows(derived.scan(f"v/{kind}/".encode())) for kind in KINDS},
        problems=tuple(problems[:PROBLEMS_MAX]),
    )


def chains(reader: Reader, net: bytes) -> Iterator[Chain]:
    """Every feed that has entries, one after the other, each verified from its first entry on."""
    for name, pairs in groupby(reader.scan(b"e/"), key=lambda pair: pair[0][2:].rpartition(b"/")[0]):
        chain = Chain(name.decode("utf-8", "replace"))
        for key, stored in pairs:
            _extend(chain, key, stored, net)
        yield chain


def _extend(chain: Chain, key: bytes, stored: bytes, net: bytes) -> None:
    try:
        sealed = unseal(stored)
        check_signature(sealed)
        if entry_key(str(sealed.feed), sealed.entry.seq) != key:
            raise EntryError("malformed", f"{key.decode('utf-8', 'replace')} holds an entry that belongs elsewhere.")
    except EntryError as error:
        chain.problem = chain.problem or error
        chain.beyond.append(key)
        return
    try:
        check_place(sealed, net, chain.head)
    except EntryError as error:
        chain.problem = chain.problem or error
    if chain.problem is None:
        chain.sound.append(sealed)
        chain.head = sealed.head(chain.head)
    else:
        chain.beyond.append(key)
        if sealed.entry.net == net:
            chain.stranded.append(sealed)


def _check_heads(reader: Reader, heads: dict[str, Head]) -> Iterator[str]:
    stored = read_heads(reader)
    for feed in sorted(heads.keys() | stored.keys()):
        real, said = heads.get(feed, NO_HEAD), stored.get(feed, NO_HEAD)
        if real != said:
            yield f"The head of {feed} says entry {said.seq}; what can be verified ends at entry {real.seq}."
        for other, seq in real.deps.items():
            if max(heads.get(other, NO_HEAD).seq, int(reader.get(lost_key(other)) or b"0")) < seq:
                yield f"{feed} builds on entry {seq} of {other}, which is missing."


def _check_authors(derived: Reader, heads: dict[str, Head], founder: str) -> Iterator[str]:
    view = View(derived)
    for feed in heads:
        try:
            author = FeedId.parse(feed).author
        except CallError as error:
            yield error.message
            continue
        row = view.get(MemberRow, author)
        if row is None or (AUTHOR_ROLE not in row.roles and author != founder):
            yield f"{feed} was written by a node that was never an auth node of this network."


def _check_rows(reader: Reader, derived: Overlay) -> Iterator[str]:
    stored = dict(reader.scan(b"v/"))
    for key in sorted(stored.keys() | derived.changes.keys()):
        if stored.get(key) != derived.changes.get(key):
            name = key.decode("utf-8", "replace").removeprefix("v/")
            flaw = "is missing" if key not in stored else "is not what the feeds add up to"
            yield f"The row {name} {flaw}."
