"""Where members are: what counts more, what falls off the end, and what survives a restart."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from covey.cluster.address_book import ADDRESS_CHARS_MAX, ADDRESSES_PER_PEER_MAX, AddressBook
from covey.store.memory import MemoryStore
from covey.store.writer import open_store
from covey.telemetry.metrics import Metrics
from covey.testing import ALICE, BOB


@asynccontextmanager
async def a_book(disk: MemoryStore) -> AsyncGenerator[AddressBook, None]:
    async with open_store(disk, Metrics(), in_thread=False) as store:
        yield AddressBook(store)


async def test_what_is_sure_comes_first_and_hearsay_last() -> None:
    async with a_book(MemoryStore()) as book:
        await book.learn({ALICE: ["one", "two"]})
        await book.learn({ALICE: ["three"]}, first=True)
        await book.learn({ALICE: ["two", "four"], BOB: ["five"]})
        assert book.get(ALICE) == ("three", "one", "two", "four")
        assert book.all() == {ALICE: ("three", "one", "two", "four"), BOB: ("five",)}


async def test_what_is_known_already_is_no_news() -> None:
    async with a_book(MemoryStore()) as book:
        await book.learn({ALICE: ["one", "two"]})
        beats = book.hints.count
        await book.learn({ALICE: ["two", "one"]})
        await book.learn({ALICE: []})
        await book.learn({ALICE: ["", "x" * (ADDRESS_CHARS_MAX + 1)]})
        assert book.hints.count == beats
        await book.learn({ALICE: ["two"]}, first=True)
        assert book.get(ALICE) == ("two", "one")
        assert book.hints.count == beats + 1


async def test_a_full_list_still_learns() -> None:
    async with a_book(MemoryStore()) as book:
        await book.learn({ALICE: [f"old{number}" for number in range(ADDRESSES_PER_PEER_MAX)]}, first=True)
        await book.learn({ALICE: ["rumour"]})
        assert book.get(ALICE)[-1] == "rumour"
        assert book.get(ALICE)[0] == "old0"
        await book.learn({ALICE: [f"flood{number}" for number in range(100)]})
        assert len(book.get(ALICE)) == ADDRESSES_PER_PEER_MAX
        assert book.get(ALICE)[0] == "old0"  # whoever spreads many does not displace what is sure
        await book.learn({ALICE: ["moved"]}, first=True)
        assert book.get(ALICE)[0] == "moved"


async def test_it_survives_a_restart() -> None:
    disk = MemoryStore()
    async with a_book(disk) as book:
        await book.learn({ALICE: ["one"], BOB: ["two"]})
        before = book.all()
        kept = MemoryStore()
        kept.write(list(disk.scan(b"")))
    async with a_book(kept) as book:
        assert book.all() == before
