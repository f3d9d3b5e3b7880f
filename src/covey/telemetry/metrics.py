"""The metrics of one node, in a registry of its own: two nodes in one process do not mix.

Families are declared here and nowhere else; labels have few values by design: never a user, a key or a prompt.
Names follow vLLM's and OpenTelemetry's habits behind our own prefix.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """The families of `Metrics` for one model."""

    request_seconds: Histogram
    first_token_seconds: Histogram
    token_seconds: Histogram
    prompt_tokens: Counter
    generation_tokens: Counter


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


class Metrics:
    """Every family Covey exports. Cheap to make; children are cached where a call is hot."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        made = self.registry
        self.build = Info("covey_build", "Version and roles of this node", registry=made)
        self.requests = Counter(
            "covey_requests", "API requests by route, model and outcome", ["route", "model", "outcome"], registry=made
        )
        self.request_seconds = Histogram(
            "covey_e2e_request_latency_seconds", "From the request's arrival to its last byte", ["model"],
            buckets=_SECONDS, registry=made,
        )  # fmt: skip
        self.first_token_seconds = Histogram(
            "covey_time_to_first_token_seconds", "From the request's arrival to its first token", ["model"],
            buckets=_SECONDS, registry=made,
        )  # fmt: skip
        self.token_seconds = Histogram(
            "covey_inter_token_latency_seconds", "Between the tokens of an answer, averaged over it", ["model"],
            buckets=_TOKEN_SECONDS, registry=made,
        )  # fmt: skip
        self.prompt_tokens = Counter("covey_prompt_tokens", "Tokens of prompts", ["model"], registry=made)
        self.generation_tokens = Counter("covey_generation_tokens", "Tokens of answers", ["model"], registry=made)
        self.in_flight = Gauge("covey_num_requests_in_flight", "API requests being served", registry=made)
        self.engine_running = Gauge(
            "covey_num_requests_running", "Requests that an engine works on", ["model"], registry=made
        )
        self.engine_waiting = Gauge(
            "covey_num_requests_waiting", "Requests that wait for an engine", ["model"], registry=made
        )
        self.engine_restarts = Counter("covey_engine_restarts", "Engines that died and were started again", ["model"],
                                       registry=made)  # fmt: skip
        self.bus_calls = Counter("covey_bus_calls", "Bus calls by method and outcome", ["method", "outcome"],
                                 registry=made)  # fmt: skip
        self.log_ins = Counter("covey_log_ins", "Attempts to log in, by outcome", ["outcome"], registry=made)
        self.key_checks = Counter("covey_key_checks", "API keys verified, by outcome", ["outcome"], registry=made)
        self.store_commits = Counter("covey_store_commits", "Durable batches written", registry=made)
        self.store_writes = Counter("covey_store_writes", "Writes that those batches held", registry=made)
        self.http_connections = Gauge("covey_http_connections", "Open connections of the listener", registry=made)
        self.links = LinkCollector()
        made.register(self.links)
        self.replication = ReplicationCollector()
        made.register(self.replication)
        self._key_check_children: dict[str, Counter] = {}
        self._bus_children: dict[tuple[str, str], Counter] = {}
        self._request_children: dict[tuple[str, str, str], Counter] = {}
        self._models: dict[str, ModelMetrics] = {}

    def bus_call(self, method: str, outcome: str) -> None:
        """Count a call; looks its child up once (a `labels()` costs as much as the call itself)."""
        child = self._bus_children.get((method, outcome))
        if child is None:
            child = self._bus_children[method, outcome] = self.bus_calls.labels(method, outcome)
        child.inc()

    def key_check(self, outcome: str) -> None:
        """Count a key that was verified, or not."""
        child = self._key_check_children.get(outcome)
        if child is None:
            child = self._key_check_children[outcome] = self.key_checks.labels(outcome)
        child.inc()

    def request_ended(self, route: str, model: str, outcome: str) -> None:
        """Count an API request."""
        child = self._request_children.get((route, model, outcome))
        if child is None:
            child = self._request_children[route, model, outcome] = self.requests.labels(route, model, outcome)
        child.inc()

    def of_model(self, model: str) -> "ModelMetrics":
        """What a gateway counts for one model; a model of the cluster, or "unknown"."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = ModelMetrics(
                self.request_seconds.labels(model),
                self.first_token_seconds.labels(model),
                self.token_seconds.labels(model),
                self.prompt_tokens.labels(model),
                self.generation_tokens.labels(model),
            )
        return found

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type. Takes 0.3 s at 10,000 series: call it in a thread."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
