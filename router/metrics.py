"""What `/metrics` shows, gathered when it is asked for: a call costs a few integer additions."""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ..calls import Middleware
from .data_plane import DataPlane
from .health import State
from .tally import Tally
from .workers import WorkerPool


class RouterCollector(Collector):
    """Reads the router's own counters, and those of its middleware."""

    def __init__(
        self, pool: WorkerPool, data_plane: DataPlane, tally: Tally, middleware: Sequence[Middleware]
    ) -> None:
        self._pool = pool
        self._data_plane = data_plane
        self._tally = tally
        self._middleware = middleware

    def collect(self) -> Iterable[Metric]:
        """Yield the current figures."""
        replies = CounterMetricFamily(
            "espalier_replies", "Replies by worker and status.", labels=["worker", "status"]
        )
        in_flight = GaugeMetricFamily(
            "espalier_worker_in_flight", "Calls that a worker holds.", labels=["worker"]
        )
        states = GaugeMetricFamily(
            "espalier_worker_state", "1 for the state a worker is in.", labels=["worker", "state"]
        )
        for worker in self._pool:
            for status, count in worker.replies.items():
                replies.add_metric([worker.url, str(status)], count)
            in_flight.add_metric([worker.url], worker.in_flight)
            for state in State:
                states.add_metric([worker.url, state], float(worker.health.state is state))
        yield replies
        yield in_flight
        yield states
        yield GaugeMetricFamily("espalier_in_flight", "Calls in the router.", self._data_plane.in_flight)
        yield CounterMetricFamily(
            "espalier_clients_hung_up", "Calls whose client went away.", self._data_plane.hung_up_total
        )
        yield from _of_tally(self._tally)
        for layer in self._middleware:
            yield from _of_middleware(layer)


def registry_of(collector: Collector) -> CollectorRegistry:
    """Return a registry of this router alone, so that several may live in one process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return registry


def _of_tally(tally: Tally) -> Iterable[Metric]:
    counters = (
        ("espalier_retries", "Attempts after a call's first.", "reason", tally.retries),
        ("espalier_aborts", "Generations whose worker was told to end them.", "cause", tally.aborts),
        ("espalier_refused", "Calls that were not let in.", "reason", tally.refused),
    )
    for name, help_text, label, counts in counters:
        family = CounterMetricFamily(name, help_text, labels=[label])
        for value, count in counts.items():
            family.add_metric([value], count)
        yield family
    yield GaugeMetricFamily("espalier_queue_length", "Calls that wait to be let in.", tally.waiting)


def _of_middleware(layer: Middleware) -> Iterable[Metric]:
    for name, value in layer.stats().items():
        metric = f"espalier_{name}"
        if name.endswith("_total"):
            yield CounterMetricFamily(metric.removesuffix("_total"), f"{name} of a middleware.", value)
        else:
            yield GaugeMetricFamily(metric, f"{name} of a middleware.", value)
