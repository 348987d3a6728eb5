"""What Prometheus reads at ``/metrics``.

Enters: what happened to each request. Leaves: counters, histograms and gauges of one server, apart from those of others
in the same process. Labels have few values: routes, status codes, model and key names, never anything of a request.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The figures of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # resident memory, processor time, open files
        self.requests = self._counter("requests", "Requests that ended, by route and status.", "route", "status")
        self.rejected = self._counter("rejected", "Requests refused, by reason.", "reason")
        self.tokens = self._counter("tokens", "Tokens read (prompt) and written (completion).", "model", "kind")
        self.answers = self._counter("answers", "Answers that ended, by how.", "model", "ended")
        self.loads = self._counter("adapter_loads", "Adapters that came, went or could not be loaded.", "result")
        self.seconds = Histogram(
            "fintune_request_seconds", "From arrival to end.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.first_token = Histogram(
            "fintune_first_token_seconds",
            "From a prompt's submission to its first token, waiting included.",
            ["model"],
            buckets=_SECONDS,
            registry=self.registry,
        )

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"fintune_{name}", what, labels, registry=self.registry)

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A gauge that asks ``value`` whenever the page is read."""
        Gauge(f"fintune_{name}", what, registry=self.registry).set_function(value)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        page: bytes = generate_latest(self.registry)
        return page
