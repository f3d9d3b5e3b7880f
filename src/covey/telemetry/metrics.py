"""The metrics of one node, in a registry of its own: two nodes in one process do not mix.

Families are declared here and nowhere else; labels have few values by design: never a user, a key or a prompt.
Names follow vLLM's and OpenTelemetry's habits behind our own prefix.
"""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Gauge, Info, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from covey.telemetry.collectors import LinkCollector, ModelCollector, ReplicationCollector, StoreCollector
from covey.telemetry.tallies import Count, Counts, Spread, Spreads

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
"""The label of a path that is no route, and of a method that nothing knows: whoever knocks must not make series."""


@dataclass(frozen=True, slots=True)
class ModelMetrics:
    """The families of `Metrics` for one model."""

    request_seconds: Spread
    first_token_seconds: Spread
    token_seconds: Spread
    prompt_tokens: Count
    generation_tokens: Count


class Metrics:
    """Every family Covey exports. Cheap to make; what is counted, is counted on the event loop."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        made = self.registry
        self.build = Info("covey_build", "Version and roles of this node", registry=made)
        self.requests = Counts(
            "covey_requests", "API requests by route, model and outcome", ["route", "model", "outcome"], registry=made
        )
        self.request_seconds = Spreads(
            "covey_e2e_request_latency_seconds", "From the request's arrival to its last byte", ["model"],
            bounds=_SECONDS, registry=made,
        )  # fmt: skip
        self.first_token_seconds = Spreads(
            "covey_time_to_first_token_seconds", "From the request's arrival to its first token", ["model"],
            bounds=_SECONDS, registry=made,
        )  # fmt: skip
        self.token_seconds = Spreads(
            "covey_inter_token_latency_seconds", "Between the tokens of an answer, averaged over it", ["model"],
            bounds=_TOKEN_SECONDS, registry=made,
        )  # fmt: skip
        self.prompt_tokens = Counts("covey_prompt_tokens", "Tokens of prompts", ["model"], registry=made)
        self.generation_tokens = Counts("covey_generation_tokens", "Tokens of answers", ["model"], registry=made)
        self.embedding_tokens = Counts(
            "covey_embedding_tokens", "Tokens of texts that were embedded", ["model"], registry=made
        )
        self.http_requests = Counts(
            "covey_http_requests", "HTTP requests of every kind, by route, method and class of status",
            ["route", "method", "status"], registry=made,
        )  # fmt: skip
        self.limited = Counts(
            "covey_rate_limited", "Requests that a limit refused, by the limit", ["reason"], registry=made
        )
        self.usage_failures = Counts(
            "covey_usage_flush_failures", "Times that usage records could not be written down", registry=made
        ).labels()
        self.in_flight = Gauge("covey_num_requests_in_flight", "API requests being served", registry=made)
        self.engine_running = Gauge(
            "covey_num_requests_running", "Requests that an engine works on", ["model"], registry=made
        )
        self.engine_waiting = Gauge(
            "covey_num_requests_waiting", "Requests that wait for an engine", ["model"], registry=made
        )
        self.queue_seconds = Spreads(
            "covey_request_queue_time_seconds", "How long a request waited for an engine", ["model"],
            bounds=_SECONDS, registry=made,
        )  # fmt: skip
        self.backend_requests = Counts(
            "covey_backend_requests", "Requests that a back end worked on, by outcome", ["backend", "outcome"],
            registry=made,
        )  # fmt: skip
        self.backend_seconds = Spreads(
            "covey_backend_first_token_seconds", "From asking a back end to the first piece of its answer",
            ["backend"], bounds=_SECONDS, registry=made,
        )  # fmt: skip
        self.upstream_up = Gauge(
            "covey_upstream_up", "Whether a server of models answers when it is asked", ["backend", "upstream"],
            registry=made,
        )  # fmt: skip
        self.engine_restarts = Counts("covey_engine_restarts", "Engines that died and were started again", ["model"],
                                       registry=made)  # fmt: skip
        self.bus_calls = Counts("covey_bus_calls", "Bus calls by method and outcome", ["method", "outcome"],
                                 registry=made)  # fmt: skip
        self.log_ins = Counts("covey_log_ins", "Attempts to log in, by outcome", ["outcome"], registry=made)
        self.key_checks = Counts("covey_key_checks", "API keys verified, by outcome", ["outcome"], registry=made)
        self.store_commits = Counts("covey_store_commits", "Durable batches written", registry=made).labels()
        self.store_writes = Counts("covey_store_writes", "Writes that those batches held", registry=made).labels()
        self.http_connections = Gauge("covey_http_connections", "Open connections of the listener", registry=made)
        self.loop_lag = Spreads(
            "covey_event_loop_lag_seconds", "How much later than asked for a task woke up", bounds=_LAG_SECONDS,
            registry=made,
        ).labels()  # fmt: skip
        self.models, self.store = ModelCollector(), StoreCollector()
        self.links, self.replication = LinkCollector(), ReplicationCollector()
        for collector in (self.models, self.store, self.links, self.replication):
            made.register(collector)
        self._models: dict[str, ModelMetrics] = {}

    def bus_call(self, method: str, outcome: str) -> None:
        """Count a call."""
        self.bus_calls.labels(method, outcome).inc()

    def key_check(self, outcome: str) -> None:
        """Count a key that was verified, or not."""
        self.key_checks.labels(outcome).inc()

    def request_ended(self, route: str, model: str, outcome: str) -> None:
        """Count an API request."""
        self.requests.labels(route, model, outcome).inc()

    def http_request(self, route: str, method: str, status: int) -> None:
        """Count an HTTP request: the route as a template, "" for a path that is none."""
        self.http_requests.labels(route or OTHER, method if method in METHODS else OTHER, f"{status // 100}xx").inc()

    def backend_began(self, backend: str, seconds: float) -> None:
        """The first piece of an answer has come from a back end."""
        self.backend_seconds.labels(backend).observe(seconds)

    def backend_ended(self, backend: str, outcome: str) -> None:
        """Count a request at a back end."""
        self.backend_requests.labels(backend, outcome).inc()

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
