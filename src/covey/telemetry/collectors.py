"""Families that are read when somebody asks, so that what is gone leaves no series behind.

Each collector has a `read`, called from the thread that renders: whoever knows the values replaces it, and takes them
from the event loop where they change there.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class LinkSample(NamedTuple):
    """One link as it is now; `rtt_seconds` is `None` where it has not been measured."""

    node: str
    up: bool
    relayed: bool
    rtt_seconds: float | None
    reconnects: int
    received_bytes: int
    sent_bytes: int
    calls: int


class LinkCollector(Collector):
    """Reads the links when somebody asks: a member that is removed leaves no series behind."""

    def __init__(self) -> None:
        self.read: Callable[[], Iterable[LinkSample]] = tuple
        """Called from the thread that renders; replaced by whoever has links."""

    def collect(self) -> Iterator[Metric]:
        """The families, with a sample for each link."""
        labels = ["node"]
        up = GaugeMetricFamily("covey_link_up", "Whether there is a link to another node", labels=labels)
        relayed = GaugeMetricFamily("covey_link_relayed", "Whether a third node passes it on", labels=labels)
        rtt = GaugeMetricFamily("covey_link_rtt_seconds", "The last round trip", labels=labels)
        reconnects = CounterMetricFamily("covey_link_reconnects", "Times it came up again", labels=labels)
        received = CounterMetricFamily("covey_link_received_bytes", "Bytes of frames received", labels=labels)
        sent = CounterMetricFamily("covey_link_sent_bytes", "Bytes of frames sent", labels=labels)
        calls = GaugeMetricFamily("covey_link_calls_in_flight", "Calls under way, both ways", labels=labels)
        for link in self.read():
            label = [link.node]
            up.add_metric(label, float(link.up))
            relayed.add_metric(label, float(link.relayed))
            if link.rtt_seconds is not None:
                rtt.add_metric(label, link.rtt_seconds)
            reconnects.add_metric(label, link.reconnects)
            received.add_metric(label, link.received_bytes)
            sent.add_metric(label, link.sent_bytes)
            calls.add_metric(label, link.calls)
        yield from (up, relayed, rtt, reconnects, received, sent, calls)


class ReplicationSample(NamedTuple):
    """This node's copy of the feeds as it is now. `lease_seconds_left` is `None` where it needs no lease."""

    lease_seconds_left: float | None = None
    lag_seconds: float = 0.0
    behind_entries: int = 0
    quarantined_entries: int = 0
    refusals: Mapping[str, int] = {}


class ReplicationCollector(Collector):
    """Reads how replication does when somebody asks."""

    def __init__(self) -> None:
        self.read: Callable[[], ReplicationSample] = ReplicationSample
        """Called from the thread that renders; replaced by whoever replicates."""

    def collect(self) -> Iterator[Metric]:
        """The families."""
        sample = self.read()
        lease = GaugeMetricFamily("covey_lease_seconds_left", "For how long this node may still vouch for keys")
        if sample.lease_seconds_left is not None:
            lease.add_metric([], sample.lease_seconds_left)
        refusals = CounterMetricFamily("covey_feed_refusals", "Entries of feeds refused, by reason", labels=["reason"])
        for reason, count in sample.refusals.items():
            refusals.add_metric([reason], count)
        yield from (
            lease,
            GaugeMetricFamily(
                "covey_replication_lag_seconds", "For how long entries have been missing", value=sample.lag_seconds
            ),
            GaugeMetricFamily(
                "covey_replication_behind_entries", "Entries named by others, not here", value=sample.behind_entries
            ),
            GaugeMetricFamily(
                "covey_quarantined_entries", "Entries that wait for earlier ones", value=sample.quarantined_entries
            ),
            refusals,
        )


class StoreSample(NamedTuple):
    """The store's files as they are now."""

    files: int = 0
    bytes: int = 0


class StoreCollector(Collector):
    """Looks at the store's files when somebody asks."""

    def __init__(self) -> None:
        self.read: Callable[[], StoreSample] = StoreSample
        """Replaced by whoever opened the store."""

    def collect(self) -> Iterator[Metric]:
        """The families."""
        sample = self.read()
        yield GaugeMetricFamily("covey_store_files", "Files of the store", value=sample.files)
        yield GaugeMetricFamily("covey_store_bytes", "Bytes that those files hold", value=sample.bytes)


class ModelCollector(Collector):
    """Counts the models of this node when somebody asks."""

    def __init__(self) -> None:
        self.read: Callable[[], Mapping[tuple[str, str], int]] = dict[tuple[str, str], int]
        """How many models, by back end and state; replaced by whoever has back ends."""

    def collect(self) -> Iterator[Metric]:
        """The family."""
        models = GaugeMetricFamily(
            "covey_models", "Models of this node, by back end and state", labels=["backend", "state"]
        )
        for (backend, state), count in sorted(self.read().items()):
            models.add_metric([backend, state], count)
        yield models
