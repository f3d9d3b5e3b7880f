"""What feeds say from now on, whoever says it: entries as they become durable here."""

from covey.contracts.feeds import Kind
from covey.store.entries import Head, Sealed
from covey.store.feed_log import read_entries, read_heads
from covey.store.writer import Store


class FeedNews:
    """The entries of some kinds beyond where the store is when this is made, each once."""

    def __init__(self, store: Store, *kinds: Kind) -> None:
        self._store = store
        self._prefixes = tuple(f"{kind}/" for kind in kinds)
        self._seen = store.commits.count
        self._have = {feed: head.seq for feed, head in self._heads().items()}

    async def next(self) -> list[Sealed]:
        """Wait for the next ones; at least one. Those of one feed are in its order."""
        while True:
            found: list[Sealed] = []
            for feed, head in self._heads().items():
                have = self._have.get(feed, 0)
                if head.seq > have:
                    news = list(read_entries(self._store.reader, feed, after=have))
                    self._have[feed] = news[-1].entry.seq if news else head.seq
                    found += news
            if found:
                return found
            self._seen = await self._store.commits.after(self._seen)

    def _heads(self) -> dict[str, Head]:
        reader = self._store.reader
        return {feed: head for prefix in self._prefixes for feed, head in read_heads(reader, prefix).items()}
