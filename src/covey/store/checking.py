"""Whether a store is what it claims: every signature, hash and link of its feeds, and the view that they add up to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby

from covey.contracts.store import CheckReport
from covey.errors import CallError
from covey.store.entries import (
    KINDS,
    NO_HEAD,
    EntryError,
    FeedId,
    Head,
    Sealed,
    check_place,
    check_signature,
    is_feed,
    unseal,
)
from covey.store.feed_log import (
    DERIVED_PREFIXES,
    GENESIS_KEY,
    derive_view,
    entry_key,
    is_author,
    lost_key,
    read_heads,
    read_proofs,
    read_verdict,
)
from covey.store.genesis import network_hash
from covey.store.ingest import checked_proof
from covey.store.kv import Reader
from covey.store.view import VIEW_KEY, VIEW_VERSION, hash_rows

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
    heads: dict[str, Head] = {}
    problems: list[str] = []
    entries = operations = 0
    for chain in chains(reader, net):
        heads[chain.feed] = chain.head
        entries += len(chain.sound)
        if chain.problem:
            problems.append(chain.problem.message)
        operations += sum(len(sealed.entry.ops) for sealed in chain.sound)
    derived = derive_view(reader, {feed: head.seq for feed, head in heads.items()})
    rows = {key: value for key, value in derived.changes.items() if key.startswith(DERIVED_PREFIXES)}
    problems += _check_heads(reader, heads, read_verdict(derived).frozen)
    problems += _check_authors(derived, heads)
    problems += _check_proofs(reader, net)
    if reader.get(VIEW_KEY) == str(VIEW_VERSION).encode():  # others are made anew at the next start
        problems += _check_rows(reader, rows)
    return CheckReport(
        network_id=net.hex(),
        records=records,
        feeds=len(heads),
        entries=entries,
        operations=operations,
        rows=sum(key.startswith(b"v/") for key in rows),
        void=_void(derived, heads),
        proofs=len(read_proofs(reader)),
        ahead=sum(1 for _ in reader.scan(b"f/")),
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


def _check_heads(reader: Reader, heads: dict[str, Head], frozen: Mapping[str, int]) -> Iterator[str]:
    stored = read_heads(reader)
    for feed in sorted(heads.keys() | stored.keys()):
        real, said = heads.get(feed, NO_HEAD), stored.get(feed, NO_HEAD)
        if real != said:
            yield f"The head of {feed} says entry {said.seq}; what can be verified ends at entry {real.seq}."
        for other, seq in real.deps.items():
            wanted = min(seq, frozen.get(other, seq))  # of a frozen feed nobody gets more
            if max(heads.get(other, NO_HEAD).seq, int(reader.get(lost_key(other)) or b"0")) < wanted:
                yield f"{feed} builds on entry {seq} of {other}, which is missing."


def _check_authors(derived: Reader, heads: dict[str, Head]) -> Iterator[str]:
    for feed in heads:
        try:
            author = FeedId.parse(feed).author
        except CallError as error:
            yield error.message
            continue
        if not is_author(derived, author):
            yield f"{feed} was written by a node that was never an auth node of this network."


def _void(derived: Reader, heads: dict[str, Head]) -> int:
    """How many entries there are beyond what counts of their feeds."""
    verdict = read_verdict(derived)
    limits = {feed: verdict.limit(FeedId.parse(feed)) for feed in heads if is_feed(feed)}
    return sum(max(0, heads[feed].seq - limit) for feed, limit in limits.items())


def _check_proofs(reader: Reader, net: bytes) -> Iterator[str]:
    for feed, proof in read_proofs(reader).items():
        pair = checked_proof((proof.first, proof.second))
        if pair is None or pair[0].entry.feed != feed or pair[0].entry.seq != proof.seq or pair[0].entry.net != net:
            yield f"What is kept as the proof that {feed} has two entries {proof.seq} does not prove it."


def _check_rows(reader: Reader, derived: Mapping[bytes, bytes | None]) -> Iterator[str]:
    stored = {key: value for prefix in DERIVED_PREFIXES for key, value in reader.scan(prefix)}
    for key in sorted(stored.keys() | derived.keys()):
        if stored.get(key) != derived.get(key):
            name = key.decode("utf-8", "replace").removeprefix("v/")
            flaw = "is missing" if key not in stored else "is not what the feeds add up to"
            yield f"The row {name} {flaw}."
